"""Run folders as `GoldScore` and `KLFromBase` write them, from scores by prompt."""

import csv
import json

import numpy as np


def average(scores, names, lower_is_better=()):
    """`GoldScore`'s Average of (T, P) scores relative to the first evaluation, (T,)."""
    ratios = []
    for name in names:
        means = scores[name].mean(axis=1)
        ratios.append(means[0] / means if name in lower_is_better else means / means[0])
    return np.mean(ratios, axis=0)


def write_scores(folder, scores, proxy, *, steps=None, kl=None, names=None, lower_is_better=(), by_prompt=True):
    """Writes `gold.csv`, `gold.json`, and where asked for `gold/step_*.npz` and `kl.csv`.

    Args:
        folder: to write to.
        scores: name -> (T, P).
        proxy: (T, P); NaN where it failed; None for none.
        steps: (T,); by default 10 apart.
        kl: sqrt(KL) at each step, (T,); NaN for a step without a row.
        names: scores in the Average; by default all.
        lower_is_better: scores that enter as base / score.
        by_prompt: whether to write `gold/step_*.npz`.
    """
    names = list(names or scores)
    count, prompts = next(iter(scores.values())).shape
    steps = 10 * np.arange(count) if steps is None else steps
    table = {name: values.mean(axis=1) for name, values in scores.items()}
    table["average"] = average(scores, names, lower_is_better)
    if proxy is not None:
        table["proxy"] = np.nanmean(proxy, axis=1)
    (folder / "gold").mkdir(parents=True)
    with (folder / "gold.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *table])
        writer.writerows([int(step), *(float(v[t]) for v in table.values())] for t, step in enumerate(steps))
    definition = {"average": names, "lower_is_better": list(lower_is_better), "base": None}
    (folder / "gold.json").write_text(json.dumps(definition))
    for t, step in enumerate(steps) if by_prompt else ():
        arrays = {name: values[t] for name, values in scores.items()}
        if proxy is not None:
            arrays["proxy"] = proxy[t]
        texts = np.array([f"prompt {i}" for i in range(prompts)])
        np.savez_compressed(folder / "gold" / f"step_{int(step):08d}.npz", prompt=texts, **arrays)
    if kl is not None:
        rows = [f"{int(s)},{k**2!r},{k!r}" for s, k in zip(steps, map(float, kl), strict=True) if np.isfinite(k)]
        (folder / "kl.csv").write_text("\n".join(["step,from_base,sqrt_from_base", *rows]) + "\n")
    return folder


def noisy_run(folder, seed, fall, *, evaluations=9, prompts=30, noise=0.02, seed_noise=0.01, speed=1.0, **options):
    """A run whose gold at proxy p is 1 + 0.4 (p - 0.5) - fall (p - 0.5)^2 / 0.25, apart from noise.

    The proxy rises from 0.5 to 0.95. The prompts' difficulty is that of every run; noise of single prompts and of the
    run as a whole is its own.
    """
    rng, hard = np.random.default_rng(seed), np.random.default_rng(99)
    level = 0.5 + 0.45 * (1 - np.exp(-speed * np.arange(evaluations) / 2)) / (
        1 - np.exp(-speed * (evaluations - 1) / 2)
    )
    difficulty = hard.normal(0, 0.1, prompts)
    difficulty -= difficulty.mean()
    proxy = level[:, None] + difficulty + rng.normal(0, noise, (evaluations, prompts))
    gain = 0.4 * (level - 0.5) - fall * (level - 0.5) ** 2 / 0.25
    drift = rng.normal(0, seed_noise) * np.linspace(0, 1, evaluations)
    first = hard.uniform(0.5, 1.5, prompts)
    gold = first * (1 + gain + drift)[:, None] + rng.normal(0, noise, (evaluations, prompts))
    return write_scores(folder, {"beauty": gold, "variety": gold[::-1]}, proxy, names=["beauty"], **options)

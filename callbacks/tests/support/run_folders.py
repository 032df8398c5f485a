"""Run folders as the callbacks and Lightning's CSVLogger write them, small and with known numbers."""

import csv
import json

import numpy as np
import yaml

STEPS = 3


def write_csv(path, rows):
    header = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_metrics(folder, steps=range(4), slope=1.0):
    rows = [{"epoch": t, "step": t, "reward/x_mean": slope * t, "ratio/log_ratio/mean/t00": 9.0} for t in steps]
    return write_csv(folder / "metrics.csv", rows)


def write_gold(folder, average=(1.0, 1.2, 0.8), proxy=(0.5, 0.6, 0.75), noise=0.05, first=0):
    rows = [
        {"step": first + 10 * i, "beauty": 2 * a, "average": a, "average_low": a - noise, "average_high": a + noise}
        | {"proxy": p}
        for i, (a, p) in enumerate(zip(average, proxy, strict=True))
    ]
    return write_csv(folder / "gold.csv", rows)


def write_round(folder, name, index, **arrays):
    path = folder / name / f"round_{index:05d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def write_ratio(folder, index, shift=-0.5, n=40, seed=0):
    """Each step's samples have mean/std `shift` exactly; those below -1e-3 and above 1e-3 are clipped."""
    rng = np.random.default_rng([seed, index])
    noise = rng.normal(size=(STEPS, n))
    noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, keepdims=True)
    ratio = ((noise + shift) * np.array([[1e-4], [3e-4], [1e-3]])).ravel()
    step = np.repeat(np.arange(STEPS), n)
    write_round(folder, "ratio", index, step=step, log_ratio=ratio, advantage=ratio, clipped=np.abs(ratio) > 1e-3)
    return ratio.reshape(STEPS, n)


def write_gradient(folder, index, norms=(1.0, 2.0, 8.0)):
    step = np.repeat(np.arange(STEPS), 2)
    velocity = np.repeat(norms, 2) * np.tile([0.5, 1.5], STEPS)
    write_round(folder, "gradient", index, step=step, velocity=velocity, norm_before=np.ones(2), norm_after=np.ones(2))


def write_config(folder, objective="FlowGRPO", clip_range=1e-3, seed=1, **model):
    objective = {"class_path": f"project.objective.{objective}", "init_args": {"clip_range": clip_range}}
    gold = {"class_path": "guardlit_callbacks.GoldScore", "init_args": {"lower_is_better": ["beauty"]}}
    config = {"seed_everything": seed, "trainer": {"max_epochs": 3, "callbacks": [gold]}}
    config["model"] = {"objective": objective, **model}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("# lightning\n" + yaml.safe_dump(config))


def write_strip(folder, shade=0):
    """A film strip; returns its bytes."""
    from PIL import Image

    path = folder / "samples" / "film_strip.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 30), (shade, shade, shade)).save(path)
    return path.read_bytes()


def write_run(folder, objective="FlowGRPO", seed=1, shift=-0.5, **gold):
    """A full run of three rounds."""
    write_config(folder, objective, seed=seed)
    write_metrics(folder, slope=float(seed))
    write_gold(folder, **gold)
    for index in range(3):
        write_ratio(folder, index, shift, seed=seed)
        write_gradient(folder, index)
    facts = {"command": ["train", "--fast"], "versions": {"torch": "2.14.1"}, "resumed_from": None}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder

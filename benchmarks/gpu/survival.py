"""Complete tiny runs on the device: on-policy ratios, kill and resume, LoRA export, the digits' curve."""

from __future__ import annotations

import csv
import json
import statistics
import time
from pathlib import Path

import torch

from benchmarks.gpu.processes import fork
from benchmarks.gpu.runs import ROOT, accelerator, command, done, tiny_run, use_the_tests_helpers
from benchmarks.gpu.stage import Bench, NotMeasuredError, Stage

EVERY_UPDATE = {
    "filename": "update_{step}",
    "every_n_train_steps": 1,
    "save_top_k": -1,
    "auto_insert_metric_name": False,
}
CHECKPOINTS = [{"class_path": "ModelCheckpoint", "init_args": EVERY_UPDATE}]
LAST = "update_12.ckpt"
CURVE = Path(__file__).with_name("digits_cpu.json")
"""Mean reward by round of CPU runs of configs/tiny_digits.yaml, by seed."""


def resume(bench: Bench) -> None:
    """SIGKILL after the fifth update, resume, compare with an uninterrupted run; with and without determinism."""
    use_the_tests_helpers()
    from tiny_folders import make_sd3

    model = make_sd3(bench.folder / "model")
    for kind in ("deterministic", "default")[: bench.size(2, 1)]:
        bench.trying(f"killed and resumed, {kind}: tensors that differ", lambda kind=kind: _resume(bench, model, kind))


def _resume(bench: Bench, model: Path, kind: str) -> None:
    from runs import differing, newest

    changes = {"trainer__callbacks": CHECKPOINTS, "data__val": None}
    if kind == "deterministic":
        changes["trainer__deterministic"] = True

    def path(name: str) -> Path:
        return tiny_run(bench, f"{kind}_{name}", model, **changes)

    complete = path("complete")
    done(bench, f"{kind} complete run", lambda: command(["fit", "--config", complete]))
    expected = newest(complete.parent, LAST)
    if kind == "default" and not bench.rehearse:
        twin = path("twin")
        done(bench, f"{kind} twin", lambda: command(["fit", "--config", twin]))
        found = differing(expected, newest(twin.parent, LAST))
        bench.row("two uninterrupted runs, default: tensors that differ", len(found), "", _first(found))
    cut = path("cut")
    child = fork(lambda: command(["fit", "--config", cut]), bench.folder / f"{kind} cut.log")
    until = time.monotonic() + min(60, bench.left)
    while not list(cut.parent.rglob("update_[5-9]*.ckpt")) and child.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    child.kill()
    if child.code != -9:
        raise NotMeasuredError(f"the run ended with {child.code} before it could be killed")
    done(bench, f"{kind} resumed run", lambda: command(["fit", "--config", cut, "--ckpt_path", "last"]))
    found = differing(expected, newest(cut.parent, LAST))
    bench.row(f"killed and resumed, {kind}: tensors that differ", len(found), "", _first(found))


def _first(names: list[str]) -> str:
    return f"first {names[0]}" if names else "bit for bit the same"


def export(bench: Bench) -> None:
    """A tiny run in half precision: its first update is on-policy; diffusers loads its LoRA and samples an image."""
    use_the_tests_helpers()
    from runs import newest
    from tiny_folders import make_sd3

    model = make_sd3(bench.folder / "model")
    precision = "16-mixed" if bench.kind == "cuda" else "bf16-mixed"
    changes = {"trainer__max_epochs": 1, "trainer__precision": precision, "model__old_velocity": "recomputed"}
    path = tiny_run(bench, "run", model, **changes, data__val=None)
    done(bench, "run", lambda: command(["fit", "--config", path]))
    rows = [row for file in path.parent.rglob("metrics.csv") for row in csv.DictReader(file.open())]
    stds = [float(row["train/ratio_std"]) for row in rows if row.get("train/ratio_std")]
    name = f"ratio's deviation from 1 in the first update, {precision}, recomputed"
    bench.row(name.replace("bf16", "16"), stds[0], "", f"standard deviation; in the last update {stds[-1]:.2g}")
    out = bench.folder / "export"
    arguments = ["export", "--config", path, "--ckpt_path", newest(path.parent), "--out", out]
    done(bench, "export", lambda: command(arguments))
    saved = torch.load(newest(path.parent), weights_only=True, map_location="cpu")["state_dict"]
    differing = _loaded(bench, model, out / "raw", saved)
    bench.row("exported LoRA in diffusers: tensors that differ", differing, "", f"of {len(saved)}; it sampled an image")


def _loaded(bench: Bench, model: Path, folder: Path, saved: dict[str, torch.Tensor]) -> int:
    """Count tensors that differ between diffusers and the checkpoint; raises unless its pipeline samples with them."""
    import diffusers

    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(model, local_files_only=True).to(bench.kind)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(folder)
    sizes = {"height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 16}
    image = pipe(prompt=["a cat"], output_type="pt", **sizes).images
    if not bool(image.isfinite().all()):
        raise NotMeasuredError("the pipeline's image is not finite")
    loaded = {k.replace(".default_0.", ".default."): v.cpu() for k, v in pipe.transformer.state_dict().items()}
    named = {k.removeprefix("policy.transformer."): v for k, v in saved.items()}
    scale = {True: 2.0, False: 1.0}  # alpha / rank of the tests' runs, which export multiplies into B
    return sum(not torch.equal(loaded[k], v * scale["lora_B" in k]) for k, v in named.items())


def digits(bench: Bench) -> None:
    """The bundled digits, trained on the device; the reward's curve against those of CPU runs with other seeds."""
    curves = json.loads(CURVE.read_text())
    rounds = bench.size(12, 1)
    arguments = ["fit", f"--config={ROOT / 'configs/tiny_digits.yaml'}", f"--trainer.max_epochs={rounds}"]
    arguments += [f"--trainer.accelerator={accelerator(bench)}", "--data.val=null", "--trainer.callbacks=null"]
    arguments += [f"--trainer.default_root_dir={bench.folder / 'digits'}"]
    done(bench, "digits", lambda: command(arguments))
    rows = [row for file in bench.folder.rglob("metrics.csv") for row in csv.DictReader(file.open())]
    column = "average_reward/digitprobability"
    ours = [float(row[column]) for row in rows if row.get(column)]
    columns = list(zip(*curves.values(), strict=False))[: len(ours)]
    spread = max(max(c) - min(c) for c in columns)
    apart = max(abs(value - statistics.fmean(c)) for value, c in zip(ours, columns, strict=False))
    note = (
        f"the CPU's {len(curves)} seeds are up to {spread:.3f} apart; {len(ours)} rounds; ours ends at {ours[-1]:.3f}"
    )
    bench.row("digits: reward against the CPU's mean, furthest round", apart, "probability", note)


STAGES = (
    Stage(
        "resume",
        "SIGKILL and resume",
        resume,
        120,
        (
            "killed and resumed, deterministic: tensors that differ",
            "killed and resumed, default: tensors that differ",
            "two uninterrupted runs, default: tensors that differ",
        ),
        alone=False,
    ),
    Stage(
        "export",
        "on-policy ratio, export, diffusers",
        export,
        60,
        (
            "ratio's deviation from 1 in the first update, 16-mixed, recomputed",
            "exported LoRA in diffusers: tensors that differ",
        ),
        alone=False,
    ),
    Stage(
        "digits",
        "the digits' curve against the CPU's",
        digits,
        100,
        ("digits: reward against the CPU's mean, furthest round",),
        alone=False,
    ),
)

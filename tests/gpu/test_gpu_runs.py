"""Complete runs on a GPU. `--rehearse-gpu` runs the bodies on a CPU."""

from __future__ import annotations

import csv
import gc
import math
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from reference.seeded import pictures
from runs import EVERY_UPDATE, config, differing, guardlit, newest, start
from runs import _tensors as tensors
from scorer_files import request as asked

from guardlit.types import RewardRequest

pytestmark = pytest.mark.gpu
EMA = {"class_path": "guardlit_callbacks.TrainableEMA"}
WATCHING = [
    EMA,
    {"class_path": "guardlit_callbacks.SampleGrid", "init_args": {"max_images": 2}},
    {
        "class_path": "guardlit_callbacks.RatioDistribution",
        "init_args": {"raw": "raw_log_ratio", "normalized": "norm_log_ratio", "sample_weight": "sample_weight"},
    },
    {
        "class_path": "guardlit_callbacks.GradientNorm",
        "init_args": {"sample_weight": "sample_weight", "parameters_every": 1},
    },
    {
        "class_path": "guardlit_callbacks.GoldScore",
        "init_args": {"scorers": ["brightness.Brightness"]},
    },
    {"class_path": "guardlit_callbacks.DriftSentinels"},
    {"class_path": "guardlit_callbacks.KLFromBase"},
    {"class_path": "guardlit_callbacks.PhaseTimer"},
]
LAST = "update_4.ckpt"


@pytest.fixture
def run(sd3_folder: Path, tmp_path: Path, device: torch.device) -> Callable[..., Path]:
    """Writes the YAML of one round on the device, in a new folder."""

    def write(name: str = "run", **changes: object) -> Path:
        (tmp_path / name).mkdir()
        accelerator = "gpu" if device.type == "cuda" else "cpu"
        settings = {"trainer__accelerator": accelerator, "trainer__max_epochs": 1, "data__val": None}
        return config(tmp_path / name, sd3_folder, **settings | changes)

    return write


def logged(path: Path, column: str) -> list[float]:
    rows = [row for file in sorted(path.parent.rglob("metrics.csv")) for row in csv.DictReader(file.open())]
    return [float(row[column]) for row in rows if row.get(column)]


class Seen(pl.Callback):
    """Records facts of a run for a test."""

    where: set[str] = set()  # noqa: RUF012 - one run at a time
    scales: list[float] = []  # noqa: RUF012
    poison: int | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
        tensors = [*vars(batch).values(), *batch.conditioning.values(), *pl_module.parameters()]
        Seen.where |= {t.device.type for t in tensors if isinstance(t, torch.Tensor)}

    def on_after_backward(self, trainer: pl.Trainer, pl_module) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        Seen.scales.append(scaler.get_scale() if scaler is not None else math.nan)
        if Seen.poison is not None and trainer.global_step == Seen.poison:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(math.inf)


SEEN = {"class_path": f"{__name__}.Seen"}


@pytest.fixture(autouse=True)
def fresh():
    Seen.where, Seen.scales, Seen.poison = set(), [], None


def test_a_run_with_every_callback_stays_on_the_device(run: Callable[..., Path], device: torch.device, tmp_path: Path):
    path = run(data__val=str(tmp_path / "run/prompts.txt"), trainer__callbacks=[*WATCHING, SEEN])
    assert guardlit("fit", "--config", path) == 0
    assert Seen.where == {device.type}
    assert logged(path, "train/ratio_std")[0] == 0  # float32 and equal batches: exactly on-policy
    assert logged(path, "train/ratio_std")[-1] > 0
    assert all(math.isfinite(v) for v in logged(path, "train/loss"))
    assert list(path.parent.rglob("*.png"))


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_half_precision_runs_are_on_policy_first(run: Callable[..., Path], precision: str):
    """Old velocities are recomputed at the micro-batch's shape: kernels are the same with and without a graph."""
    path = run(trainer__precision=precision, model__old_velocity="recomputed", trainer__callbacks=WATCHING)
    assert guardlit("fit", "--config", path) == 0
    stds = logged(path, "train/ratio_std")
    assert stds[0] < 1e-6 < stds[-1]
    assert all(math.isfinite(v) for v in logged(path, "train/grad_norm"))


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_resumed_run_equals_the_uninterrupted_one(run: Callable[..., Path], precision: str):
    changes = {"trainer__deterministic": True, "trainer__precision": precision}
    path = run(trainer__callbacks=[EMA, EVERY_UPDATE], **changes)
    assert guardlit("fit", "--config", path) == 0
    expected, middle = newest(path.parent, LAST), newest(path.parent, "update_2.ckpt")
    again = path.parent / "again"
    assert guardlit("fit", "--config", path, "--ckpt_path", middle, "--trainer.default_root_dir", again) == 0
    assert differing(expected, newest(again, LAST)) == []
    assert differing(middle, expected)


def test_a_signal_leaves_a_checkpoint_that_resumes(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    from guardlit.training.recovery.signals import SignalGuard

    path = run(trainer__deterministic=True, trainer__callbacks=[EMA, EVERY_UPDATE])
    assert guardlit("fit", "--config", path) == 0
    expected, runs, calls = newest(path.parent, LAST), path.parent / "cut", []
    original = SignalGuard.on_train_batch_end

    def counted(self: SignalGuard, *args: object) -> None:
        calls.append(args)
        if len(calls) == 6:  # in the middle of an accumulation
            signal.raise_signal(signal.SIGTERM)
        original(self, *args)

    monkeypatch.setattr(SignalGuard, "on_train_batch_end", counted)
    elsewhere = ("--trainer.default_root_dir", runs)
    assert guardlit("fit", "--config", path, *elsewhere) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert guardlit("fit", "--config", path, "--ckpt_path", newest(runs, "interrupted.ckpt"), *elsewhere) == 0
    assert differing(expected, newest(runs, LAST)) == []


def test_a_checkpoint_of_the_device_resumes_on_the_cpu(run: Callable[..., Path]):
    path = run(trainer__callbacks=[EMA, EVERY_UPDATE])
    assert guardlit("fit", "--config", path) == 0
    middle, runs = newest(path.parent, "update_2.ckpt"), path.parent / "cpu"
    elsewhere = ("--trainer.accelerator", "cpu", "--trainer.default_root_dir", runs)
    assert guardlit("fit", "--config", path, "--ckpt_path", middle, *elsewhere) == 0
    ours, theirs = (torch.load(newest(p, LAST), weights_only=True, map_location="cpu") for p in (path.parent, runs))
    assert ours["global_step"] == theirs["global_step"] == 4
    for key, value in ours["state_dict"].items():
        torch.testing.assert_close(theirs["state_dict"][key], value, rtol=1e-2, atol=2e-3)  # Adam's steps are of 1e-3


@pytest.mark.parametrize("kind", ["exact", "velocity"])
def test_a_penalty_on_the_distance_to_the_base(run: Callable[..., Path], kind: str):
    path = run(model__kl={"weight": 0.1, "kind": kind}, trainer__callbacks=[])
    assert guardlit("fit", "--config", path) == 0
    found = logged(path, "train/kl")
    assert found[0] == pytest.approx(0, abs=1e-9)  # the adapter starts as the identity
    assert found[-1] > 0


def test_full_fine_tuning_with_reference_and_old_policy(run: Callable[..., Path], device: torch.device):
    full = {"model__policy__init_args__lora": None, "model__policy__init_args__reference": True}
    changes = {**full, "model__kl": {"weight": 0.1}, "model__old_velocity": "recomputed"}
    path = run(**changes, trainer__callbacks=[EMA, SEEN])
    assert guardlit("fit", "--config", path) == 0
    assert Seen.where == {device.type}
    assert logged(path, "train/ratio_std")[0] < 1e-6
    assert logged(path, "train/kl")[-1] > 0


def test_an_average_of_the_weights_is_the_recursion(run: Callable[..., Path]):
    ema = {"class_path": "guardlit_callbacks.TrainableEMA", "init_args": {"decay": 0.5}}
    path = run(trainer__callbacks=[ema, EVERY_UPDATE])
    assert guardlit("fit", "--config", path) == 0
    checkpoints = [newest(path.parent, f"update_{k}.ckpt") for k in (1, 2, 3, 4)]
    states = [torch.load(p, weights_only=True, map_location="cpu") for p in checkpoints]
    averages = [next(v for k, v in s["callbacks"].items() if "TrainableEMA" in k) for s in states]
    for before, after, state in zip(averages, averages[1:], states[1:], strict=False):
        old, new = tensors(before), tensors(after)
        moved = 0.0
        for name, value in state["state_dict"].items():
            (key,) = [k for k in new if k.endswith(name)]
            torch.testing.assert_close(new[key], torch.lerp(old[key], value, 0.5), rtol=1e-5, atol=1e-7)
            moved = max(moved, float((new[key] - old[key]).abs().max()))
        assert moved > 0


def test_validate_sample_export_and_evaluate(run: Callable[..., Path], sd3_folder: Path, tmp_path: Path):
    prompts = str(tmp_path / "run/prompts.txt")
    path = run(data__val=prompts, trainer__callbacks=[EMA])
    assert guardlit("fit", "--config", path) == 0
    checkpoint = ("--config", path, "--ckpt_path", newest(path.parent))
    assert guardlit("validate", *checkpoint) == 0
    assert guardlit("sample", *checkpoint, "--out", tmp_path / "images", "--n", 1) == 0
    assert len(list((tmp_path / "images").rglob("grid.png"))) == 1
    assert guardlit("export", *checkpoint, "--out", tmp_path / "export") == 0
    assert list((tmp_path / "export/ema").glob("*.safetensors"))
    gold = ("--gold.scorers", '{"brightness": {"class_path": "brightness.Brightness"}}')
    out = ("--out", tmp_path / "evaluation", "--images_per_prompt", 1)
    assert guardlit("evaluate", "--config", path, *gold, "--ckpt", newest(path.parent), *out) == 0
    assert (tmp_path / "evaluation/table.md").exists()


def test_an_exported_lora_samples_in_diffusers(run: Callable[..., Path], sd3_folder: Path, device: torch.device):
    import diffusers

    path = run(trainer__callbacks=[])
    assert guardlit("fit", "--config", path) == 0
    last, out = newest(path.parent), path.parent / "export"
    assert guardlit("export", "--config", path, "--ckpt_path", last, "--out", out) == 0
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(sd3_folder, local_files_only=True).to(device)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(out / "raw")
    saved = torch.load(last, weights_only=True, map_location="cpu")["state_dict"]
    loaded = {k.replace(".default_0.", ".default."): v for k, v in pipe.transformer.state_dict().items()}
    for key, value in saved.items():
        scale = 2 if "lora_B" in key else 1  # alpha / rank is in the exported B
        assert torch.equal(loaded[key.removeprefix("policy.transformer.")].cpu(), value * scale)
    image = pipe("a cat", height=32, width=32, num_inference_steps=2, max_sequence_length=16, output_type="pt").images
    assert bool(image.isfinite().all())


@pytest.mark.parametrize("name", ["PickScore", "CLIPScore"])
def test_scorers_give_the_cpus_scores(name: str, clip_folder: Path, device: torch.device):
    from guardlit import rewards

    scorers = [getattr(rewards, name)(str(clip_folder)) for _ in range(2)]
    requests = [asked([image], [text]) for image, text in zip(pictures()[:2], ["a cat", "two dogs"], strict=True)]
    values = []
    for scorer, where in zip(scorers, (torch.device("cpu"), device), strict=True):
        scorer.setup(where)
        values.append(torch.cat([scorer.score(r).values for r in requests]))
    moved = [RewardRequest(r.images.to(device), r.prompts, r.metadata) for r in requests]
    values.append(torch.cat([scorers[1].score(r).values for r in moved]))  # images on the device
    for found in values[1:]:
        torch.testing.assert_close(found, values[0], rtol=1e-3, atol=1e-4)
    assert values[0].std() > 0


def test_the_loss_scale_begins_at_least_where_pytorch_begins(run: Callable[..., Path], cuda_only: None):
    path = run(trainer__precision="16-mixed", trainer__callbacks=[SEEN])
    assert guardlit("fit", "--config", path) == 0
    assert Seen.scales[0] >= 2.0**16
    assert logged(path, "train/skipped_updates")[-1] == 0


def test_an_overflow_skips_one_update_and_lowers_the_scale(run: Callable[..., Path], cuda_only: None):
    Seen.poison = 1
    path = run(trainer__precision="16-mixed", trainer__callbacks=[SEEN, EVERY_UPDATE])
    assert guardlit("fit", "--config", path) == 0
    assert Seen.scales[-1] == Seen.scales[0] / 2
    one, two, three = (newest(path.parent, f"update_{k}.ckpt") for k in (1, 2, 3))
    assert differing(one, two, keys=("state_dict",)) == []
    assert differing(two, three, keys=("state_dict",))


def test_memory_is_released(run: Callable[..., Path], cuda_only: None):
    path = run(trainer__callbacks=WATCHING)
    assert guardlit("fit", "--config", path) == 0  # cuBLAS' workspaces stay
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    assert guardlit("fit", "--config", path) == 0
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() - before < 5e6


def test_the_peak_is_the_plans(tmp_path: Path, cuda_only: None):
    """The network is large enough to dominate the kernels' workspaces in the peak."""
    import benchmarks.memory as memory
    from guardlit.commands.plan import planned
    from guardlit.planning.estimate import estimate

    path = memory.configure(tmp_path, {**memory.MID, "micro_batch": 16})
    arguments = ["--config", str(path), "--trainer.accelerator", "gpu"]
    phases = estimate(planned(arguments)).memory.phases
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert guardlit("fit", *arguments) == 0
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(max(phases.values()), rel=0.15)


def test_two_ranks_on_one_device_make_the_updates_of_one(run: Callable[..., Path], tmp_path: Path):
    """With gloo: NCCL refuses two ranks on one device."""
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 10.0}}  # Adam amplifies rounding where a gradient is 0
    changes = {"data__micro_batch": 2, "data__rollout_batch": 2, "model__optimizer": sgd, "trainer__callbacks": []}
    one = run("one", **changes)
    assert guardlit("fit", "--config", one) == 0
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy"}
    strategy["init_args"] = {"process_group_backend": "gloo"}
    two = run("two", **changes, trainer__num_nodes=2, trainer__strategy=strategy)  # two "nodes" with the same device
    port = free_port()
    processes = [start("fit", "--config", two, **as_node(rank, port)) for rank in range(2)]
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    states = [torch.load(newest(p.parent), weights_only=True, map_location="cpu")["state_dict"] for p in (one, two)]
    moved = max(float(v.abs().max()) for k, v in states[0].items() if "lora_B" in k)
    assert moved > 1e-3
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-3 * moved)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def as_node(rank: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives a node of one process."""
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    place = {"RANK": str(rank), "GROUP_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return world | place | {"TORCHELASTIC_RUN_ID": "two", "GLOO_SOCKET_IFNAME": "lo"}

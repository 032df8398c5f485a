"""The same run on 1, 2 and 4 processes, whole or sharded (DDP, FSDP2), interrupted or not; on gloo, forked."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from forked import forked
from runs import PROMPTS, config, guardlit, newest
from torch import Tensor

from guardlit.checkpoints.io import SafeCheckpointIO

pytestmark = pytest.mark.timeout(1500)

DDP, FSDP = ("--trainer.strategy", "ddp"), ("--trainer.strategy", "fsdp")
IN_FOLDERS = {
    "class_path": "guardlit.training.sharded_strategy.ShardedStrategy",
    "init_args": {"save_distributed_checkpoint": True},
}
GATHERED = {
    "class_path": "guardlit.training.sharded_strategy.ShardedStrategy",
    "init_args": {"reshard_after_forward": False},
}
EMA, STOP = {"class_path": "guardlit_callbacks.TrainableEMA"}, {"class_path": "background.Stop"}
EXPORT = {"class_path": "guardlit.training.export.ExportAtEnd"}
GRID = {"class_path": "guardlit_callbacks.SampleGrid"}
KL = {"class_path": "guardlit_callbacks.KLFromBase"}

# One image and one transition at a time, or kernels would round otherwise for another batch. Five prompts, two a round;
# one reward of eight fails; two inner epochs; five validation images.
COMMON = {
    "model__reward": {"class_path": "brightness.FailsAt", "init_args": {"position": 3, "images": 8}},
    "model__max_failed_fraction": 0.2,
    "model__rollout": {"num_inference_steps": 3, "guidance_scale": 1.0},
    "data__micro_batch": 1,
    "data__rollout_batch": 1,
    "data__val_limit": None,
    "trainer__max_epochs": 2,
    "trainer__check_val_every_n_epoch": 2,
    "trainer__callbacks": [EMA, EXPORT, GRID, KL],
}
FULL = {
    "model__policy__init_args__lora": None,
    "model__policy__init_args__reference": True,
    "model__kl": {"weight": 0.1},
    "model__old_velocity": "recomputed",
}
MISTAKES = {
    "16-mixed": (
        {"trainer__strategy": "fsdp", "trainer__precision": "16-mixed"},
        "trainer.precision=16-mixed: its loss scaler does not work with trainer.strategy=fsdp; take bf16-mixed",
    ),
    "halves without autocast": (
        {"trainer__strategy": {**IN_FOLDERS, "init_args": {"param_dtype": "bf16"}}},
        "trainer.strategy: param_dtype=bf16 needs trainer.precision=bf16-mixed, whose autocast gives the network",
    ),
    "another strategy": (
        {"trainer__strategy": {"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}},
        "trainer.strategy: ModelParallelStrategy is not prepared for policies; take fsdp",
    ),
    "no strategy": ({"trainer__strategy": "nonsense"}, "trainer.strategy=nonsense is not supported: take one of auto"),
}
FLUX = {"model__policy__class_path": "FluxPolicy", "trainer__max_epochs": 1}
HALF = {
    "trainer__precision": "bf16-mixed",
    "trainer__max_epochs": 1,
    "model__policy__init_args__weights_dtype": "bf16",
}
# by SIGTERM within the second update of the first round, on every rank
STOPS = [{"trainer__callbacks": [EMA, {**STOP, "init_args": {"batch": batch}}]} for batch in (9, 5)]
RESUMED = {"trainer__callbacks": [EMA]}


@dataclass(frozen=True)
class Run:
    """How one run differs from the others, and the stopped run that it resumes."""

    processes: int = 1
    args: tuple[str, ...] = ()
    changes: dict[str, object] = field(default_factory=dict)
    resumes: str = ""
    model: str = "sd3"


RUNS = {
    "one": Run(),
    "ddp 2": Run(2, DDP),
    "fsdp 2": Run(2, FSDP),
    "ddp 4": Run(4, DDP),
    "fsdp 4": Run(4, changes={"trainer__strategy": GATHERED}),
    "one full": Run(changes=FULL),
    "ddp 2 full": Run(2, DDP, FULL),
    "fsdp 2 full": Run(
        2,
        changes={"trainer__strategy": IN_FOLDERS, "model__policy__init_args__gradient_checkpointing": True, **FULL},
    ),
    "one flux": Run(changes=FLUX, model="flux"),
    "fsdp 2 flux": Run(2, FSDP, FLUX, model="flux"),
    "half": Run(2, FSDP, HALF),
    "ddp half": Run(2, DDP, HALF),
    **{mistake: Run(2, changes=changes) for mistake, (changes, _) in MISTAKES.items()},
    "stopped one": Run(changes=STOPS[0]),
    "stopped ddp 2": Run(2, DDP, STOPS[1]),
    "stopped fsdp 2 full": Run(2, changes={"trainer__strategy": IN_FOLDERS, **STOPS[1], **FULL}),
    "one -> fsdp 2": Run(2, FSDP, RESUMED, "stopped one"),
    "ddp 2 -> ddp 2": Run(2, DDP, RESUMED, "stopped ddp 2"),
    "ddp 2 -> one": Run(1, (), RESUMED, "stopped ddp 2"),
    "fsdp 2 -> fsdp 2 full": Run(2, (), {"trainer__strategy": IN_FOLDERS, **RESUMED, **FULL}, "stopped fsdp 2 full"),
    "fsdp 2 -> fsdp 4 full": Run(4, FSDP, {**RESUMED, **FULL}, "stopped fsdp 2 full"),
    "fsdp 2 -> ddp 2 full": Run(2, DDP, {**RESUMED, **FULL}, "stopped fsdp 2 full"),
}


def slow(*names: str) -> list[object]:
    """Parameters for the run of `pytest -m slow` alone."""
    return [pytest.param(*name.split(" = "), marks=pytest.mark.slow) for name in names]


class Runs:
    """Runs of one configuration and its variants, each in a separate folder; each is made when a test first asks."""

    def __init__(self, base: Path, tiny: Callable[[str], Path]) -> None:
        self.base, self._tiny = base, tiny
        self._codes: dict[str, list[int]] = {}

    def made(self, name: str) -> Path:
        """The folder of a run of `RUNS`."""
        folder = self.base / name
        if name in self._codes:
            return folder
        run = RUNS[name]
        folder.mkdir()
        args = run.args
        if run.resumes:
            args = (*args, f"--ckpt_path={self.stopped_at(run.resumes)}")
        rows = [json.dumps({"prompt": prompt, "val": True}) for prompt in PROMPTS]
        (folder / "val.jsonl").write_text("\n".join(rows))
        settings = COMMON | {"data__val": str(folder / "val.jsonl")} | run.changes
        path = config(folder, self._tiny(run.model), **settings)
        several = ("--trainer.devices", run.processes) if run.processes > 1 else ()
        command = ("fit", "--config", path, *several, *args)
        self._codes[name] = forked(folder, *command, processes=run.processes).wait(300)
        return folder

    def ended(self, name: str) -> set[int]:
        """How the ranks of a run ended."""
        self.made(name)
        return set(self._codes[name])

    def checkpoint(self, name: str) -> Path:
        """The newest one of a run."""
        return newest(self.made(name))

    def stopped_at(self, name: str) -> Path:
        """The checkpoint of a run that was stopped."""
        return self.made(name) / "runs/version_0/checkpoints/interrupted.ckpt"

    def state(self, name: str) -> dict[str, Tensor]:
        """Weights and averages at the end of a run."""
        checkpoint = SafeCheckpointIO().load_checkpoint(self.checkpoint(name), map_location="cpu")
        averages = checkpoint["callbacks"]["TrainableEMA"]["averages"]
        return checkpoint["state_dict"] | {f"average of {k}": v for k, v in averages.items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of all numbers of two states, relative to the first."""
    assert one.keys() == other.keys()
    differences = [(other[k] - v).double().square().sum() for k, v in one.items()]
    return float((sum(differences) / sum(v.double().square().sum() for v in one.values())).sqrt())


@pytest.fixture(scope="module")
def runs(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs that the tests below look at."""
    return Runs(tmp_path_factory.mktemp("runs"), tiny)


@pytest.mark.parametrize(
    "name", ["ddp 2", "fsdp 2", "fsdp 2 full", *slow("ddp 4", "fsdp 4", "ddp 2 full", "fsdp 2 flux")]
)
def test_any_number_of_processes_makes_the_run_of_one(runs: Runs, name: str):
    alone = " ".join(["one", *name.split()[2:]])
    assert runs.ended(alone) == runs.ended(name) == {0}
    one, other = runs.state(alone), runs.state(name)
    assert distance(one, other) <= 1e-6
    trained = {k: v for k, v in one.items() if "lora_B" in k or name.endswith("full")}
    assert max(float(v.abs().max()) for v in trained.values()) > 1e-3


def test_all_processes_log_and_draw_what_one_does(runs: Runs):
    def rows(name: str) -> list[dict[str, str]]:
        with next(runs.made(name).rglob("metrics.csv")).open() as file:
            return list(csv.DictReader(file))

    for ours, theirs in zip(rows("one"), rows("fsdp 2"), strict=True):
        for key in ("reward/failed", "average_reward/fails_at", "val/reward", "train/grad_norm", "train/approx_kl"):
            if ours.get(key):
                assert float(theirs[key]) == pytest.approx(float(ours[key]), rel=1e-3, abs=1e-9), key
    assert {float(row["reward/failed"]) for row in rows("ddp 2") if row["reward/failed"]} == {1 / 8}
    grids = [sorted(p.name for p in runs.made(name).rglob("samples/**/*.png")) for name in ("one", "fsdp 2")]
    assert grids[0] == grids[1] != []


@pytest.mark.parametrize("name", ["ddp 2", "fsdp 2", "fsdp 2 full", *slow("ddp 2 full", "fsdp 2 flux", "fsdp 4")])
def test_all_processes_measure_the_kl_of_one(runs: Runs, name: str):
    """Five validation images, so that ranks have different numbers of batches, and the averages of the weights."""

    def rows(name: str) -> list[list[float]]:
        with next(runs.made(name).rglob("kl.csv")).open() as file:
            return [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]

    one, other = rows(" ".join(["one", *name.split()[2:]])), rows(name)
    assert one[0] == other[0] == [0, 0, 0]
    assert other == [[step, pytest.approx(kl, rel=1e-3), pytest.approx(root, rel=1e-3)] for step, kl, root in one]
    assert one[-1][1] > 1e-4  # the weights have moved


@pytest.mark.parametrize("name", ["stopped one", "stopped fsdp 2 full", *slow("stopped ddp 2")])
def test_a_signal_stops_all_processes_with_a_checkpoint(runs: Runs, name: str):
    assert runs.ended(name) == {143}
    assert runs.stopped_at(name).is_dir() == ("fsdp" in name)


@pytest.mark.parametrize(("name", "whole"), [("fsdp 2", "fsdp 2 full"), *slow("ddp 2 = ddp 2")])
def test_the_same_processes_go_on_within_an_update_bit_for_bit(runs: Runs, name: str, whole: str):
    resumed = f"{name} -> {name}" + (" full" if "full" in whole else "")
    assert runs.ended(resumed) == {0}
    ours, theirs = runs.state(whole), runs.state(resumed)
    assert [k for k in ours.keys() | theirs.keys() if not torch.equal(ours[k], theirs[k])] == []


@pytest.mark.parametrize(
    ("resumed", "whole"),
    [
        ("one -> fsdp 2", "one"),
        *slow("ddp 2 -> one = one", "fsdp 2 -> fsdp 4 full = one full", "fsdp 2 -> ddp 2 full = one full"),
    ],
)
def test_other_processes_go_on_within_an_update(runs: Runs, resumed: str, whole: str):
    assert runs.ended(resumed) == {0}
    assert distance(runs.state(whole), runs.state(resumed)) <= 1e-6


# exports ------------------------------------------------------------------------------------------------------------


def test_a_sharded_runs_export_is_what_plain_diffusers_draws(runs: Runs, sd3_folder: Path, tmp_path: Path, capsys):
    """A checkpoint folder of FSDP -> `guardlit export` -> the pipeline, compared with the trained policy."""
    import diffusers

    folder, checkpoint = runs.made("fsdp 2 full"), runs.checkpoint("fsdp 2 full")
    path = folder / "run.yaml"
    assert checkpoint.is_dir()
    assert guardlit("export", "--config", path, "--ckpt_path", checkpoint, "--out", tmp_path) == 0
    family = FAMILIES["sd3"]
    trained = family.load(sd3_folder, lora=None)
    state = SafeCheckpointIO().load_checkpoint(checkpoint, map_location="cpu")["state_dict"]
    trained.load_state_dict({k.removeprefix("policy."): v for k, v in state.items()}, strict=False)
    folders = (tmp_path / "raw", folder / "runs/version_0/export/raw")
    pictures = [
        family.draw(pipe, 1.0, generator=torch.Generator().manual_seed(5))
        for pipe in (
            family.pipeline(sd3_folder, transformer=trained.transformer),
            family.pipeline(sd3_folder),
            *(diffusers.StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True) for folder in folders),
        )
    ]
    ours, base, exported, at_end = pictures
    assert torch.equal(ours, exported)
    assert torch.equal(ours, at_end)
    assert not torch.equal(ours, base)


def test_the_lora_that_a_sharded_run_exports_is_its_checkpoints(runs: Runs, tmp_path: Path):
    from safetensors.torch import load_file

    name = "fsdp 2"
    folder, checkpoint = runs.made(name), runs.checkpoint(name)
    path = folder / "run.yaml"
    assert guardlit("export", "--config", path, "--ckpt_path", checkpoint, "--out", tmp_path) == 0
    for variant in ("raw", "ema"):
        files = [
            f / variant / "pytorch_lora_weights.safetensors" for f in (tmp_path, next(folder.glob("runs/*/export")))
        ]
        ours, theirs = map(load_file, files)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


# other models, other precisions, mistakes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_half_precision_gathers_halves_and_trains_in_full(runs: Runs):
    """Autocast rounds the same weights to the same halves, and timesteps stay as they are."""
    assert runs.ended("half") == runs.ended("ddp half") == {0}
    state = runs.state("half")
    assert distance(runs.state("ddp half"), state) <= 1e-4
    assert {v.dtype for v in state.values()} == {torch.float32}
    assert max(float(v.abs().max()) for k, v in state.items() if "lora_B" in k) > 0


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_sharding_cannot_do_is_one_line(runs: Runs, mistake: str):
    assert runs.ended(mistake) == {2}
    for rank in range(2):
        assert MISTAKES[mistake][1] in (runs.made(mistake) / f"process_{rank}.log").read_text().splitlines()[-1]


def test_the_comparison_can_fail(runs: Runs):
    assert distance(runs.state("one"), runs.state("stopped one")) > 1e-6

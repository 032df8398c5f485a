"""All callbacks under DDP and FSDP2, on two ranks: logs, files and state equal those of one process."""

import csv
import functools
import json
import sys
from importlib import import_module
from pathlib import Path

import guardlit_callbacks
import numpy as np
import pytest
import torch
import torch.distributed as dist
from full_run import all_callbacks, fit
from guardlit_callbacks import SyncDDP
from guardlit_callbacks.tools.lightning import Callback
from PIL import Image

CHECKPOINTS = import_module(Callback.__module__.rsplit(".", 1)[0])
STRATEGIES = import_module(CHECKPOINTS.__name__.replace("callbacks", "strategies"))
PACKAGE = str(Path(guardlit_callbacks.__file__).parent)
COLLECTIVES = [
    "all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "barrier", "broadcast",
    "broadcast_object_list", "gather", "gather_object", "reduce", "reduce_scatter_tensor", "scatter",
]  # fmt: skip
MIDDLE = 7  # an optimizer step in the middle of round 2


def fsdp2():
    return STRATEGIES.ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


KINDS = {"one": lambda: "auto", "ddp": lambda: "ddp", "sync_ddp": SyncDDP, "fsdp2": fsdp2}


def note_collectives(notes):
    """Records each collective that this package calls."""

    def noting(collective, *args, **kwargs):
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        if frame is not None:
            notes.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}: {collective.__name__}")
        return collective(*args, **kwargs)

    for name in COLLECTIVES:
        setattr(dist, name, functools.partial(noting, getattr(dist, name)))


def train(rank, make_trainer, recorder, monkeypatch, folder, kind, ckpt=None):
    """A run of all callbacks; writes what was logged, the last step and the collectives."""
    notes, recorder = [], type(recorder)()
    if kind != "one":
        note_collectives(notes)
    # plain DDP hides the gradient of a micro-batch, and is refused
    callbacks = all_callbacks(parameters_every=0 if kind == "ddp" else 1)
    save = CHECKPOINTS.ModelCheckpoint(folder / "ckpt", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = fit(
        make_trainer, folder, [*callbacks, save], monkeypatch, ckpt, strategy=KINDS[kind](), logger=recorder,
        devices=1 if kind == "one" else 2, enable_checkpointing=True,
    )  # fmt: skip
    trainer.save_checkpoint(folder / "last.ckpt")
    record = {"step": trainer.global_step, "collectives": notes, "logged": recorder.calls}
    (folder / f"record_{rank}.json").write_text(json.dumps(record, default=float))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {}


@pytest.fixture
def run(runs, make_trainer, recorder, monkeypatch, two_processes, tmp_path_factory):
    """Trains under a strategy, once for the full file."""

    def train_once(kind, source=None):
        if (kind, source) not in runs:
            folder = runs[kind, source] = tmp_path_factory.mktemp(kind)
            ckpt = run_folder(source) / f"ckpt/step={MIDDLE}.ckpt" if source else None
            arguments = (make_trainer, recorder, monkeypatch, folder, kind, ckpt)
            two_processes(train, *arguments) if kind != "one" else train(0, *arguments)
        return runs[kind, source]

    def run_folder(kind):
        return train_once(kind)

    return train_once


def record(folder, rank=0):
    return json.loads((folder / f"record_{rank}.json").read_text())


def logged(folder):
    """Every value that a callback logged, by key and step."""
    return {
        (key, step): value for step, metrics in record(folder)["logged"] for key, value in metrics.items() if "/" in key
    }


def files(folder, suffix):
    return {path.relative_to(folder): path for path in sorted((folder / "recorder").rglob(f"*{suffix}"))}


def comparable(values, kind):
    return {k: v for k, v in values.items() if kind != "ddp" or not k[0].startswith("gradient/parameters")}


@pytest.mark.parametrize("kind", ["ddp", "sync_ddp", "fsdp2"])
class TestTwoRanks:
    def test_log_what_one_does(self, run, kind):
        one, two = comparable(logged(run("one")), kind), logged(run(kind))
        assert one.keys() == two.keys()
        families = {"ratio/log_ratio", "gradient/velocity", "gold/average", "drift/diversity", "time/mfu"}
        families |= {
            "kl/from_base",
            "kl/sqrt_from_base",
            "over_optimization/count",
            "time/samples_per_second",
            "gradient/norm_before_clipping",
        }
        families |= {"gradient/parameters"} if kind != "ddp" else set()
        assert all(any(key.startswith(family) for key, _ in two) for family in families)
        for (key, step), value in one.items():
            expected = value / 2 if key == "time/mfu" else value  # the same work on twice the devices
            assert two[key, step] == pytest.approx(expected, rel=1e-5, abs=1e-9), key

    def test_write_what_one_does(self, run, kind):
        one, two = run("one"), run(kind)
        for suffix in (".npz", ".png", ".csv", ".json"):
            assert files(one, suffix).keys() == files(two, suffix).keys() != set()
        for name, path in files(one, ".npz").items():
            here, there = np.load(path), np.load(two / name)
            columns = [c for c in here.files if kind != "ddp" or not c.startswith("parameter")]
            assert set(columns) == set(there.files)
            for column in columns:
                if here[column].dtype.kind in "fc":
                    np.testing.assert_allclose(there[column], here[column], rtol=1e-6, atol=1e-12, err_msg=str(name))
                else:
                    assert np.array_equal(there[column], here[column]), name
        for name, path in files(one, ".png").items():
            if "samples" in str(name):
                assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(two / name))), name
        for name in ("gold.csv", "kl.csv"):
            ours, theirs = (list(csv.DictReader((f / "recorder/version_0" / name).open())) for f in (one, two))
            assert len(ours) > 1
            assert [{k: pytest.approx(float(v), rel=1e-6) for k, v in row.items()} for row in ours] == [
                {k: float(v) for k, v in row.items()} for row in theirs
            ]

    def test_stop_where_one_does(self, run, kind):
        one, two = record(run("one")), record(run(kind))
        assert two["step"] == record(run(kind), rank=1)["step"] == one["step"] == 15 < 24
        assert files(run(kind), "over_optimization.json")

    def test_average_what_one_does(self, run, kind):
        one, two = (torch.load(run(k) / "last.ckpt", weights_only=True) for k in ("one", kind))
        ema, weight = two["callbacks"]["TrainableEMA"], two["state_dict"]["table.weight"]
        assert ema["updates"] == 15
        torch.testing.assert_close(ema["averages"], one["callbacks"]["TrainableEMA"]["averages"], rtol=1e-6, atol=0)
        torch.testing.assert_close(weight, one["state_dict"]["table.weight"], rtol=1e-9, atol=0)
        assert not torch.allclose(weight.float(), ema["averages"]["table.weight"])

    def test_call_the_same_collectives_in_the_same_order(self, run, kind):
        ours, theirs = (record(run(kind), rank)["collectives"] for rank in (0, 1))
        assert ours == theirs
        assert any("gather_objects: all_gather_object" in note for note in ours)
        assert any("run_dir" in note for note in ours)

    @pytest.mark.parametrize("then", ["same", "one"])
    def test_resume_in_the_middle_of_a_round_as_if_uninterrupted(self, run, kind, then):
        full, resumed = run(kind), run(kind if then == "same" else "one", source=kind)
        again = files(resumed, ".npz")
        rounds = {name for name in again if "round_" in name.stem}
        assert {name.stem for name in rounds} == {"round_00003", "round_00004", "round_00005"}
        for name in rounds:
            here, there = np.load(full / name), np.load(resumed / name)
            assert set(here.files) <= set(there.files)
            for column in here.files:
                if name.stem == "round_00003" and then == "same":
                    assert np.array_equal(here[column], there[column]), (name, column)
                np.testing.assert_allclose(here[column], there[column], rtol=1e-6, atol=1e-12)
        assert record(resumed)["step"] == 15
        assert np.array_equal(*(np.asarray(Image.open(f / film)) for f in (full, resumed) for film in strips(full)))


def strips(folder):
    return [name for name in files(folder, ".png") if name.stem == "film_strip"]

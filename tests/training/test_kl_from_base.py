"""`KLFromBase` in a run: what it writes, what it leaves alone, and one line where there is no base."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from runs import config, differing, guardlit, newest

from guardlit.policies.parts.switching import SwitchingPolicy

KL, EMA = {"class_path": "guardlit_callbacks.KLFromBase"}, {"class_path": "guardlit_callbacks.TrainableEMA"}
RUN = {
    "model__evaluation": {"num_inference_steps": 5, "guidance_scale": 1.0},
    "trainer__max_epochs": 2,
    "trainer__check_val_every_n_epoch": 1,
    "trainer__callbacks": [KL],
}
FULL = {"model__policy__init_args__lora": None}
KEPT = {**FULL, "model__policy__init_args__reference": True}


def run(folder: Path, model: Path, *args: object, **changes: object) -> Path:
    """The folder of a run of two rounds with a validation after each."""
    folder.mkdir()
    assert guardlit("fit", "--config", config(folder, model, **RUN | changes), *args) == 0
    return folder / "runs/version_0"


def table(folder: Path) -> list[dict[str, float]]:
    with (folder / "kl.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


class Runs:
    """Runs with and without the callback; each is made when a test first asks."""

    def __init__(self, base: Path, model: Path) -> None:
        self.base, self._model = base, model
        self.switches: dict[str, int] = {}
        """How often each run switched to the base."""

    def made(self, name: str, **changes: object) -> Path:
        """The folder of a run."""
        if name not in self.switches:
            with counted("base") as count:
                run(self.base / name, self._model, **changes)
            self.switches[name] = len(count)
        return self.base / name / "runs/version_0"


@contextmanager
def counted(weights: str) -> Iterator[list[str]]:
    """Lists each time that a policy switches to a weight set."""
    found, using = [], SwitchingPolicy.using

    @contextmanager
    def counting(policy: SwitchingPolicy, other: str) -> Iterator[None]:
        found.extend([other] * (other == weights))
        with using(policy, other):
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SwitchingPolicy, "using", counting)
        yield found


@pytest.fixture(scope="module")
def runs(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs that several tests look at."""
    return Runs(tmp_path_factory.mktemp("runs"), sd3_folder)


@pytest.mark.parametrize(("name", "changes"), [("lora", {}), ("full", KEPT)])
def test_it_leaves_training_alone_and_costs_nothing_where_it_is_not(runs: Runs, name: str, changes: dict):
    plain = runs.made(f"{name} without", **changes, trainer__callbacks=[])
    measured = runs.made(name, **changes)
    assert differing(newest(plain), newest(measured), ("state_dict", "optimizer_states")) == []
    assert not (plain / "kl.csv").exists()
    assert runs.switches[f"{name} without"] == 0
    assert runs.switches[name] == 3 * 4  # validations of one batch each x steps


@pytest.mark.parametrize(("name", "changes"), [("lora", {}), ("full", KEPT)])
def test_it_logs_at_the_steps_of_the_reward(runs: Runs, name: str, changes: dict):
    folder = runs.made(name, **changes)
    rows = table(folder)
    assert [row["step"] for row in rows] == [0, 4, 8]
    assert rows[0] == {"step": 0, "from_base": 0, "sqrt_from_base": 0}
    assert 0 < rows[1]["from_base"] < rows[2]["from_base"]
    assert all(row["sqrt_from_base"] ** 2 == pytest.approx(row["from_base"]) for row in rows)
    with (folder / "metrics.csv").open(newline="") as file:
        metrics = list(csv.DictReader(file))
    logged = [(float(row["step"]), float(row["kl/from_base"])) for row in metrics if row["kl/from_base"]]
    assert logged == [(row["step"], pytest.approx(row["from_base"], rel=1e-6)) for row in rows]
    assert [step for step, _ in logged] == [float(row["step"]) for row in metrics if row["val/reward"]]


def test_a_resumed_run_writes_the_file_of_an_uninterrupted_one(runs: Runs, sd3_folder: Path, tmp_path: Path):
    first = run(tmp_path / "first", sd3_folder, trainer__max_epochs=1)
    resumed = run(tmp_path / "resumed", sd3_folder, "--ckpt_path", newest(first))
    assert len(table(first)) == 2
    assert (resumed / "kl.csv").read_bytes() == (runs.made("lora") / "kl.csv").read_bytes()


def test_averages_are_measured_where_they_validate(runs: Runs, sd3_folder: Path, tmp_path: Path):
    """An average that is the weights gives their KL; one that lags behind, a smaller one."""
    last = {
        decay: table(
            run(tmp_path / f"{decay}", sd3_folder, trainer__callbacks=[{**EMA, "init_args": {"decay": decay}}, KL])
        )[-1]["from_base"]
        for decay in (0.0, 0.9)
    }
    raw = table(runs.made("lora"))[-1]["from_base"]
    assert last[0.0] == pytest.approx(raw, rel=1e-6)
    assert 0 < last[0.9] < raw / 2


def test_a_checkpoint_is_validated_alone(runs: Runs, capsys: pytest.CaptureFixture[str]):
    folder = runs.made("lora")
    capsys.readouterr()
    assert guardlit("validate", "--config", runs.base / "lora/run.yaml", "--ckpt_path", newest(folder)) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if "kl/from_base" in line)
    assert float(shown.split()[-2]) == pytest.approx(table(folder)[-1]["from_base"], rel=1e-4)


def test_no_base_is_one_line_before_training(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = config(tmp_path, sd3_folder, **RUN | FULL)
    line = (
        "KLFromBase asks for the distance to the base model, and full fine-tuning keeps no copy of it: "
        "set policy.reference: true, or remove the callback"
    )
    for command in ("plan", "fit"):
        assert guardlit(command, "--config", path) == 2
        assert capsys.readouterr().err.strip().splitlines()[-1] == f"guardlit {command}: error: {line}"
    assert not list(tmp_path.rglob("kl.csv"))
    assert guardlit("validate", "--config", path) == 2
    assert "full fine-tuning keeps no base weights" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_base_that_is_broken_is_one_line(
    sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    using = SwitchingPolicy.using

    @contextmanager
    def broken(policy: SwitchingPolicy, weights: str) -> Iterator[None]:
        with using(policy, weights):
            bias = policy.transformer.proj_out.bias
            before = bias.detach().clone()
            with torch.no_grad():
                bias.fill_(float("nan"))
            yield
            with torch.no_grad():
                bias.copy_(before)

    monkeypatch.setattr(SwitchingPolicy, "using", broken)
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **RUN)) != 0
    assert "KLFromBase: the KL of sample 0 at step 0 is nan" in capsys.readouterr().err
    assert not list(tmp_path.rglob("kl.csv"))


def test_the_plan_counts_the_references_passes(sd3_folder: Path, tmp_path: Path):
    from guardlit.commands.plan import planned

    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    measured = planned(["--config", str(config(tmp_path / "with", sd3_folder, **RUN))])
    plain = planned(["--config", str(config(tmp_path / "without", sd3_folder, **RUN | {"trainer__callbacks": []}))])
    assert (measured.evaluation_calls, plain.evaluation_calls) == (5 + 4, 5)

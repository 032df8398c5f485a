"""Classes of the user's own modules: the error says what is wrong with one and where it is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml
from runs import guardlit

CONFIG = Path(__file__).parents[2] / "configs/tiny_digits.yaml"

MODULES = {
    "own_missing_import.py": "import a_package_that_is_not_here\n",
    "own_syntax.py": "class Mine(Scorer)\n    pass\n",
    "own_raises.py": "\nraise RuntimeError('set MY_TOKEN first')\n",
    "own_package/__init__.py": "",
    "own_package/rewards.py": "from .weights import load\n",
    "own_good.py": """
import lightning.pytorch as pl
from torch.optim import Optimizer

from guardlit.policies.base import FlowPolicy
from guardlit.rewards import Scorer


class Good(Scorer):
    def setup(self, device): ...
    def score(self, request): ...


class NoSetup(Scorer):
    def score(self, request): ...


class Neither(Scorer):
    pass


class Duck:
    def setup(self, device): ...
    def score(self, request): ...


class HalfADuck:
    def setup(self, device): ...


class HalfPolicy(FlowPolicy):
    def load(self, sharding=None): ...


def function(parameters): ...
""",
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the modules, which is the current one; they are forgotten afterwards."""
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def complaint(capsys, *options: object, config: Path = CONFIG) -> str:
    assert guardlit("fit", "--config", config, *options, "--print_config") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("guardlit fit: error: ")


FAULTS = [
    (
        "own_missing_import.Mine",
        "cannot be imported: ModuleNotFoundError: No module named 'a_package_that_is_not_here' "
        "({folder}/own_missing_import.py, line 1)",
    ),
    ("own_syntax.Mine", "cannot be imported: SyntaxError: expected ':' ({folder}/own_syntax.py, line 1)"),
    ("own_raises.Mine", "cannot be imported: RuntimeError: set MY_TOKEN first ({folder}/own_raises.py, line 2)"),
    (
        "own_package.rewards.Mine",
        "cannot be imported: ModuleNotFoundError: No module named 'own_package.weights' "
        "({folder}/own_package/rewards.py, line 1)",
    ),
    (
        "own_absent.Mine",
        "cannot be found: there is no module 'own_absent' in this folder, next to the configuration or installed",
    ),
    ("own_package.absent.Mine", "cannot be found: there is no module 'absent' in own_package"),
    ("own_good.Goood", "is not in the module own_good; did you mean own_good.Good?"),
]


@pytest.mark.parametrize(("path", "line"), FAULTS)
def test_a_reward_that_cannot_be_imported(own, capsys, path, line):
    expected = f"{path!r} {line.format(folder=own)}"
    assert complaint(capsys, "--model.reward", path) == f"--model.reward: {expected}"
    settings = yaml.safe_load(CONFIG.read_text())
    settings["model"]["reward"] = {"class_path": path}
    (own / "run.yaml").write_text(yaml.safe_dump(settings))
    number = next(i for i, text in enumerate((own / "run.yaml").read_text().splitlines(), 1) if path in text)
    said = complaint(capsys, config="run.yaml")
    assert said in (f"run.yaml:{number}: model.reward: {expected}", f"run.yaml:{number}: {expected}")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("own_good.NoSetup", "lacks the method setup of Scorer"),
        ("own_good.Neither", "lacks the methods score and setup of Scorer"),
        ("own_good.Duck", "is no subclass of Scorer: write class Duck(guardlit.Scorer)"),
        ("own_good.function", "is a function that is not annotated to return Scorer"),
    ],
)
def test_a_reward_of_another_kind(own, capsys, path, line):
    assert complaint(capsys, "--model.reward", path) == f"--model.reward: {path!r} {line}"
    terms = yaml.safe_dump([{"scorer": path}], default_flow_style=True).strip()
    said = complaint(capsys, "--model.reward", "Composite", "--model.reward.terms", terms)
    assert said == f"--model.reward.terms: Term.scorer: {path!r} {line}"


@pytest.mark.parametrize(("path", "line"), FAULTS[1:5:2])
@pytest.mark.parametrize("option", ["--trainer.callbacks+", "--model.optimizer", "--model.policy", "--trainer.logger"])
def test_other_classes_that_cannot_be_imported(own, capsys, option, path, line):
    line = line.partition(";")[0]  # similar names are those of the other kind
    said = complaint(capsys, option, path)
    assert said.startswith((f"{option.rstrip('+')}: {path!r} {line.format(folder=own)}", f"{option}: {path!r} "))
    assert line.format(folder=own) in said


@pytest.mark.parametrize(
    ("option", "path", "line"),
    [
        ("--trainer.callbacks+", "own_good.Good", "no subclass of Callback: write class Good(lightning.Callback)"),
        ("--model.optimizer", "own_good.Good", "no subclass of Optimizer: write class Good(torch.optim.Optimizer)"),
        ("--model.optimizer", "own_good.function", "is a function that is not annotated to return Optimizer"),
        ("--model.policy", "own_good.Good", "is no subclass of FlowPolicy: write class Good(guardlit.FlowPolicy)"),
        ("--model.policy", "own_good.HalfPolicy", "lacks the methods conditioning, decode, "),
    ],
)
def test_other_classes_of_another_kind(own, capsys, option, path, line):
    said = complaint(capsys, option, path)
    assert said.startswith(f"{option.rstrip('+')}: {path!r} ")
    assert line in said


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("own_good.HalfADuck", "lacks the method score of GoldScorer"),
        ("own_raises.Mine", "cannot be imported: RuntimeError: set MY_TOKEN first"),
    ],
)
def test_a_gold_scorer(own, capsys, path, line):
    gold = ("--trainer.callbacks+", "guardlit_callbacks.GoldScore", "--trainer.callbacks.scorers")
    assert f"{path!r} {line}" in complaint(capsys, *gold, f"[{path}]")


def test_a_class_next_to_the_configuration_is_found_from_anywhere(own, monkeypatch, tmp_path_factory):
    (own / "run.yaml").write_text(CONFIG.read_text())
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert guardlit("fit", "--config", own / "run.yaml", "--model.reward", "own_good.Good", "--print_config") == 0


def test_a_class_that_has_moved_is_still_named(capsys):
    said = complaint(capsys, "--model.reward", "guardlit.rewards.pickscore.PickScore")
    assert said.endswith("did you mean guardlit.rewards.clip.pickscore.PickScore (in short, PickScore)?")

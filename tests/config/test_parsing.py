import sys
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import lazy_instance
from lightning.pytorch.cli import LightningCLI, OptimizerCallable

from guardlit.config.parser import GuardlitParser
from guardlit.errors import GuardlitError
from guardlit.objective import Objective
from guardlit.sde import SDE, FlowSDE


class Reward:
    """What a parameter may ask for."""


class BrightReward(Reward):
    def __init__(self, channel: int = 0, weight: float = 1.0) -> None: ...


class WordReward(Reward):
    def __init__(self, words: list[str], inner: Reward | None = None) -> None: ...


class Module(pl.LightningModule):
    def __init__(
        self,
        width: int = 4,
        sde: SDE = lazy_instance(FlowSDE),  # noqa: B008 - as in the application
        objective: Objective | None = None,
        rewards: Reward | list[Reward] | dict[str, Reward] | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        kl: Literal["exact", "velocity"] = "exact",
        guidance: float | None = None,
        size: tuple[int, int] = (4, 4),
    ) -> None:
        super().__init__()
        self.width, self.sde, self.rewards = width, sde, rewards


class Data(pl.LightningDataModule):
    def __init__(self, prompts: str, prompts_per_round: int = 4) -> None:
        super().__init__()
        self.prompts = prompts


class CLI(LightningCLI):
    """Parses and instantiates; nothing is run."""

    def _run_subcommand(self, subcommand: str) -> None: ...


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> CLI:
    monkeypatch.setattr(sys, "argv", ["guardlit", *arguments])
    return CLI(
        Module,
        Data,
        parser_class=GuardlitParser,
        parser_kwargs={"default_env": True, "env_prefix": "GUARDLIT"},
        trainer_defaults={"logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
        save_config_callback=None,
        auto_configure_optimizers=False,
        seed_everything_default=False,
    )


def the_one_line(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(arguments, monkeypatch)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1), err
    assert "Traceback" not in err
    assert err.startswith("guardlit fit: error: ")
    return err.removeprefix("guardlit fit: error: ").rstrip("\n")


PROMPTS = ["--data.prompts", "p.txt"]
COMMAND_LINES = [
    # unknown options
    ("--data.prompts_per_roud 3", "unknown option --data.prompts_per_roud; did you mean --data.prompts_per_round?"),
    ("--data.prompts_per_roud=3", "unknown option --data.prompts_per_roud; did you mean --data.prompts_per_round?"),
    ("--prompts_per_round 3", "unknown option --prompts_per_round; did you mean --data.prompts_per_round?"),
    ("--model.prompts_per_round 3", "unknown option --model.prompts_per_round; did you mean --data.prompts_per_round?"),
    ("--trainer.max_step 3", "unknown option --trainer.max_step; did you mean --trainer.max_steps?"),
    ("--model.sed.noise_level 1", "unknown option --model.sed.noise_level; did you mean --model.sde.noise_level?"),
    ("--zebra 3", "unknown option --zebra"),
    ("stray", "found 'stray' where an option belongs"),
    ("--model.width", "argument --model.width: expected one argument"),
    # parameters of the chosen classes
    (
        "--model.sde.noise_levl 1",
        "--model.sde.noise_levl: FlowSDE has no option 'noise_levl'; did you mean noise_level?",
    ),
    (
        "--model.sde CPS --model.sde.init_args.eta 1",
        "--model.sde.init_args.eta: CPS has no option 'eta'; known: noise_level",
    ),
    (
        "--model.optimizer AdamW --model.optimizer.lrr 1",
        "--model.optimizer.lrr: AdamW has no option 'lrr'; did you mean lr?",
    ),
    (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitr=x",
        "--trainer.callbacks.monitr: EarlyStopping has no option 'monitr'; did you mean monitor?",
    ),
    # unknown classes
    ("--model.sde FlowSD", "--model.sde: 'FlowSD' is no known SDE; did you mean FlowSDE?"),
    ("--model.sde.class_path flowsde", "--model.sde.class_path: 'flowsde' is no known SDE; did you mean FlowSDE?"),
    ("--model.sde guardlit.sde.FlowSD", "--model.sde: 'guardlit.sde.FlowSD' is no known SDE; did you mean FlowSDE?"),
    (
        "--model.sde guardlt.sde.FlowSDE",
        "--model.sde: 'guardlt.sde.FlowSDE' is no known SDE; did you mean guardlit.sde.FlowSDE (in short, FlowSDE)?",
    ),
    (
        "--model.sde guardlit.objective.GRPOGuard",
        "--model.sde: 'guardlit.objective.GRPOGuard' is no known SDE; known: CPS, DanceSDE, FlowSDE, ODE",
    ),
    ("--model.sde SDE", "--model.sde: 'SDE' is abstract; known: CPS, DanceSDE, FlowSDE, ODE"),
    ("--model.objective GRPOGard", "--model.objective: 'GRPOGard' is no known Objective; did you mean GRPOGuard?"),
    ("--model.rewards BrigtReward", "--model.rewards: 'BrigtReward' is no known Reward; did you mean BrightReward?"),
    ("--model.optimizer AdmW", "--model.optimizer: 'AdmW' is no known Optimizer; did you mean AdamW?"),
    (
        "--trainer.callbacks EarlyStoping",
        "--trainer.callbacks: 'EarlyStoping' is no known Callback; did you mean EarlyStopping?",
    ),
    # wrong types
    ("--model.width abc", "--model.width: expected an integer, found 'abc'"),
    ("--model.width 2.5", "--model.width: expected an integer, found 2.5"),
    ("--model.guidance abc", "--model.guidance: expected a number or null, found 'abc'"),
    ("--model.kl exat", "--model.kl: expected one of 'exact', 'velocity', found 'exat'; did you mean exact?"),
    ("--model.size [1,2,3]", "--model.size: expected a tuple with 2 elements, found [1, 2, 3]"),
    ("--model.sde.noise_level x", "--model.sde.noise_level: FlowSDE.noise_level: expected a number, found 'x'"),
    (
        "--model.rewards BrightReward --model.rewards.channel x",
        "--model.rewards.channel: BrightReward.channel: expected an integer, found 'x'",
    ),
]


@pytest.mark.parametrize(("options", "line"), COMMAND_LINES)
def test_a_mistake_on_the_command_line(options: str, line: str, monkeypatch, capsys):
    assert the_one_line(["fit", *PROMPTS, *options.split()], monkeypatch, capsys) == line


FILES = [
    # YAML itself
    ("data:\n  prompts: p\n model: [\n", "run.yaml:3: not valid YAML: expected <block end>, but found"),
    ("data:\n\tprompts: p\n", "run.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
    ("just words\n", "run.yaml: expected the sections data:, model:, trainer:; found 'just words'"),
    ("- a\n- b\n", "run.yaml: expected the sections data:, model:, trainer:; found a list"),
    ("# only a comment\n", "run.yaml: expected the sections data:, model:, trainer:; found nothing"),
    ("data: 3\n", "run.yaml:1: data: expected a mapping of settings, found 3"),
    (
        "data:\n  prompts: p\ntrainer:\n- max_steps\n",
        "run.yaml:3: trainer: expected a mapping of settings, found a list",
    ),
    (
        "data:\n  prompts: p\nmodel:\n  width: 3\n  width: 4\n",
        "run.yaml:5: key 'width' is given twice, first on line 4",
    ),
    # keys
    (
        "data:\n  prompts: p\n  prompts_per_roud: 3\n",
        "run.yaml:3: data.prompts_per_roud: unknown key; did you mean data.",
    ),
    ("dta:\n  prompts: p\n", "run.yaml:2: dta.prompts: unknown key; did you mean data.prompts?"),
    (
        "data:\n  prompts: p\ntrainer:\n  max_stps: 3\n",
        "run.yaml:4: trainer.max_stps: unknown key; did you mean trainer.",
    ),
    ("data:\n  prompts: p\nmax_steps: 3\n", "run.yaml:3: max_steps: unknown key; did you mean trainer.max_steps?"),
    ("model:\n  width: 3\n", "missing data.prompts: give --data.prompts or set it in a --config file"),
    # values
    ("data:\n  prompts: p\nmodel:\n  width: abc\n", "run.yaml:4: model.width: expected an integer, found 'abc'"),
    (
        "data:\n  prompts: p\nmodel:\n  sde:\n    class_path: FlowSD\n",
        "run.yaml:5: model.sde: 'FlowSD' is no known SDE; did you mean FlowSDE?",
    ),
    (
        "data:\n  prompts: p\nmodel:\n  sde:\n    class_path: FlowSDE\n    init_args:\n      noise_levl: 0.3\n",
        "run.yaml:7: model.sde: FlowSDE has no option 'noise_levl'; did you mean noise_level?",
    ),
    (
        "data:\n  prompts: p\nmodel:\n  sde:\n    class_path: FlowSDE\n    init_args:\n      noise_level: high\n",
        "run.yaml:7: model.sde: FlowSDE.noise_level: expected a number, found 'high'",
    ),
    (
        "data:\n  prompts: p\nmodel:\n  objective:\n    class_path: GRPOGuard\n    init_args:\n      clip_unit: men\n",
        "run.yaml:7: model.objective: GRPOGuard.clip_unit: expected one of 'mean', 'sum', found 'men'; did you mean",
    ),
    (
        "data:\n  prompts: p\nmodel:\n  optimizer:\n    class_path: AdamW\n    init_args:\n      lr: fast\n",
        "run.yaml:7: model.optimizer: AdamW.lr: expected a number, found 'fast'",
    ),
    # classes in a list, and in each other
    (
        "data:\n  prompts: p\nmodel:\n  rewards:\n  - class_path: BrightReward\n  - class_path: BrigtReward\n",
        "run.yaml:6: model.rewards: 'BrigtReward' is no known Reward; did you mean BrightReward?",
    ),
    (
        "data:\n  prompts: p\nmodel:\n  rewards:\n  - class_path: BrightReward\n    init_args:\n      chanel: 1\n",
        "run.yaml:7: model.rewards: BrightReward has no option 'chanel'; did you mean channel?",
    ),
    (
        "data:\n  prompts: p\nmodel:\n  rewards:\n  - class_path: BrightReward\n  - class_path: WordReward\n",
        "run.yaml:6: model.rewards: WordReward needs words",
    ),
    (
        "data:\n  prompts: p\nmodel:\n  rewards:\n  - class_path: WordReward\n    init_args:\n      words: [a]\n"
        "      inner:\n        class_path: BrightReward\n        init_args:\n          channel: red\n",
        "run.yaml:11: model.rewards: BrightReward.channel: expected an integer, found 'red'",
    ),
    (
        "data:\n  prompts: p\nmodel:\n  rewards:\n  - class_path: WordReward\n    init_args:\n      words: [a]\n"
        "      inner:\n        class_path: Brightreward\n",
        "run.yaml:9: model.rewards: WordReward.inner: 'Brightreward' is no known Reward; did you mean BrightReward?",
    ),
]


@pytest.mark.parametrize(("text", "line"), FILES)
def test_a_mistake_in_a_file(text: str, line: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    assert the_one_line(["fit", "--config", "run.yaml"], monkeypatch, capsys).startswith(line)


def test_a_file_that_does_not_exist(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiny_digits.yaml").touch()
    line = the_one_line(["fit", "--config", "tiny_digit.yaml"], monkeypatch, capsys)
    assert line == "--config: no such file: tiny_digit.yaml; did you mean tiny_digits.yaml?"


CHAIN = {
    "parts/base.yaml": "data:\n  prompts: p\nmodel:\n  sde:\n    class_path: FlowSDE\n    init_args:\n      {}\n",
    "run.yaml": "base: parts/base.yaml\nmodel:\n  sde: {init_args: {noise_level: 0.3}}\n",
    "last.yaml": "model:\n  sde: {init_args: {noise_level: 0.2}}\n  width: 3\n",
}


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        ("noise_levl: 0.5", "FlowSDE has no option 'noise_levl'; did you mean noise_level?"),
        ("noise_level: loud", "FlowSDE.noise_level: expected a number, found 'loud'"),
    ],
)
@pytest.mark.parametrize(
    "options",
    ["--config run.yaml", "--config run.yaml --config last.yaml", "-c run.yaml -c last.yaml --model.sde FlowSDE"],
)
def test_a_mistake_below_other_files_is_named_where_it_stands(
    options: str, mistake: str, line: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("parts").mkdir()
    for name, text in CHAIN.items():
        Path(name).write_text(text.format(mistake) if "base" in name and "parts" in name else text)
    said = the_one_line(["fit", *options.split()], monkeypatch, capsys)
    assert said == f"parts/base.yaml:7: model.sde: {line}"


def test_a_logger_that_is_not_installed_names_the_package(monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", _Absent("mlflow>=1.0.0"))
    with pytest.raises(
        GuardlitError, match=r"MLFlowLogger needs a package that is not installed: pip install 'mlflow>="
    ):
        run(["fit", *PROMPTS, "--trainer.logger", "MLFlowLogger"], monkeypatch)


def test_wandb_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", _Absent("wandb>=0.12.10"))
    line = r"^WandbLogger needs a package that is not installed: pip install 'guardlit\[wandb\]'$"
    for name in ("wandb", "WandbLogger"):
        with pytest.raises(GuardlitError, match=line):
            run(["fit", *PROMPTS, "--trainer.logger", name], monkeypatch)


class _Absent:
    """What Lightning has in place of a package that is missing."""

    def __init__(self, needed: str) -> None:
        self.needed = needed

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"Requirement '{self.needed}' not met. HINT: Try running `pip install -U '{self.needed}'`"


def test_of_two_files_the_one_that_counts_is_named(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text("data:\n  prompts: p\nmodel:\n  width: 3\n")
    Path("second.yaml").write_text("\nmodel:\n  width: wide\n")
    line = the_one_line(["fit", "-c", "first.yaml", "--config=second.yaml"], monkeypatch, capsys)
    assert line == "second.yaml:3: model.width: expected an integer, found 'wide'"


def test_an_option_after_the_file_is_named_instead_of_the_file(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("data:\n  prompts: p\nmodel:\n  width: 3\n")
    line = the_one_line(["fit", "--config", "run.yaml", "--model.width", "wide"], monkeypatch, capsys)
    assert line == "--model.width: expected an integer, found 'wide'"


def test_an_environment_variable_is_named(monkeypatch, capsys):
    monkeypatch.setenv("GUARDLIT_FIT__MODEL__WIDTH", "wide")
    line = the_one_line(["fit", *PROMPTS], monkeypatch, capsys)
    assert line == "environment variable GUARDLIT_FIT__MODEL__WIDTH: expected an integer, found 'wide'"


def test_a_value_that_a_class_refuses_is_a_user_error(monkeypatch):
    with pytest.raises(GuardlitError, match=r"noise_level=-1\.0 must lie in"):
        run(["fit", *PROMPTS, "--model.sde.noise_level", "-1"], monkeypatch)


def test_what_is_right_is_parsed(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text("data:\n  prompts: p.txt\nmodel:\n  width: 3\n  sde:\n    noise_level: 0.1\n")
    Path("second.yaml").write_text("model:\n  rewards:\n  - class_path: WordReward\n    init_args:\n      words: [a]\n")
    files = ["--config", "first.yaml", "--config", "second.yaml"]
    cli = run(["fit", *files, "--model.rewards+=BrightReward", "--model.width=5"], monkeypatch)
    assert (cli.model.width, cli.model.sde.noise_level, cli.datamodule.prompts) == (5, 0.1, "p.txt")
    assert [type(reward) for reward in cli.model.rewards] == [WordReward, BrightReward]

"""Help and mistakes found in source files: in the parser's words, for the options that it has."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from runs import guardlit

import guardlit as gl
from guardlit.cli import main
from guardlit.commands.first_look import command
from guardlit.commands.lightning_cli import GuardlitCLI, parse
from guardlit.config.nearest import class_parser, keys_of
from guardlit.config.parser import _subparsers
from guardlit.config.static.early import COMMON, Early
from guardlit.config.static.options import class_named, expanded, subclasses

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "tiny_digits.yaml"
COMMANDS = ("fit", "validate", "sample", "export", "evaluate", "ablate")


@pytest.fixture(scope="module")
def parsers() -> dict[str, ArgumentParser]:
    """The parsers of LightningCLI's commands, which it builds all without a command."""
    built: list[ArgumentParser] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["guardlit"])
        patch.setattr(GuardlitCLI, "parse_arguments", lambda self, parser, args: built.append(parser) or sys.exit())
        with pytest.raises(SystemExit):
            GuardlitCLI()
    return _subparsers(built[0])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_are_those_of_the_parser(name: str, parsers: dict[str, ArgumentParser]):
    options = {option.key for option in command(name).options()}
    groups = {key[:end] for key in options for end in range(len(key)) if key[end] == "."}
    assert {key.rstrip("+") for key in keys_of(parsers[name])} == {*options, *groups, *COMMON} - {"help", "base"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_option_with_its_own_first(name: str, capsys: pytest.CaptureFixture[str]):
    if name == "ablate":
        pytest.skip("its help is argparse's")
    assert main([name, "--help"]) == 0
    words = capsys.readouterr().out.split()
    places = [words.index(f"--{option.key}") for option in command(name).options()]
    assert places[: len(command(name).own())] == sorted(places)[: len(command(name).own())]


def test_defaults_in_help_are_those_of_the_parser(parsers: dict[str, ArgumentParser]):
    defaults = parsers["fit"].get_defaults()
    plain = [o for o in command("fit").section("data") if o.parameter.default is not None]
    assert len(plain) > 8
    for option in plain:
        assert repr(defaults[option.key]) == option.parameter.default


@pytest.mark.parametrize("name", [n for n in gl.__all__ if n.endswith(("Policy", "Score", "GRPO", "SDE", "Window"))])
def test_parameters_of_classes_are_those_of_the_parser(name: str):
    source = class_named(name)
    assert source is not None
    if not source.is_abstract:
        found = {option.key for p in source.parameters() for option in expanded(_option(p))}
        assert {key.rstrip("+") for key in keys_of(class_parser(f"guardlit.{name}"))} >= found
        assert {key.rstrip("+").partition(".")[0] for key in keys_of(class_parser(f"guardlit.{name}"))} == {
            key.partition(".")[0] for key in found
        }


def _option(parameter: object):
    from guardlit.config.static.options import Option

    return Option(parameter.name, parameter)  # type: ignore[attr-defined]


def test_concrete_subclasses_are_found():
    sampler, policy = (
        {o.key: o for o in command("fit").section("model")}[k].base for k in ("model.sde", "model.policy")
    )
    assert subclasses(sampler, gl.__all__) == ["CPS", "DanceSDE", "FlowSDE", "ODE"]
    assert subclasses(policy, gl.__all__) == ["Flux2KleinPolicy", "FluxPolicy", "QwenImagePolicy", "SD3Policy"]


RUN = "model:\n  policy: {class_path: SD3Policy, init_args: {model: guardlit://digits}}\n  reward: DigitProbability\n"
MISTAKES = [
    ("--trainer.max_epoch 3", RUN),
    ("--data.micro_bacth=3", RUN),
    ("--model.reward PikScore", RUN),
    ("--model.reward.class_path=PikScore", RUN),
    ("--model.policy.modle x", RUN),
    ("--model.sde CPS --model.sde.init_args.eta 1", RUN),
    ("--model.reward PickScore --model.reward.version v2", RUN),
    ("--nonsense", RUN),
    ("", RUN + "data:\n  micro_bach: 3\n"),
    ("", RUN + "trainer:\n  max_epoch: 3\n"),
    ("", RUN + "  rollout:\n    guidance: 3\n"),
    ("", RUN.replace("DigitProbability", "DigitProbabilty")),
    ("", RUN.replace("class_path: SD3Policy", "class_path: SD3Polcy")),
    ("", RUN.replace("{model: guardlit://digits}", "{modle: guardlit://digits}")),
    ("", RUN + "  policy: {}\n"),
    ("", RUN + "  optimizer: [\n"),
]


@pytest.mark.parametrize(("options", "text"), MISTAKES)
def test_a_mistake_is_told_in_the_words_of_the_parser(
    options: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    args = ["--config", "run.yaml", "--data.train=guardlit://prompts/digits.jsonl", *options.split()]
    said = Early(command("fit"), gl.__all__).mistake(args)
    assert said is not None
    assert guardlit("fit", *args) == 2  # torch is imported here, so that the parser answers
    assert capsys.readouterr().err == f"guardlit fit: error: {said}\n"


RIGHT = [
    "--model.policy.lora null --model.policy.lora.rank 3",
    "--model.objective FlowGRPO --model.objective.init_args.clip_range 1e-4",
    "--trainer.callbacks+=guardlit_callbacks.GradientNorm --trainer.callbacks.draw_every=3",
    "--model.optimizer.lr 1e-3 --model.kl.weight 0.1 --model.rollout.window.size 2 --print_config=skip_default",
    "--model.policy.help SD3Policy",
    "--model.reward my_package.rewards.MyScorer --model.reward.anything 3",
    "--model.reward my_package.rewards.MyScorer --model.sde MySED",  # which that package may define
    "--trainer.logger WandbLogger --trainer.logger.project x",
]


@pytest.mark.parametrize("options", RIGHT)
def test_what_may_be_right_is_left_to_the_parser(options: str):
    assert Early(command("fit"), gl.__all__).mistake(["--config", str(TINY), *options.split()]) is None


ACCEPTED = [
    ("", "data: {seed: 42}"),
    ("", "model: {policy: {class_path: SD3Policy, init_args: {<<: {resolution: 64}, cache: null}}}"),
    ("", "model: {reward: {<<: {class_path: PickScore}, init_args: {model: x}}}"),
    ("", "model: {reward: {init_args: {model: x}, class_path: PickScore}}"),
    ("", "model: {policy.resolution: 64, optimizer.init_args.lr: 0.1}"),
    ("", "model: {rollout: {class_path: guardlit.Rollout, init_args: {guidance_scale: 1.0}}}"),
    ("--model.reward.model x", "model: {reward.class_path: PickScore}"),
    ("--model.reward.model x", "model: part.yaml"),
    ("--model part.yaml --model.reward.model x", "{}"),
    ("--model {reward:\\ PickScore} --model.reward.model x", "{}"),
    ("--model.reward JPEGCompressibility --model.reward.dict_kwargs.a 3", "{}"),
    ("--model.reward Composite --model.reward.terms+={scorer:\\ PickScore} --model.reward.terms+.weight=2", "{}"),
]


@pytest.mark.parametrize(("options", "text"), ACCEPTED)
def test_nothing_is_refused_that_the_parser_accepts(
    options: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("part.yaml").write_text("reward: PickScore")
    Path("run.yaml").write_text(text)
    args = ["--config", str(TINY), *(["--config", "run.yaml"] if text != "{}" else []), *shlex.split(options)]
    parse(["fit", *args])
    assert Early(command("fit"), gl.__all__).mistake(args) is None


def test_classes_of_a_setting_in_the_environment_may_be_any(monkeypatch: pytest.MonkeyPatch):
    args = ["--config", str(TINY), "--model.objective", "MyGuard"]
    assert Early(command("fit"), gl.__all__).mistake(args) is not None
    monkeypatch.setenv("GUARDLIT_FIT__CONFIG", "own.yaml")
    assert Early(command("fit"), gl.__all__).mistake(args) is None


def test_parameters_of_ones_own_class_are_left_to_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A decorator may give it an `__init__`."""
    (tmp_path / "made_by_attrs").mkdir()
    (tmp_path / "made_by_attrs" / "__init__.py").write_text(
        "import attrs, guardlit\n@attrs.define\nclass Smile(guardlit.OCR):\n    strength: float = 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    args = ["--config", str(TINY), "--model.reward", "made_by_attrs.Smile", "--model.reward.strength", "2"]
    assert class_named("made_by_attrs.Smile") is not None
    assert Early(command("fit"), gl.__all__).mistake(args) is None


def test_a_file_that_is_not_utf8_is_one_line(tmp_path: Path):
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"model:\n  sde: CPS # caf\xe9\n")
    said = Early(command("fit"), gl.__all__).mistake(["--config", str(file)])
    assert said == f"{file}:2: not valid YAML: byte 0xe9 is not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize("path", [*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/gpu/*.yaml")], ids=lambda p: p.stem)
def test_every_configuration_passes(path: Path):
    name = "evaluate" if "gold" in path.name else "fit"
    assert Early(command(name), gl.__all__).mistake(["--config", str(path)]) is None


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["fit", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["plan", "--help"], 0),
        (["fit", "--config", str(TINY), "--model.reward", "PikScore"], 2),
        (["plan", "--config", str(TINY), "--data.micro_bach", "3"], 2),
        (["sample", "--config", str(TINY), "--promts", "x"], 2),
    ],
)
def test_help_and_mistakes_import_neither_torch_nor_lightning(arguments: list[str], code: int):
    say = "import atexit, sys; atexit.register(lambda: print(*sys.modules))"
    probe = f"{say}\nfrom guardlit.cli import main\nsys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == code
    modules = done.stdout.splitlines()[-1].split()
    assert "guardlit.cli" in modules
    assert not {"torch", "lightning", "numpy"} & set(modules)

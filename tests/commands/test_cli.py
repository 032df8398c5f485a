import subprocess
import sys
from importlib import import_module

import pytest

from guardlit import __version__, cli
from guardlit.errors import GuardlitError

HEAVY = {"torch", "lightning", "jsonargparse", "yaml", "numpy", "rich"}


def modules_after(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["fitt"], ["--steps"]])
def test_answers_that_need_no_torch_import_only_the_standard_library(arguments: list[str]):
    imported = modules_after(f"from guardlit.cli import main\nmain({arguments!r})")
    assert "guardlit" in imported
    assert not HEAVY & imported


def test_schedule_needs_torch_but_not_lightning():
    imported = modules_after("from guardlit.cli import main\nmain(['schedule', '--steps', '4'])")
    assert "torch" in imported
    assert not {"lightning", "matplotlib", "diffusers"} & imported


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (summary, _) in cli.COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in lines)


def test_the_module_runs_as_the_command_does():
    done = subprocess.run([sys.executable, "-m", "guardlit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"guardlit {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fitt"], "guardlit: error: unknown command 'fitt': did you mean fit?"),
        (["schedul"], "guardlit: error: unknown command 'schedul': did you mean schedule?"),
        (
            ["zzz"],
            "guardlit: error: unknown command 'zzz': "
            "commands are fit, validate, sample, export, push, evaluate, convert, ablate, recipes, plan, "
            "report, serve-reward, schedule",
        ),
        (["--stps"], "guardlit: error: found '--stps' where the command belongs: guardlit COMMAND [options]"),
    ],
)
def test_a_mistyped_command_gets_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(arguments) == 2
    assert capsys.readouterr() == ("", line + "\n")


def test_without_arguments_the_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "usage: guardlit COMMAND [options]")


def run_with(command, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(import_module("guardlit.commands.schedule"), "main", command)
    monkeypatch.setattr(sys, "argv", ["guardlit"])
    return cli.main(["schedule", "--steps", "3"])


def test_a_command_sees_its_arguments_and_so_does_sys_argv(monkeypatch: pytest.MonkeyPatch):
    seen = []
    assert run_with(lambda args: seen.append((args, list(sys.argv))), monkeypatch) == 0
    assert seen == [(["schedule", "--steps", "3"], ["guardlit", "schedule", "--steps", "3"])]


def test_a_mistake_of_the_user_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def command(args):
        raise GuardlitError("prompts.txt:3: blank line\nremove it")

    assert run_with(command, monkeypatch) == 2
    assert capsys.readouterr().err == "guardlit schedule: error: prompts.txt:3: blank line remove it\n"


def test_an_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def command(args):
        raise KeyboardInterrupt

    assert run_with(command, monkeypatch) == 130
    assert capsys.readouterr().err.strip() == "guardlit schedule: interrupted"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def command(args):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_with(command, monkeypatch)


def test_a_closed_pipe_is_quiet():
    command = [sys.executable, "-m", "guardlit", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141

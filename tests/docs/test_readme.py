"""Commands in the documentation work: each ```bash block of README, docs and CONTRIBUTING is checked."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from runs import guardlit

from guardlit.assets.recipes import names
from guardlit.cli import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "callbacks/README.md", *sorted(ROOT.glob("docs/**/*.md"))]
FOLDERS = {"configs", "callbacks", "docs", "guardlit", "tests", "notebooks", "benchmarks"}
LIGHTNING = {"fit", "validate", "sample", "export", "evaluate"}


def commands(path: Path) -> list[str]:
    """Simple commands of a page's bash blocks: lines joined at backslashes, split at && and ;, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in _split(line)]
    return [shlex.join(part) for part in parts if part]


def _split(line: str) -> list[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("&;|"):
            parts.append([])
        elif parts[-1] or not re.fullmatch(r"\w+=.*", word):  # NAME=value before a command
            parts[-1].append(word)
    return parts


def all_commands() -> list[pytest.param]:
    found = [(path, command) for path in DOCS for command in commands(path)]
    return [pytest.param(command, id=f"{path.relative_to(ROOT)}: {command}"[:90]) for path, command in found]


def arguments(command: str) -> list[str] | None:
    """A command's arguments to guardlit, after any launcher."""
    words = shlex.split(command)
    if words[0] == "pip" or "guardlit" not in words:
        return None
    return words[words.index("guardlit") + 1 :]


@pytest.mark.parametrize("command", all_commands())
def test_what_it_names_exists(command: str):
    words = shlex.split(command)
    for word in words:
        value = word.rpartition("=")[2].removeprefix("./")
        if value.partition("/")[0] in FOLDERS and "/" in value:
            assert (ROOT / value).exists(), value
    if words[:2] == ["pip", "install"]:
        for target in (word for word in words[2:] if word.startswith(".")):
            folder, _, extras = target.rstrip("]").partition("[")
            project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            assert set(filter(None, extras.split(","))) <= project["optional-dependencies"].keys()
    if words[:2] == ["guardlit", "recipes"]:
        assert {word for word in words[2:] if not word.startswith("-")} - {"run.yaml"} <= set(names())
    if words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]), words[2]


@pytest.mark.parametrize("command", [c for c in all_commands() if arguments(c.values[0])])
def test_it_is_understood(command: str, capsys, monkeypatch: pytest.MonkeyPatch):
    recipe = "configs/tiny_digits.yaml"  # in place of what a run of it has saved
    given = [recipe if word.endswith("version_0/config.yaml") else word for word in arguments(command) or []]
    monkeypatch.chdir(ROOT)
    assert given[0] in COMMANDS or given[0].startswith("-")
    if given[0] in LIGHTNING and not {"--help", "--rescore"} & set(given):  # --rescore reads saved images
        assert guardlit(*given, "--print_config") == 0, capsys.readouterr().err
        return
    assert guardlit(*given[:1], "--help") == 0
    described = capsys.readouterr().out
    if "those of `guardlit fit`" in described:  # options passed on to fit
        for helped in (["--help"], ["--model.policy.help", "SD3Policy"]):
            assert guardlit("fit", *helped) == 0
            described += capsys.readouterr().out
    for option in (word.partition("=")[0] for word in given if word.startswith("--")):
        assert re.search(rf"{re.escape(option)}\b", described), f"{given[0]} has no {option}"


def test_the_readme_runs_the_main_job_and_its_results_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fits = [given for command in commands(ROOT / "README.md") if (given := arguments(command)) and given[0] == "fit"]
    assert fits, "README.md shows no `guardlit fit`"
    monkeypatch.chdir(ROOT)
    shorter = ("--trainer.max_epochs=1", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}")
    assert guardlit(*fits[0], *shorter) == 0
    for result in ("events.out.tfevents.*", "metrics.csv", "samples/*.png", "export/raw/*.safetensors", "*.ckpt"):
        assert list(tmp_path.rglob(result)), result


def test_ci_runs_the_readmes_test_command():
    """CI runs the README's commands for installation and tests."""
    shown = commands(ROOT / "README.md")
    install = "pip install -e ./callbacks -e '.[dev]'"
    assert install in shown
    assert "pytest" in shown
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert install.removeprefix("pip install ") in script
    assert re.search(r"^pytest\b", script, re.MULTILINE)

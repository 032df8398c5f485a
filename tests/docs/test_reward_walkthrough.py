"""docs/my_first_reward.md: its files and commands work as written, with fewer images; its errors are those printed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import guardlit

from guardlit.errors import GuardlitError
from guardlit.rewards import Scorer
from guardlit.types import Prompt, RewardRequest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/my_first_reward.md").read_text(encoding="utf-8")
REWARD, TEST = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
RUN, SUM, GOLD = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^```sh\n(.*)\n```", PAGE, re.MULTILINE)
FILES = {
    "my_rewards.py": REWARD,
    "test_my_rewards.py": TEST,
    "my_run.yaml": RUN,
    "my_sum.yaml": SUM,
    "my_gold.yaml": GOLD,
}
LINES = dict(re.findall(r"^\| (.+?) \| `(.+)` \|$", PAGE, re.MULTILINE))
FEWER = "--data.images_per_prompt 4 --data.micro_batch 10 --data.val_images_per_prompt 2 --trainer.max_epochs 1"
REQUEST = RewardRequest(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a"] * 2, [{}] * 2)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the page's files and the clone's configurations; it is the current one."""
    for name, text in FILES.items():
        assert f"`{name}`" in PAGE
        (tmp_path / name).write_text(text)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_rewards", None)


def test_the_tests_of_the_page_pass(folder):
    words = shlex.split(COMMANDS[0])
    assert words[0] == "python"
    options = ["-q", "-p", "no:cacheprovider"]
    done = subprocess.run([sys.executable, *words[1:], *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def header(folder: Path, name: str) -> set[str]:
    return set((folder / f"runs/{name}/version_0/metrics.csv").read_text().splitlines()[0].split(","))


@pytest.mark.parametrize(("command", "name"), list(zip(COMMANDS[1:], ("ink", "sum", "gold"), strict=True)))
def test_the_commands_run_and_log_what_the_page_says(folder, command, name):
    assert guardlit(*shlex.split(command)[1:], *FEWER.split()) == 0
    logged = header(folder, name)
    expected = {
        "ink": {"average_reward/ink", "reward/ink_std"},
        "sum": {
            "average_reward/digitprobability",
            "average_reward/ink",
            "reward_normalized/ink_mean",
            "average_reward/composite",
        },
        "gold": {"gold/ink", "gold/average", "gold/digitdiversity"},
    }[name]
    assert expected <= logged
    assert all(f"`{key}`" in PAGE for key in expected - {"gold/digitdiversity"})
    if name == "gold":
        assert (folder / "runs/gold/version_0/gold.png").is_file()


@pytest.mark.parametrize(
    ("mistake", "right", "wrong"),
    [
        ("an `import` in `my_rewards.py` fails", "import guardlit as gl", "import cv3"),
        ("no `setup`", "def setup(", "def prepare("),
        ("`class Ink:`", "class Ink(gl.Scorer):", "class Ink:"),
    ],
)
def test_a_class_that_cannot_be_used(folder, capsys, mistake, right, wrong):
    assert right in REWARD
    (folder / "my_rewards.py").write_text(REWARD.replace(right, wrong))
    assert guardlit(*shlex.split(COMMANDS[1])[1:], "--print_config") == 2
    said = capsys.readouterr().err.strip().removeprefix("guardlit fit: error: ")
    assert said.replace(str(folder), "...") == LINES[mistake]


class Ink(Scorer):
    """Scores as the mistakes of the page do."""

    def __init__(self, act) -> None:
        self.act = act

    def setup(self, device) -> None:
        """Nothing to load."""

    def score(self, request):
        """One of the mistakes."""
        return self.act(self, request)


def test_what_score_returns():
    with pytest.raises(GuardlitError, match=f"^{re.escape(LINES['`score` without `return`'])}$"):
        Ink(lambda scorer, request: None).attempt(REQUEST)
    with pytest.raises(GuardlitError, match=f"^{re.escape(LINES['one mean over all images'])}$"):
        Ink(lambda scorer, request: scorer.result(torch.tensor(0.5))).attempt(REQUEST)
    with pytest.raises(GuardlitError) as error:
        Ink(lambda scorer, request: 1 / 0).self_test([Prompt("a handwritten one")])
    said = re.sub(r"\(.*/\w+\.py, line \d+\)", "(.../my_rewards.py, line 9)", str(error.value))
    assert said == LINES["an exception in `score`"]


def test_every_line_is_checked():
    """The last one is that of tests/rounds/test_round_rewards.py."""
    assert len(LINES) == 7
    assert LINES["all images of each prompt score alike"].startswith("round 1: no group has any spread: reward 'ink'")

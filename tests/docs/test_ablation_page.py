"""The numbers of docs/ablation.md are those that its command prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from runs import guardlit

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # half a minute
def test_the_page_shows_what_the_command_prints(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/ablation.md").read_text(encoding="utf-8")
    command = re.search(r"```bash\n(guardlit ablate .*--analyze.*)\n```", page)
    shown = re.search(r"```text\n(fraction of the ratios.*?)```", page, re.DOTALL)
    assert command is not None
    assert shown is not None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setenv("COLUMNS", "200")
    assert guardlit(*shlex.split(command[1])[1:]) == 0
    printed = {tuple(line.split()) for line in capsys.readouterr().out.splitlines()}
    rows = [tuple(line.split()) for line in shown[1].splitlines() if re.search(r"\d", line)]
    assert len(rows) == 10
    assert [row for row in rows if row not in printed] == []

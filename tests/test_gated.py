"""Gated and private repositories: where to accept the license, and how to log in. Against a server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "support" / "gated_hub.py"
LOGIN = "then log in with `hf auth login` or set HF_TOKEN"
REFUSALS = {
    "not logged in": ((401, "GatedRepo", "files"), "it is gated: accept its license at PAGE, " + LOGIN),
    "license not accepted": (
        (403, "GatedRepo", "files"),
        "it is gated, and this login has no access: accept its license at PAGE with the same account",
    ),
    "private": (
        (401, "RepoNotFound", "all"),
        "the hub has none of this name, or it is private: check the name, or log in with `hf auth login`",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_repository_that_the_hub_keeps_back(case: str, tmp_path: Path):
    how, expected = REFUSALS[case]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_x" if how[0] == 403 else ""}
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, how)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    address, *lines = done.stdout.splitlines()
    model, reward, data = lines
    page = f"{address}/org/gated"
    assert model == "model 'org/gated' is no folder here and could not be downloaded: " + expected.replace("PAGE", page)
    assert reward == f"org/gated: {expected.replace('PAGE', page)}; or name a local CLIP folder"
    assert data == f"hf:org/gated: {expected.replace('PAGE', f'{address}/datasets/org/gated')}"

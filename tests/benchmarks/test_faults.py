"""A short version of the fault campaign: kills at random moments, and a handful of faults."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from runs import guardlit

ROOT = Path(__file__).parents[2]
FAULTS = (
    "SIGTERM within an update",
    "a bit of the last checkpoint flipped",
    "killed between writing a checkpoint and putting it in place",
    "one of two ranks is killed, without a launcher that ends the other",
)
SETTINGS = ("1-single-lora", "2-ddp-lora")

pytestmark = pytest.mark.timeout(1200)  # a busy machine may need minutes for what takes one
Lines = Mapping[str, list[dict]]


def run(out: Path, *options: object) -> Lines:
    """`python -m benchmarks.faults`: its JSON lines by kind, after all went as promised."""
    command = [sys.executable, "-m", "benchmarks.faults", "--out", out, *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    assert (out / "faults.jsonl").exists(), done.stderr[-2000:]
    rows = [json.loads(line) for line in (out / "faults.jsonl").read_text().splitlines()]
    assert done.returncode == 0, done.stdout
    return {kind: [row for row in rows if row["kind"] == kind] for kind in ("kills", "fault")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults") / "out"


@pytest.fixture(scope="module")
def lines(folder: Path) -> Lines:
    return run(folder, "--kills", 4, "--most", 2, "--settings", *SETTINGS, "--no-console", "--faults", *FAULTS)


@pytest.mark.slow
def test_killed_runs_end_as_the_undisturbed_one(lines: Lines):
    assert {h["setting"] for h in lines["kills"]} == set(SETTINGS)
    assert sum(len(h["kills"]) for h in lines["kills"]) == 4
    for history in lines["kills"]:
        assert history["differing"] == history["wrong"] == []
        assert not any(kill["stuck"] for kill in history["kills"])


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_the_promised_end(lines: Lines, fault: str):
    (outcome,) = (row for row in lines["fault"] if row["fault"] == fault)
    assert outcome["broken"] == []
    assert outcome["equal"] == "bit for bit"


@pytest.mark.slow
def test_the_comparison_can_fail(lines: Lines, folder: Path):
    """One bit of one weight of the final state, and one number of the log, are found."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.faults.compare import differing, logged
    from benchmarks.faults.lab import checkpoints

    undisturbed = next(folder.glob("runs/undisturbed-1-single-lora-*"))
    killed = folder / "runs/killed-01-1-single-lora"
    assert differing(killed, undisturbed) == []
    assert logged(killed, undisturbed)[1] == []
    last = next(p for p in reversed(checkpoints(killed)) if p.stem == "update_12")
    checkpoint = torch.load(last, weights_only=True)
    name, weight = next(iter(checkpoint["state_dict"].items()))
    weight.view(torch.int32).flatten()[0] ^= 1
    torch.save(checkpoint, last)
    assert differing(killed, undisturbed) == [f"/state_dict/{name}"]
    log = sorted(killed.glob("runs/version_*/metrics.csv"))[-1]
    log.write_text(log.read_text().replace("0.", "1."))
    assert logged(killed, undisturbed)[1]


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "error: No space left on device"), (errno.ENOENT, None)])
def test_a_full_disk_is_one_line_and_a_bug_is_not(number: int, said: str | None, monkeypatch, capsys):
    from guardlit.commands import lightning_cli as app

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(app, "GuardlitCLI", fail)
    if said is None:
        with pytest.raises(FileNotFoundError):
            guardlit("fit")
        return
    assert guardlit("fit") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "resume with --ckpt_path last" in line


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_campaign(tmp_path: Path):
    lines = run(tmp_path / "out")
    assert sum(len(h["kills"]) for h in lines["kills"]) >= 50
    assert len(lines["fault"]) >= 20

"""`guardlit evaluate` on two processes by torchrun makes the files of one process."""

from __future__ import annotations

import json
from pathlib import Path

from runs import guardlit
from torchrun import torchrun

ROOT = Path(__file__).parents[2]
COMMAND = (
    *("evaluate", "--config", ROOT / "configs/tiny_digits.yaml", "--config", ROOT / "configs/gold_tiny.yaml"),
    *("--trainer.accelerator", "cpu", "--data.rollout_batch", 4, "--images_per_prompt", 2),
)
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def test_two_processes_share_the_work_and_agree_with_one(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    jpeg = ("--gold.scorers.jpeg", "JPEGCompressibility")
    assert guardlit(*COMMAND, "--out", one) == 0
    draw = (*COMMAND, *TWO, "--out", two)
    # a single request is left for the second command: one of the processes has nothing to do
    assert torchrun(tmp_path / "both.py", draw, ("evaluate", "--rescore", "--out", two, *jpeg)) == 0
    assert guardlit("evaluate", "--rescore", "--out", one, *jpeg) == 0
    images = [{p.relative_to(out): p.read_bytes() for p in out.rglob("*.png")} for out in (one, two)]
    assert len(images[0]) == 20
    assert images[0] == images[1]
    tables = [json.loads((out / "table.json").read_text()) for out in (one, two)]
    assert len(tables[0]["models"][0]["metrics"]) == 6
    assert tables[0]["models"] == tables[1]["models"]
    assert [table["provenance"]["processes"] for table in tables] == [1, 2]

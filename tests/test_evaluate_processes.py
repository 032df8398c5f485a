"""`guardlit evaluate` on two processes by torchrun makes the files of one process."""

from __future__ import annotations

import json
from pathlib import Path

from runs import guardlit
from test_processes import TWO, torchrun

ROOT = Path(__file__).parents[1]
COMMAND = (
    *("evaluate", "--config", ROOT / "configs/tiny_digits.yaml", "--config", ROOT / "configs/gold_tiny.yaml"),
    *("--trainer.accelerator", "cpu", "--data.rollout_batch", 4, "--images_per_prompt", 2),
)


def test_two_processes_share_the_work_and_agree_with_one(tmp_path: Path):
    assert guardlit(*COMMAND, "--out", tmp_path / "one") == 0
    assert torchrun(*COMMAND, *TWO, "--out", tmp_path / "two") == 0
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.png")} for n in ("one", "two")
    )
    assert len(one) == 20
    assert one == two
    tables = [json.loads((tmp_path / name / "table.json").read_text()) for name in ("one", "two")]
    assert tables[0]["models"] == tables[1]["models"]
    assert [table["provenance"]["processes"] for table in tables] == [1, 2]

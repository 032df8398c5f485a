"""The clipped fractions: of an update, of a round's off-policy updates, and after a resume within the round."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from runs import EVERY_UPDATE, config, guardlit, newest

from guardlit.rounds.metrics import clip_fractions, off_policy_clip_fraction


def test_clip_fractions_leave_masked_samples_out():
    outputs = [
        {
            "log_ratio": torch.tensor([0.2, -0.3, 0.1]),
            "clipped": torch.tensor([True, True, False]),
            "sample_weight": torch.tensor([1.0, 2.0, 1.0]),
        },
        {
            "log_ratio": torch.tensor([0.4, 0.5]),
            "clipped": torch.tensor([True, True]),
            "sample_weight": torch.tensor([1.0, 0.0]),
        },
    ]
    above, below = clip_fractions(outputs)
    assert (float(above), float(below)) == (2 / 4, 1 / 4)  # the fifth does not count


def test_a_round_of_masked_samples_clips_nothing():
    output = {"log_ratio": torch.ones(2), "clipped": torch.ones(2, dtype=torch.bool), "sample_weight": torch.zeros(2)}
    assert [float(value) for value in clip_fractions([output])] == [0, 0]


def test_the_first_update_of_a_round_is_left_out():
    fractions = [torch.tensor(value) for value in (0.0, 0.1, 0.3)]
    assert off_policy_clip_fraction(fractions) == pytest.approx(0.2)
    assert off_policy_clip_fraction(fractions[:1]) is None
    assert off_policy_clip_fraction([]) is None


def rows(folder: Path) -> list[dict[str, str]]:
    with newest(folder, "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_round_resumed_within_logs_the_fraction_of_the_undisturbed_one(sd3_folder: Path, tmp_path: Path):
    strict = {"class_path": "GRPOGuard", "init_args": {"clip_range": 1e-6}}  # clips a part in every update
    options = {"trainer__max_epochs": 1, "data__val": None, "model__objective": strict}
    path = config(tmp_path, sd3_folder, trainer__callbacks=[EVERY_UPDATE], **options)
    assert guardlit("fit", "--config", path) == 0
    undisturbed = rows(tmp_path / "runs")
    by_update = [float(r["train/clip_above"]) + float(r["train/clip_below"]) for r in undisturbed if r["train/loss"]]
    (expected,) = (float(r["train/clip_off_policy"]) for r in undisturbed if r["train/clip_off_policy"])
    assert expected == pytest.approx(sum(by_update[1:]) / 3)
    assert by_update[0] == 0 < expected
    checkpoint = newest(tmp_path, "update_3.ckpt")
    again = ("--ckpt_path", checkpoint, "--trainer.default_root_dir", tmp_path / "again")
    assert guardlit("fit", "--config", path, *again) == 0
    (resumed,) = (float(r["train/clip_off_policy"]) for r in rows(tmp_path / "again") if r["train/clip_off_policy"])
    assert resumed == pytest.approx(expected, abs=1e-12)

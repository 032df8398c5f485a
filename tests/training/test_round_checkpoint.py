"""The newest rounds are kept, named by the rounds that are done, whatever else saves checkpoints."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from guardlit.training.defaults import complete
from guardlit.training.round_checkpoint import RoundCheckpoint


def completed(*callbacks: ModelCheckpoint, **arguments: object) -> list[ModelCheckpoint]:
    """The checkpoint callbacks that a run with these has."""
    arguments |= {"callbacks": list(callbacks)}
    complete(arguments)
    return [c for c in arguments["callbacks"] if isinstance(c, ModelCheckpoint)]  # type: ignore[attr-defined]


def test_the_name_counts_the_rounds_that_are_done():
    metrics = {"epoch": torch.tensor(2), "step": torch.tensor(12)}
    assert RoundCheckpoint().format_checkpoint_name(metrics) == "round_00003.ckpt"
    assert RoundCheckpoint().format_checkpoint_name(metrics, ver=1) == "round_00003-v1.ckpt"


def test_a_checkpoint_of_before_finds_the_state_of_its_callback():
    """Under the key of the ModelCheckpoint that earlier versions had."""
    before = ModelCheckpoint(monitor="step", mode="max", save_top_k=2, save_on_train_epoch_end=True)
    assert RoundCheckpoint().state_key == before.state_key


@pytest.mark.parametrize(
    "own", [ModelCheckpoint(), ModelCheckpoint(monitor="gold/average"), ModelCheckpoint("elsewhere")]
)
def test_one_that_keeps_others_stands_next_to_it(own: ModelCheckpoint):
    found = completed(own)
    assert found[0] is own
    assert [type(c) for c in found[1:]] == [RoundCheckpoint]
    assert len({c.state_key for c in found}) == 2  # or Lightning refuses them


@pytest.mark.parametrize("own", [RoundCheckpoint(save_top_k=-1), ModelCheckpoint(monitor="step", mode="max")])
def test_one_that_keeps_the_newest_replaces_it(own: ModelCheckpoint):
    assert completed(own) == [own]


def test_without_checkpoints_there_is_none():
    assert completed(enable_checkpointing=False) == []

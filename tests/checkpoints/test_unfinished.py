"""An update in progress goes into a checkpoint by rank, and out of it to any world size."""

from __future__ import annotations

import torch
from torch import nn

from guardlit.checkpoints.unfinished import gradients_of, outputs_of, restore_gradients, unfinished_update
from guardlit.processes.world import World

WORLD = World.single()


def with_gradient() -> nn.Linear:
    """A layer whose weight has a gradient, and whose bias has none."""
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.tensor([[1.0, 2.0]])
    return layer


def test_an_update_in_progress_is_restored():
    outputs = [{"loss": torch.tensor(1.0), "sample": torch.tensor([0, 1])}]
    part = unfinished_update(with_gradient(), outputs, WORLD)
    assert outputs_of(part, 0, 1) == outputs
    fresh = nn.Linear(2, 1)
    restore_gradients(dict(fresh.named_parameters()), gradients_of(part, 0, 1, sharded=False))
    assert fresh.weight.grad is not None
    assert fresh.weight.grad.tolist() == [[1.0, 2.0]]
    assert fresh.bias.grad is None


def test_gradients_without_outputs_are_no_update_in_progress():
    assert unfinished_update(with_gradient(), [], WORLD) == {}
    assert gradients_of({}, 0, 1, sharded=False) == {}


def test_gradients_are_kept_by_rank_and_averaged_for_another_world_size():
    part = {"gradients": [{"weight": torch.tensor([1.0])}, {"weight": torch.tensor([3.0])}]}
    assert [gradients_of(part, rank, 2, sharded=False)["weight"].item() for rank in range(2)] == [1, 3]
    assert gradients_of(part, 0, 1, sharded=False)["weight"].item() == 2
    assert gradients_of(part, 1, 2, sharded=True)["weight"].item() == 2  # for a sharded run, they are averages


def test_outputs_go_to_the_rank_that_has_their_images():
    """Of images 0 ... 3, two ranks held 0 and 2, 1 and 3; one takes them all, four take one each."""
    two = [[{"loss": torch.tensor(loss), "sample": torch.tensor(s)}] for loss, s in ((1.0, [0, 2]), (3.0, [1, 3]))]
    part = {"outputs": two}
    (one,) = outputs_of(part, 0, 1)
    assert (one["loss"], one["sample"].tolist()) == (2, [0, 1, 2, 3])
    assert [outputs_of(part, rank, 4)[0]["sample"].tolist() for rank in range(4)] == [[0], [1], [2], [3]]
    more = [[*two[r], {"loss": torch.tensor(5.0), "sample": torch.tensor([4, 6]) + r}] for r in range(2)]
    (one,) = outputs_of({"outputs": more}, 0, 1)
    assert (one["loss"], one["sample"].tolist()) == (3.5, [0, 1, 2, 3, 4, 5, 6, 7])
    assert outputs_of(part, 1, 2) == two[1]
    assert outputs_of({}, 0, 1) == []

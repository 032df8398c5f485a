"""The collectives of one rank and of two."""

from __future__ import annotations

import pytest
import torch
from forked import on_ranks

from guardlit.errors import GuardlitError
from guardlit.processes.world import World


def test_a_world_of_one_rank_needs_no_process_group():
    world = World.single()
    assert (world.rank, world.size, world.device) == (0, 1, torch.device("cpu"))
    assert torch.equal(world.gather(torch.tensor([1.0, 2.0])), torch.tensor([[1.0, 2.0]]))
    assert world.gather_objects("a") == world.gather_on_first("a") == ["a"]
    assert world.largest(-3) == -3
    assert (world.any(True), world.any(False), world.all(True), world.all(False)) == (True, False, True, False)
    world.raise_on_all(None)
    with pytest.raises(GuardlitError, match="no such file"):
        world.raise_on_all(GuardlitError("no such file"))


def _answers(world: World) -> list[object]:
    rows = torch.arange(4, dtype=torch.float64).reshape(2, 2) + 10 * world.rank
    return [
        world.gather(rows.T).tolist(),  # a view that is not contiguous
        world.gather(torch.tensor([world.rank == 1])).tolist(),
        world.gather_objects({"rank": world.rank}),
        world.gather_on_first(world.rank),
        world.largest(5 - world.rank),
        world.largest(-(5 - world.rank)),
        [world.any(world.rank == 1), world.any(False)],
        [world.all(world.rank == 1), world.all(True)],
    ]


def test_two_ranks_get_one_answer():
    first, second = on_ranks(_answers)
    assert first[0] == [[[0.0, 2.0], [1.0, 3.0]], [[10.0, 12.0], [11.0, 13.0]]]
    assert first[1:3] == [[[False], [True]], [{"rank": 0}, {"rank": 1}]]
    assert (first[3], second[3]) == ([0, 1], [])
    assert first[4:] == [5, -4, [True, False], [False, True]]
    assert first[:3] + first[4:] == second[:3] + second[4:]


def _raised(world: World) -> list[tuple[str, bool]]:
    found = []
    for failing in ((1,), (0, 1), ()):
        error = GuardlitError(f"rank {world.rank} has no model") if world.rank in failing else None
        try:
            world.raise_on_all(error)
            found.append(("", False))
        except GuardlitError as raised:
            found.append((str(raised), raised.on_all_ranks))
    return found


def test_the_lowest_rank_s_error_is_raised_on_both():
    expected = [("rank 1 has no model", True), ("rank 0 has no model", True), ("", False)]
    assert on_ranks(_raised) == [expected] * 2

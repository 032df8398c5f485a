"""Resources are released on any exit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from guardlit.processes.shutdown import release_resources


class Holder:
    """Counts how often it is closed."""

    def __init__(self, error: Exception | None = None) -> None:
        self.closed, self.error = 0, error

    def close(self) -> None:
        """Close, or fail to."""
        self.closed += 1
        if self.error is not None:
            raise self.error


def test_all_are_closed_and_a_failure_is_a_warning():
    holders = [Holder(), Holder(OSError("busy")), Holder()]
    trainer = SimpleNamespace(callbacks=[holders[0], holders[1], object()])
    with pytest.warns(UserWarning, match=r"^Holder could not be closed: busy$"):
        release_resources(trainer, SimpleNamespace(reward_runner=holders[2]))  # type: ignore[arg-type]
    assert [holder.closed for holder in holders] == [1, 1, 1]

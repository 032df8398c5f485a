"""The first round is due, every n-th after it, and the last."""

from types import SimpleNamespace

import pytest
from guardlit_callbacks.tools.rounds import is_due


def trainer(max_epochs=-1, max_steps=-1):
    return SimpleNamespace(
        max_epochs=max_epochs, max_steps=max_steps, num_training_batches=10, accumulate_grad_batches=4
    )


@pytest.mark.parametrize(
    ("last", "every", "expected"),
    [
        ({"max_epochs": 12}, 5, [1, 6, 11, 12]),
        ({"max_epochs": 11}, 5, [1, 6, 11]),
        ({"max_epochs": 4}, 1, [1, 2, 3, 4]),
        ({"max_epochs": 4}, 0, []),
        ({"max_steps": 19}, 5, [1, 6, 7]),  # three a round
        ({"max_steps": 18}, 5, [1, 6]),
        ({"max_epochs": 4, "max_steps": 18}, 5, [1, 4]),
        ({}, 5, [1, 6, 11]),
    ],
)
def test_rounds_that_are_due(last, every, expected):
    steps = last.get("max_steps", 36)
    rounds = range(1, 1 + min(last.get("max_epochs", 12), -(-steps // 3)))
    assert [number for number in rounds if is_due(trainer(**last), number, every)] == expected


def test_a_round_in_which_the_run_is_stopped_is_due():
    assert is_due(trainer(), 3, 5, stopping=True)
    assert not is_due(trainer(), 3, 0, stopping=True)

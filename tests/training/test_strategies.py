"""Strategies that a run may have, and one line for the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, StrategyRegistry
from runs import config, guardlit

from guardlit.errors import GuardlitError
from guardlit.training.limits.strategies import NAMES, checked_strategy
from guardlit.training.sharded_strategy import ShardedStrategy


@pytest.mark.parametrize("name", NAMES)
def test_a_supported_name_is_taken(name: str):
    taken = checked_strategy(name, "32-true")
    assert isinstance(taken, ShardedStrategy) if name == "fsdp" else taken == name


@pytest.mark.parametrize("name", sorted({*StrategyRegistry.available_strategies(), "nonsense"} - set(NAMES)))
def test_every_other_name_is_refused_in_one_line(name: str):
    with pytest.raises(
        GuardlitError, match=rf"^trainer\.strategy={name} is not supported: (did you mean|take one of) "
    ):
        checked_strategy(name, "32-true")


@pytest.mark.parametrize("strategy", [DDPStrategy(start_method="spawn"), FSDPStrategy()], ids=["spawn", "fsdp1"])
def test_a_class_that_cannot_work_is_refused(strategy: object):
    with pytest.raises(GuardlitError, match=r"trainer\.strategy.* is not supported: .*(take popen|take ddp or fsdp)"):
        checked_strategy(strategy, "32-true")


def test_the_command_line_says_it(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder), "--trainer.strategy", "ddp_spawn") == 2
    line = f"guardlit fit: error: trainer.strategy=ddp_spawn is not supported: take one of {', '.join(NAMES)}"
    assert capsys.readouterr().err.strip().splitlines()[-1] == line

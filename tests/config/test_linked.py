"""Values that follow from others are not ignored silently where a file gives them."""

from __future__ import annotations

from pathlib import Path

import pytest

from guardlit.commands.lightning_cli import parse

TINY = Path(__file__).parents[2] / "configs" / "tiny_digits.yaml"


def test_a_seed_of_the_data_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "run.yaml"
    file.write_text(f"base: {TINY}\ndata:\n  seed: 7\n")
    with pytest.raises(SystemExit) as stop:
        parse(["fit", "--config", str(file)])
    assert stop.value.code == 2
    follows = f"{file}:3: data.seed: follows from seed_everything, which makes it 42; set seed_everything instead"
    assert capsys.readouterr().err == f"guardlit fit: error: {follows}\n"


def test_the_seed_that_follows_may_be_written_down(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text(f"base: {TINY}\nseed_everything: 7\ndata:\n  seed: 7\n")
    assert parse(["fit", "--config", str(file)])[1].fit.data.seed == 7

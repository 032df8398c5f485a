"""benchmarks/soak.py: a short run is recorded completely, and growth is found."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROUNDS = 4


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", Path(__file__).parents[2] / "benchmarks/soak.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(count: int, **growing: float) -> list[dict[str, float]]:
    """A run in which each of `growing` rises by that much a round, and nothing else changes."""
    start = {"rss_mb": 1000.0, "heap_mb": 250.0, "fds": 11.0, "threads": 6.0, "cpu_s": 0.1, "seconds": 0.1}
    return [{name: value + growing.get(name, 0.0) * i for name, value in start.items()} for i in range(count)]


def test_a_short_run_leaves_a_line_a_round(soak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(soak, "SELDOM", 2)
    monkeypatch.setattr(soak, "PROMPTS", 40)
    monkeypatch.setattr(sys, "argv", ["soak", "--rounds", str(ROUNDS), "--out", str(tmp_path / "soak")])
    before = soak.lightning_cli.DEFAULTS
    try:
        soak.main()  # its verdict on so few rounds is one on starting up
    finally:
        soak.lightning_cli.DEFAULTS = before
    recorded = soak.read(tmp_path / "soak/soak.csv")
    assert [row["round"] for row in recorded] == [1, 2, 3, 4]
    always = {"rss_mb", "fds", "threads", "cpu_s", "seconds"}
    assert all(row.keys() >= always and all(row[name] > 0 for name in always) for row in recorded)
    assert [row["round"] for row in recorded if row.keys() >= {"heap_mb", "objects", "folder_mb"}] == [2, 4]
    assert recorded[1]["objects"] > 1e5
    assert 0 < recorded[1]["folder_mb"] < recorded[3]["folder_mb"]
    assert 10 < recorded[3]["heap_mb"] < recorded[3]["rss_mb"]
    assert list(tmp_path.rglob("round_00004.ckpt"))
    assert len(list(tmp_path.rglob("gold/step_*.npz"))) == 3  # at the start and twice more


def test_flat_series_pass(soak):
    assert soak.verdict(rows(2000)) == []
    assert soak.verdict(rows(2000, rss_mb=0.005)) == []  # 0.94 %
    assert soak.verdict(rows(2000, cpu_s=-1e-6, fds=-0.001)) == []


@pytest.mark.parametrize(
    ("growing", "said"),
    [
        ({"rss_mb": 0.006}, "resident MB grew by 1.12%"),
        ({"heap_mb": 0.002}, "heap MB grew by 1.50%"),
        ({"fds": 0.001}, "file descriptors grew from 11"),
        ({"threads": 0.001}, "threads grew from 6"),
    ],
)
def test_growth_is_a_fault(soak, growing: dict[str, float], said: str):
    (fault,) = soak.verdict(rows(2000, **growing))
    assert fault.startswith(said)


def test_a_growing_run_ends_with_1(soak, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["soak", "--out", "nowhere"])
    monkeypatch.setattr(soak, "soak", lambda folder, rounds: rows(rounds, rss_mb=0.2))
    assert soak.main() == 1
    assert "| 128 | 1019.1 |" in capsys.readouterr().out
    monkeypatch.setattr(soak, "soak", lambda folder, rounds: rows(rounds))
    assert soak.main() == 0


def test_a_spike_of_a_round_is_no_growth(soak):
    found = rows(2000)
    found[-1]["rss_mb"] = 2000.0
    assert soak.verdict(found) == []

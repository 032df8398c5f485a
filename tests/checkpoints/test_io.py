"""Checkpoints are written atomically; what is on disk stays there until something better is."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from corrupting import at, flip_near_the_end, in_a_process, shards, spoil
from runs import guardlit

from guardlit.checkpoints.integrity import find_corruption
from guardlit.checkpoints.io import SafeCheckpointIO, locked_write, remove_leftovers
from guardlit.checkpoints.manifest import write_manifest


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_rank_0_decides_and_what_one_rank_finds_corrupt_is_refused_on_all(tmp_path: Path):
    first, second = at(tmp_path, 3), at(tmp_path, 4)
    corrupt = shards(tmp_path / "a.ckpt")
    write_manifest(corrupt)
    spoil(corrupt / "__0_0.distcp", flip_near_the_end)
    assert [bool(find_corruption(corrupt, slice(rank, None, 2))) for rank in range(2)] == [False, True]

    def process(rank: int, store: str, paths: list[Path]) -> object:
        torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
        return SafeCheckpointIO(collective=True).load_checkpoint(paths[rank])["global_step"]

    def both(store: str, paths: list[Path]) -> list[object]:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda rank: in_a_process(process, rank, str(tmp_path / store), paths), range(2)))

    assert both("one", [first, second]) == [3, 3]
    one, two = both("two", [corrupt, second])
    assert one == two == f"checkpoint {corrupt} is corrupt (the checksum of __0_0.distcp is wrong)"


def test_a_run_keeps_two_and_drops_the_oldest_once_the_newest_is_on_disk(run, runs: Path, monkeypatch):
    path, checkpoints = run
    assert [p.name for p in checkpoints] == ["round_00002.ckpt", "round_00003.ckpt"]
    left = []

    def remove(self: SafeCheckpointIO, path: str) -> None:
        Path(path).unlink()
        left.append([(p.name, find_corruption(p)) for p in sorted(Path(path).parent.iterdir())])

    monkeypatch.setattr(SafeCheckpointIO, "remove_checkpoint", remove)
    assert guardlit("fit", "--config", path, "--trainer.default_root_dir", runs) == 0
    assert left == [[("round_00002.ckpt", None), ("round_00003.ckpt", None)]]


def test_a_full_disk_leaves_the_checkpoint_before_and_no_temporary_file(tmp_path: Path):
    before = at(tmp_path, 3)
    content = before.read_bytes()

    def write(path: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        SafeCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(10_000)}}, path)

    for path in (before.with_name("4_0.ckpt"), before):
        said = in_a_process(write, path)
        assert said == f"checkpoint {path} could not be written (File too large); the last one kept is {before}"
        assert [p.name for p in before.parent.iterdir()] == [before.name]
        assert before.read_bytes() == content


def test_temporary_files_are_removed_unless_they_are_being_written(tmp_path: Path):
    """They lie in an earlier run's folder; another host's is older than a day, or may still grow."""

    def die(path: Path) -> None:
        with locked_write(path) as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    old, new = at(tmp_path, 3).parent, tmp_path / "version_1/checkpoints"
    assert in_a_process(die, old / "4_0.ckpt") is None
    elsewhere = [old / f".{name}.ckpt.elsewhere.7.tmp" for name in ("old", "young")]
    for path in elsewhere:
        path.write_bytes(b"half")
    os.utime(elsewhere[0], (1e9, 1e9))
    assert len(list(old.glob(".4_0.ckpt.*.tmp"))) == 1
    with locked_write(old / "5_0.ckpt") as file:
        file.write(b"half")
        file.flush()
        at(tmp_path, 4, version=1)
        names = sorted(p.name for p in old.iterdir())
        assert [name for name in names if name.endswith(".tmp") and not name.startswith(".5_0")] == [elsewhere[1].name]
        assert len(names) == 3
    remove_leftovers(new)
    assert sorted(p.name for p in old.iterdir()) == [elsewhere[1].name, "3_0.ckpt", "5_0.ckpt"]

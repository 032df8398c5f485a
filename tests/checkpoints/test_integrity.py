"""A corrupt checkpoint is found before it is loaded."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from corrupting import flip, shards

from guardlit.checkpoints.integrity import find_corruption
from guardlit.checkpoints.io import SafeCheckpointIO
from guardlit.checkpoints.manifest import write_manifest
from guardlit.errors import GuardlitError


def same(a: object, b: object) -> bool:
    """Whether two checkpoints hold the same, bit for bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def test_a_flipped_bit_is_found_or_changes_nothing(run, tmp_path: Path):
    content = run[1][-1].read_bytes()
    whole = torch.load(run[1][-1], weights_only=True)
    draw, path = random.Random(0), tmp_path / "flipped.ckpt"
    with zipfile.ZipFile(run[1][-1]) as archive:
        directory = archive.start_dir
    places = [draw.randrange(len(content)) for _ in range(200)]
    places += [draw.randrange(directory, len(content)) for _ in range(100)]
    attributes = content.index(b"archive/data/5", directory) - 8  # bit 4: a folder, of which torch reads nothing
    found = 0
    for place, bit in [(place, draw.randrange(8)) for place in places] + [(attributes, 4)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        if find_corruption(path) is None:
            assert same(torch.load(path, weights_only=True), whole), (place, bit)
        else:
            found += 1
    assert found > 150


def test_torch_alone_takes_a_flipped_bit_for_a_weight(run, tmp_path: Path):
    """Once this fails, `find_corruption` need not read the file any more."""
    path = flip(shutil.copy(run[1][-1], tmp_path / "flipped.ckpt"))
    assert not same(torch.load(path, weights_only=True), torch.load(run[1][-1], weights_only=True))
    assert find_corruption(path) == "the checksum of its record archive/data/5 is wrong"


def test_a_truncated_checkpoint_is_one_line(run, tmp_path: Path):
    content, draw, path = run[1][-1].read_bytes(), random.Random(1), tmp_path / "cut.ckpt"
    for length in [0, 1, len(content) - 1, *(draw.randrange(len(content)) for _ in range(60))]:
        path.write_bytes(content[:length])
        with pytest.raises(GuardlitError, match=r"^checkpoint .*cut\.ckpt is corrupt \(") as error:
            SafeCheckpointIO().load_checkpoint(path)
        assert "\n" not in str(error.value)


def test_checksums_are_written_though_they_are_turned_off(tmp_path: Path):
    torch.serialization.set_crc32_options(False)
    try:
        SafeCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(100)}}, tmp_path / "a.ckpt")
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert find_corruption(tmp_path / "a.ckpt") is None


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_index_of_the_installed_torch_is_accepted(tmp_path: Path):
    """A new torch whose index names other classes fails here, and `_Index.NAMES` is to be extended."""
    folder = shards(tmp_path / "a.ckpt")
    write_manifest(folder)
    assert find_corruption(folder) is None


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_an_index_that_asks_for_code_is_refused_and_runs_nothing(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = shards(tmp_path / "evil.ckpt")
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    write_manifest(folder)
    assert find_corruption(folder) == "its .metadata asks for posix.mkdir, and code in a checkpoint is not run"
    assert not (tmp_path / "executed").exists()

"""A checkpoint folder is complete once it has its manifest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from corrupting import flip_near_the_end, shards, spoil

from guardlit.checkpoints.discovery import newest_intact
from guardlit.checkpoints.integrity import find_corruption
from guardlit.checkpoints.manifest import MANIFEST, digests, move_into_place, write_manifest


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_is_intact_once_it_has_its_manifest(tmp_path: Path):
    folder = tmp_path / "version_0/checkpoints/a.ckpt"
    temporary = shards(folder.with_name(".a.ckpt.tmp"))
    assert find_corruption(temporary) == f"incomplete: it has no {MANIFEST}, which is written last"
    own = digests(temporary, ["__0_0.distcp"])
    write_manifest(temporary, own)
    move_into_place(temporary, folder)
    assert find_corruption(folder) is None
    assert os.system(f"cd {folder} && sha256sum --quiet -c {MANIFEST}") == 0
    assert newest_intact(tmp_path) == folder
    for name in ("__0_0.distcp", ".metadata", "meta.pt", MANIFEST):
        for change in (lambda path: spoil(path, flip_near_the_end), Path.unlink):
            broken = shutil.copytree(folder, tmp_path / "broken")
            change(broken / name)
            reason = find_corruption(broken)
            assert reason, name
            assert reason.startswith(("incomplete: ", f"the checksum of {name} is wrong"))
            shutil.rmtree(broken)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_replaces_what_has_its_name(tmp_path: Path):
    for name in ("first", "second"):
        write_manifest(shards(tmp_path / name))
        (tmp_path / name / "who").write_text(name)
        move_into_place(tmp_path / name, tmp_path / "a.ckpt")
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]
    assert (tmp_path / "a.ckpt/who").read_text() == "second"

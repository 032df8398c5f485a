"""Files appear with all of their content or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from guardlit.files import atomic_write, sha256


def test_a_file_is_replaced_by_its_new_content(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "new"


def test_an_error_leaves_the_old_content_and_no_temporary_file(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("sync", [True, False])
def test_only_synced_files_are_flushed_before_they_get_their_name(tmp_path: Path, monkeypatch, sync: bool):
    path, flushed = tmp_path / "a.txt", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(path.exists()))
    with atomic_write(path, sync=sync) as file:
        file.write(b"new")
    assert flushed == ([False, True] if sync else [])  # the file before it has its name, its folder afterwards


def test_other_users_may_read_the_file_as_the_umask_says(tmp_path: Path):
    before = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a.txt") as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_sha256_is_that_of_the_content(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()

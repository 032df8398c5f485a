"""Prompt sets: what they keep in memory and on disk, and that a prompt comes back as it was read."""

from __future__ import annotations

import datetime
import errno
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guardlit.data import prompts as prompts_module
from guardlit.data.arrow_sources import ParquetFile
from guardlit.data.prompt_set import AT_ONCE, PromptSet
from guardlit.data.prompts import load_prompts
from guardlit.errors import GuardlitError
from guardlit.types import Prompt

COUNT = 3 * AT_ONCE + 17
ROWS = [{"prompt": f"a cat, number {i}", "n": i, "words": ["a", "cat"] * (i % 3)} for i in range(COUNT)]


def write(folder: Path, kind: str) -> str:
    """`ROWS` in one of the forms that a source can have."""
    path = folder / f"train.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=77)
    elif kind == "txt":
        path.write_text("".join(f"{row['prompt']}\n" for row in ROWS))
    elif kind == "csv":
        path.write_text("prompt,n\n" + "".join(f'"{row["prompt"]}",{row["n"]}\n' for row in ROWS))
    else:
        path = folder / "train.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return f"hf:{folder}" if kind == "hf" else str(path)


def expected(kind: str) -> list[Prompt]:
    keys = {"txt": (), "csv": ("n",)}.get(kind, ("n", "words"))
    return [Prompt(r["prompt"], {k: str(r[k]) if kind == "csv" else r[k] for k in keys}) for r in ROWS]


def digest(prompts: list[Prompt]) -> str:
    """As checkpoints have held it since the first version."""
    content = json.dumps([(p.text, p.metadata) for p in prompts], sort_keys=True, default=str)
    return f"{len(prompts)} prompts of SHA-256 {hashlib.sha256(content.encode()).hexdigest()[:12]}"


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet", "hf"])
def test_prompts_are_served_by_index(tmp_path: Path, kind: str):
    prompts, whole = load_prompts(write(tmp_path, kind)), expected(kind)
    assert len(prompts) == COUNT
    assert list(prompts) == whole
    for index in (0, 1, AT_ONCE - 1, AT_ONCE, COUNT - 1, -1, -COUNT):
        assert prompts[index] == whole[index]
    assert prompts[AT_ONCE - 2 : AT_ONCE + 2] == whole[AT_ONCE - 2 : AT_ONCE + 2]
    assert prompts[::-700] == whole[::-700]
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            prompts[index]
    assert prompts.digest == digest(whole)


@pytest.mark.parametrize("limit", [1, AT_ONCE, AT_ONCE + 1, COUNT + 1])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hf"])
def test_a_limit_takes_the_first_prompts(tmp_path: Path, kind: str, limit: int):
    prompts = load_prompts(write(tmp_path, kind), limit=limit)
    assert list(prompts) == expected(kind)[:limit]
    assert prompts.digest == digest(expected(kind)[:limit])


def test_no_prompts_have_a_digest_too():
    assert (len(PromptSet()), list(PromptSet()), PromptSet().digest) == (0, [], digest([]))


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet", "hf"])
def test_prompts_do_not_stay_in_memory(tmp_path: Path, kind: str):
    most, seen = 0, 0

    def alive() -> int:
        return sum(type(thing) is Prompt for thing in gc.get_objects())

    def check(prompt: Prompt) -> None:
        nonlocal most, seen
        seen += 1
        if seen % 100 == 0:
            most = max(most, alive() - before)

    source = write(tmp_path, kind)
    gc.collect()
    before = alive()
    prompts = load_prompts(source, check=check)
    assert seen == COUNT
    assert 0 < most <= 2 * AT_ONCE  # a chunk, and the one before it
    assert alive() == before
    assert prompts[COUNT - 1].text.endswith(f"number {COUNT - 1}")


def test_text_files_are_read_line_by_line(tmp_path: Path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"a cat\n" * 100 + b"caf\xe9\n")
    assert len(load_prompts(str(path), limit=100)) == 100  # what follows is not read
    with pytest.raises(GuardlitError, match=r"p\.txt:101: byte 0xe9 is not UTF-8"):
        load_prompts(str(path))


def test_a_check_sees_every_prompt_and_may_refuse_one(tmp_path: Path):
    def check(prompt: Prompt) -> None:
        if prompt.metadata["n"] == AT_ONCE + 3:
            raise GuardlitError("not this one")

    with pytest.raises(GuardlitError, match=rf"train\.parquet, row {AT_ONCE + 4}: not this one"):
        load_prompts(write(tmp_path, "parquet"), check=check)


def test_behind_a_limit_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    original = ParquetFile.chunks

    def watch(self: ParquetFile, at_once: int):
        for chunk in original(self, at_once):
            asked.append(at_once)
            yield chunk

    monkeypatch.setattr(ParquetFile, "chunks", watch)
    load_prompts(write(tmp_path, "parquet"), limit=7)
    assert asked == [7]


def test_json_metadata_comes_back_exactly(tmp_path: Path):
    rows = [
        {"prompt": "a", "z": 1, "b": {"y": None, "x": [1, "1", 1.0, True]}, "big": 2**80, "small": 5e-324},
        {"prompt": "b", "z": "text", "lone": "\ud800", "inf": float("inf"), "minus": -0.0},
        {"prompt": "c"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    whole = [{k: v for k, v in row.items() if k != "prompt"} for row in rows]
    assert [repr(p.metadata) for p in load_prompts(str(path))] == [repr(m) for m in whole]  # types and order, too


def test_arrow_metadata_comes_back_exactly(tmp_path: Path):
    day = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
    columns = {
        "time": pa.array([day, None]),
        "date": pa.array([day.date()] * 2),
        "price": pa.array([Decimal("1.50")] * 2),
        "kind": pa.array(["u", "v"]).dictionary_encode(),
        "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
        "nested": pa.array([{"a": [1, None]}, None]),
        "nothing": pa.nulls(2),
    }
    pq.write_table(pa.table({"prompt": ["a", "b"], **columns}), tmp_path / "p.parquet")
    prompts = load_prompts(str(tmp_path / "p.parquet"))
    whole = [{name: column.to_pylist()[i] for name, column in columns.items()} for i in range(2)]
    assert [repr(p.metadata) for p in prompts] == [repr(m) for m in whole]


def test_a_folder_of_json_with_values_of_several_types(tmp_path: Path):
    rows = [{"prompt": "a", "n": 1}, {"prompt": "b", "n": "x"}, {"prompt": "c", "n": {"k": [1]}}]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if not hasattr(datasets, "Json"):
        with pytest.raises(GuardlitError, match="the data set cannot be read"):
            load_prompts(f"hf:{tmp_path}")
        return
    assert list(load_prompts(f"hf:{tmp_path}")) == [Prompt(row["prompt"], {"n": row["n"]}) for row in rows]


def test_prompts_are_those_of_the_start_when_the_file_changes(tmp_path: Path):
    source = write(tmp_path, "jsonl")
    prompts = load_prompts(source)
    Path(source).write_text('{"prompt": "another"}\n')
    assert list(prompts) == expected("jsonl")


def test_the_file_is_private_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = tmp_path / "new" / "cache"
    monkeypatch.setenv("GUARDLIT_CACHE", str(cache))
    first, second = (load_prompts(write(tmp_path, "txt")) for _ in range(2))  # as two ranks do
    assert first[5] == second[5]
    assert list(cache.iterdir()) == []
    if Path("/proc/self/fd").is_dir():
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
        assert sum(name.startswith(str(cache)) for name in held) == 2
        del first, second
        gc.collect()
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd)]
        assert not [name for name in held if name.startswith(str(cache))]


def _is_link(descriptor: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{descriptor}")


def test_the_systems_temporary_folder_where_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    original = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: asked.append(dir) or original(dir=dir))
    monkeypatch.delenv("GUARDLIT_CACHE", raising=False)
    load_prompts(write(tmp_path, "txt"))
    assert asked == [tempfile.gettempdir()]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GUARDLIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(GuardlitError, match=r"^prompts cannot be kept in .*cache \(Not a directory\); set GUARDLIT_C"):
        load_prompts(write(tmp_path, "txt"))


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Full:
        def write(self, content: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None: ...

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(GuardlitError, match=r"\(No space left on device\); set GUARDLIT_CACHE to a folder with room$"):
        load_prompts(write(tmp_path, "txt"))


def test_metadata_nested_too_deep_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def too_deep(*args: object) -> None:
        raise RecursionError

    monkeypatch.setattr(prompts_module, "_checked", too_deep)
    with pytest.raises(GuardlitError, match="metadata nested hundreds of levels deep; write flat objects"):
        load_prompts(write(tmp_path, "jsonl"))


GROWTH = """
import sys, psutil
from guardlit.data.prompts import load_prompts
load_prompts("guardlit://prompts/digits.jsonl")
import pyarrow.parquet
before = psutil.Process().memory_info().rss
prompts = load_prompts(sys.argv[1])
for i in range(0, len(prompts), 997):
    prompts[i]
print(len(prompts), psutil.Process().memory_info().rss - before)
"""


@pytest.mark.slow
def test_a_million_prompts_take_no_memory(tmp_path: Path):
    count = 1_000_000
    text = "a photograph of a small cat on a large table in front of a window, late afternoon, soft light, number "
    path = tmp_path / "p.parquet"
    table = pa.table({"prompt": [f"{text}{i}" for i in range(count)], "n": list(range(count))})
    pq.write_table(table, path, row_group_size=count)
    done = subprocess.run([sys.executable, "-c", GROWTH, str(path)], capture_output=True, text=True, check=True)
    found, growth = map(int, done.stdout.split())
    assert found == count
    assert growth < 100e6

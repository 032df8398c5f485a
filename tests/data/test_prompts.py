"""Prompt files and data sets; `malformed/prompts.py` has those that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guardlit.data.prompts import given_prompts, load_prompts
from guardlit.data.sources import is_source
from guardlit.errors import GuardlitError
from guardlit.types import Prompt

PUBLISHED = Path(__file__).parents[3] / "shared" / "prompts"


def error_of(source: Path | str, **kwargs: int) -> str:
    with pytest.raises(GuardlitError) as caught:
        load_prompts(str(source), **kwargs)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_txt_keeps_order_and_duplicates(tmp_path: Path):
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffa cat\r\n a dog \r\na cat\r\n“two”\u2028lines\x0chere".encode())
    assert [p.text for p in load_prompts(str(path))] == ["a cat", "a dog", "a cat", "“two”\u2028lines\x0chere"]
    assert list(load_prompts(str(path), limit=2)) == [Prompt("a cat"), Prompt("a dog")]


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_last_line_may_lack_its_end(tmp_path: Path, end: str):
    path = tmp_path / "p.txt"
    path.write_bytes(b"one\ntwo" + end.encode())
    assert [p.text for p in load_prompts(str(path))] == ["one", "two"]


def test_jsonl_keeps_metadata(tmp_path: Path):
    path = tmp_path / "p.JSONL"
    include = [{"class": "bear", "count": 2}]
    path.write_text(json.dumps({"tag": "counting", "include": include, "prompt": "two bears"}))
    assert list(load_prompts(str(path))) == [Prompt("two bears", {"tag": "counting", "include": include})]


def test_csv_quotes_and_metadata(tmp_path: Path):
    path = tmp_path / "p.csv"
    path.write_bytes(b'\xef\xbb\xbfid,prompt\r\n1,"a ""red"", round cup"\r\n2,dog\r\n')
    assert list(load_prompts(str(path))) == [Prompt('a "red", round cup', {"id": "1"}), Prompt("dog", {"id": "2"})]


def test_parquet_drops_binary_columns(tmp_path: Path):
    path = tmp_path / "p.parquet"
    image = [{"bytes": b"\x89PNG", "path": "x.png"}]
    pq.write_table(pa.table({"prompt": ["a cat"], "n": [3], "words": [["a", "cat"]], "image": image}), path)
    assert list(load_prompts(str(path))) == [Prompt("a cat", {"n": 3, "words": ["a", "cat"]})]


def test_dataset_folder_with_options(tmp_path: Path):
    (tmp_path / "test.jsonl").write_text('{"caption": "a cat", "n": 1}\n{"caption": "a dog", "n": 2}\n')
    source = f"hf:{tmp_path}?split=test&column=caption"
    assert list(load_prompts(source)) == [Prompt("a cat", {"n": 1}), Prompt("a dog", {"n": 2})]
    assert list(load_prompts(source, limit=1)) == [Prompt("a cat", {"n": 1})]
    assert "row 1: no 'prompt' here; there is 'caption', 'n'" in error_of(f"hf:{tmp_path}?split=test")
    assert "train" in error_of(f"hf:{tmp_path}?column=caption")


@pytest.mark.parametrize("splits", [False, True])
def test_dataset_saved_to_disk(tmp_path: Path, splits: bool):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"prompt": ["a cat"], "n": [1]})
    (datasets.DatasetDict(train=data) if splits else data).save_to_disk(tmp_path / "saved")
    assert list(load_prompts(f"hf:{tmp_path / 'saved'}")) == [Prompt("a cat", {"n": 1})]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Data sets that `save_to_disk` wrote: with splits, without, and with a split's name."""
    datasets = pytest.importorskip("datasets")
    one, two = (datasets.Dataset.from_dict({"prompt": [text]}) for text in ("a cat", "a dog"))
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, test=two).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict(validation=two).save_to_disk(tmp_path / "validation")
    datasets.Dataset.from_dict({"prompt": ["a cup"]}, split="test").save_to_disk(tmp_path / "test")
    return tmp_path


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("one", "a cat"),
        ("one?split=train", "a cat"),
        ("splits", "a cat"),
        ("splits?split=test", "a dog"),
        ("validation?split=validation", "a dog"),
        ("test", "a cup"),
        ("test?split=test", "a cup"),
    ],
)
def test_splits_saved_to_disk(saved: Path, source: str, text: str):
    assert [p.text for p in load_prompts(f"hf:{saved}/{source}")] == [text]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("one?split=test", "no split 'test' here; there is 'train'; choose one with ?split=NAME"),
        ("test?split=train", "no split 'train' here; there is 'test'; choose one with ?split=NAME"),
        (
            "splits?split=validation",
            "no split 'validation' here; there is 'train', 'test'; choose one with ?split=NAME",
        ),
        ("validation", "no split 'train' here; there is 'validation'; choose one with ?split=NAME"),
        (
            "one?split=train[:1]",
            "no split 'train[:1]' here; there is 'train'; data.train_limit takes the first prompts",
        ),
        ("splits?config=c", "a data set saved to disk has no configurations; leave out config"),
    ],
)
def test_a_split_that_was_not_saved_is_refused(saved: Path, source: str, message: str):
    assert error_of(f"hf:{saved}/{source}") == f"hf:{saved}/{source}: {message}"


INVISIBLE = {
    "\ufeffa\ufeff cat\ufeff": "a cat",  # of files that were joined
    "\u200ba cat\u2060 \u00ad": "a cat",
    "\u200e שלום \u200f": "שלום",
    "a\u200dcat and 👩\u200d🚀": "a\u200dcat and 👩\u200d🚀",
    "❤\ufe0f": "❤\ufe0f",
    "🏴\U000e0067\U000e0062\U000e007f": "🏴\U000e0067\U000e0062\U000e007f",
}


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_byte_order_marks_and_joiners_at_the_ends_go(tmp_path: Path, kind: str):
    path = tmp_path / f"p.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"prompt": list(INVISIBLE)}), path)
    else:
        lines = map(json.dumps, [{"prompt": text} for text in INVISIBLE]) if kind == "jsonl" else INVISIBLE
        path.write_text("prompt\n" * (kind == "csv") + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert [p.text for p in load_prompts(str(path))] == list(INVISIBLE.values())


@pytest.mark.parametrize(
    "text", ["\u200b", "\ufeff", "\u00ad\u200d", "\u3164", "\u2800", "\u115f", "\ufe0f", "\u0301", "\x1a"]
)
def test_a_line_that_shows_nothing_is_no_prompt(tmp_path: Path, text: str):
    (tmp_path / "p.txt").write_text(f"a cat\n{text}\n", encoding="utf-8")
    assert f"p.txt:2: the prompt holds only invisible characters (U+{ord(text[0]):04X}" in error_of(tmp_path / "p.txt")


def test_csv_records_over_several_lines(tmp_path: Path):
    path = tmp_path / "p.csv"
    path.write_text('prompt,n\n"a\ncat",1\n"a dog",2,3\n')
    assert "p.csv:4: 3 fields where the header has 2" in error_of(path)
    path.write_text('prompt,n\n"a\ncat",1\n"a\n\n\ndog\n')
    assert "p.csv:4: not CSV (its quotes are never closed)" in error_of(path)
    path.write_text('prompt,n\n"a\ncat",1\n"a dog",2\n')
    assert list(load_prompts(str(path))) == [Prompt("a\ncat", {"n": "1"}), Prompt("a dog", {"n": "2"})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:org/name", True),
        ("guardlit://prompts/everyday.txt", True),
        ("prompts.txt", True),
        ("missing.TXT", True),
        ("my prompts.jsonl", True),
        ("https://example.org/p", True),
        ("there", True),
        ("a red cup", False),
        ("a red cup.", False),
        ("a cat and/or a dog", False),
        ("cat", False),
        ("Vol.2", False),
        ("", False),
    ],
)
def test_what_is_a_source_and_what_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: bool):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert is_source(text) is expected


def test_a_command_takes_texts_and_sources(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat", "n": 1}\n{"prompt": "a dog"}\n')
    given = [" a red cup ", str(tmp_path / "p.jsonl")]
    assert given_prompts("--prompts", given) == [Prompt("a red cup"), Prompt("a cat", {"n": 1}), Prompt("a dog")]
    assert given_prompts("--prompts", "a red cup") == [Prompt("a red cup")]
    with pytest.raises(GuardlitError, match=r"^--prompts: text 2: the prompt is blank"):
        given_prompts("--prompts", ["a", " "])
    with pytest.raises(GuardlitError, match=r"^no prompt file missing\.txt in "):
        given_prompts("--prompts", ["a", "missing.txt"])


def test_a_line_break_within_a_key_makes_no_second_line(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"text": "ok", "a\\nb": 1}')
    assert "p.jsonl:1: no 'prompt' here; there is 'text', 'a\\nb'" in error_of(tmp_path / "p.jsonl")


def test_missing_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "train.txt").write_text("a cat")
    monkeypatch.chdir(tmp_path)
    assert error_of("trian.txt") == f"no prompt file trian.txt in {tmp_path}; did you mean train.txt?"
    assert f"its folder {tmp_path}/nowhere does not exist" in error_of("nowhere/train.txt")
    assert "is a folder" in error_of(tmp_path)
    assert "at least 1" in error_of("train.txt", limit=0)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published prompt files are not part of the repository")
@pytest.mark.parametrize(
    ("name", "count"), [("ocr_test.txt", 1018), ("geneval_test.jsonl", 2212), ("drawbench_test.txt", 1000)]
)
def test_published_files(name: str, count: int):
    prompts = load_prompts(str(PUBLISHED / name))
    assert len(prompts) == count
    assert all(("include" in p.metadata) == name.startswith("geneval") for p in prompts)

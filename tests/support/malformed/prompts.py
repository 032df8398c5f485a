"""Malformed prompt files and data sets, as data.train; wrong metadata for the scorers that read them."""
# ruff: noqa: RUF001 (Cyrillic prompts are refused)

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from malformed.case import FIT, Case, World, file, line

TRAIN = [*FIT, "--data.train"]
COUNTING = {"prompt": "two dogs", "tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": []}


def _file(what: str, name: str, content: str | bytes, place: str, found: str, right: str) -> Case:
    return file(f"{name}: {what}", name, content, TRAIN, f"{name}{place}", found, right)


def _parquet(what: str, table: pa.Table | None, place: str, found: str, right: str, cut: int | None = None) -> Case:
    sink = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a cat"]}) if table is None else table, sink)
    return _file(what, "p.parquet", sink.getvalue()[:cut], place, found, right)


def _named(what: str, source: str, place: str, found: str, right: str) -> Case:
    return line(f"prompts: {what}", [*TRAIN, source], place, found, right)


def _made(what: str, make: Callable[[Path], object], place: str, found: str, right: str) -> Case:
    """A prompt file that is no regular one."""

    def spoil(world: World) -> Sequence[str]:
        make(world.folder / "odd.txt")
        return [*TRAIN, "odd.txt"]

    return Case(f"prompts: {what}", spoil, place, found, right)


def _folder(what: str, files: dict[str, str], options: str, found: str, right: str) -> Case:
    """A data set folder."""

    def spoil(world: World) -> Sequence[str]:
        (world.folder / "set").mkdir()
        for name, content in files.items():
            world.write(f"set/{name}", content.replace("MARKER", str(world.marker)))
        return [*TRAIN, f"hf:./set{options}"]

    return Case(f"data set: {what}", spoil, "hf:./set", found, right)


def _metadata(what: str, found: str, right: str, **changes: object) -> Case:
    rows = json.dumps(COUNTING) + "\n" + json.dumps(COUNTING | changes) + "\n"
    command = [*FIT, "--model.reward", "GenEval", "--model.reward.detector", "detector", "--data.train"]
    return file(f"GenEval: {what}", "g.jsonl", rows, command, "prompt 'two dogs'", found, right)


UTF8 = "save the file as UTF-8"
TEXT = [
    _file("empty", "p.txt", "", ": ", "it is empty", "at least one prompt"),
    _file("byte order mark alone", "p.txt", b"\xef\xbb\xbf", ": ", "it is empty", "at least one prompt"),
    _file("blank line", "p.txt", "a cat\n\na dog\n", ":2", "is blank", "write a prompt"),
    _file("white space", "p.txt", "a cat\n \t\n", ":2", "is blank", "write a prompt"),
    _file(
        "zero-width space", "p.txt", "a cat\n\u200b\u200b\n", ":2", "invisible characters (U+200B)", "write a prompt"
    ),
    _file("end-of-file mark", "p.txt", "a cat\n\x1a", ":2", "invisible characters (U+001A)", "remove the line"),
    _file("UTF-16", "p.txt", "a cat\n".encode("utf-16"), ": ", "it is UTF-16 text", UTF8),
    _file("UTF-32", "p.txt", "a cat\n".encode("utf-32"), ": ", "it is UTF-32 text", UTF8),
    _file("UTF-16 without mark", "p.txt", "a cat\n".encode("utf-16-le"), ":1", "a NUL", UTF8),
    _file("Latin-1", "p.txt", "a cat\ncafé\n".encode("latin1"), ":2", "byte 0xe9", UTF8),
    _file("Windows quotes", "p.txt", b"\x93a cat\x94\n", ":1", "byte 0x93", UTF8),
    _file("gzip", "p.txt", gzip.compress(b"a cat\n"), ": ", "it is a gzip file", "unpack it"),
    _file("zip", "p.txt", b"PK\x03\x04\x14\x00", ": ", "it is a zip file", "unpack it"),
    _file("parquet", "p.txt", b"PAR1\x15\x04", ": ", "it is a parquet file", "name it .parquet"),
    _file("name of a gzip file", "p.txt.gz", b"", ": ", "unknown kind of prompt file '.gz'", "unpack it with gunzip"),
    _file("JSON", "p.json", "[]", ": ", "unknown kind of prompt file '.json'", "one object a line, as .jsonl"),
    _file("tabs", "p.tsv", "prompt\n", ": ", "unknown kind of prompt file '.tsv'", "by commas, as .csv"),
    _file("NUL", "p.txt", b"a cat\na\0dog\n", ":2", "a NUL", UTF8),
    _file("2001 characters", "p.txt", "x" * 2001, ":1", "has 2001 characters", "2000 allowed"),
    _file("5 MB in a line", "p.txt", "x" * 5_000_000, ":1", "has 5000000 characters", "2000 allowed"),
    _file("lines of an old Mac", "p.txt", "a cat\ra dog\r", ":1", "a carriage return", "end lines with LF"),
    _file("unknown kind", "p.yaml", "- a cat\n", ": ", "unknown kind of prompt file '.yaml'", "known are .txt"),
    _file("no suffix", "prompts", "a cat\n", ": ", "unknown kind of prompt file ''", "known are .txt"),
]
JSONL = [
    _file("list", "p.jsonl", "[1]\n", ":1", "JSON of type list", "one object with the key 'prompt'"),
    _file("half a line", "p.jsonl", '{"prompt": "a"}\n{"prompt": "b\n', ":2", "not JSON", "each line is one object"),
    _file("one list of all", "p.jsonl", '[\n{"prompt": "a"}\n]\n', ":1", "not JSON", "each line is one object"),
    _file("blank line", "p.jsonl", '{"prompt": "a"}\n\n', ":2", "blank", "write an object with the key 'prompt'"),
    _file("other key", "p.jsonl", '{"text": "a"}\n', ":1", "there is 'text'", "call the text's key 'prompt'"),
    _file("UTF-16", "p.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), ": ", "it is UTF-16 text", UTF8),
    _file("number", "p.jsonl", '{"prompt": 3}\n', ":1", "of type int", "not a text"),
    _file("null", "p.jsonl", '{"prompt": null}\n', ":1", "of type NoneType", "not a text"),
    _file("key twice", "p.jsonl", '{"prompt": "a", "prompt": "b"}\n', ":1", "'prompt' is there twice", "keep one"),
    _file("half a surrogate", "p.jsonl", '{"prompt": "\\ud800"}\n', ":1", "half a surrogate pair", UTF8),
    _file("deep", "p.jsonl", "[" * 100_000, ":1", "thousands of levels deep", "JSON"),
    _file("5000 digits", "p.jsonl", f'{{"prompt": "a", "n": {"9" * 5000}}}', ":1", "5000 digits", "limit (4300"),
    _file("not UTF-8", "p.jsonl", b'{"prompt": "caf\xe9"}', ":1", "byte 0xe9", UTF8),
]
CSV = [
    _file("blank header", "p.csv", "\nprompt\na\n", ":1", "the line is blank", "the first line must name the columns"),
    _file("header alone", "p.csv", "prompt\n", ": ", "it is empty", "at least one prompt"),
    _file("other column", "p.csv", "id,text\n1,a\n", ":1", "there is 'id', 'text'", "one of them 'prompt'"),
    _file(
        "unquoted comma",
        "p.csv",
        "id,prompt\n1,a,b\n",
        ":2",
        "3 fields",
        "the header has 2; put a text with commas in quotes",
    ),
    _file("missing comma", "p.csv", "id,prompt\n1\n", ":2", "1 field where the header has 2", "a comma is missing"),
    _file("open quote", "p.csv", 'id,prompt\n1,"a\n2,b\n', ":2", "its quotes are never closed", "not CSV"),
    _file("text after quotes", "p.csv", 'prompt\n"a" b\n', ":2", "expected after", "write a quote within quotes twice"),
    _file("semicolons", "p.csv", "id;prompt\n1;a\n", ":1", "there is 'id;prompt'", "separate columns by , not ';'"),
    _file("column twice", "p.csv", "prompt,prompt\na,b\n", ":1", "'prompt' is there twice", "keep one"),
    _file("blank line", "p.csv", "prompt\na\n\n", ":3", "the line is blank", "remove it"),
    _file("blank line of two columns", "p.csv", "prompt,n\na,1\n \n", ":3", "the line is blank", "remove it"),
    _file("NUL", "p.csv", b"prompt\na\0b\n", ":2", "a NUL", UTF8),
    _file("huge field", "p.csv", "prompt\n" + "x" * 200_000, ":2", "larger than field limit", "not CSV"),
]
INVALID = pa.StringArray.from_buffers(1, pa.py_buffer(bytes([0, 0, 0, 0, 2, 0, 0, 0])), pa.py_buffer(b"\xff\xfe"))
PARQUET = [
    _parquet("cut short", None, ": ", "magic bytes not found", "not a readable parquet file", cut=-20),
    _parquet("its beginning", None, ": ", "magic bytes not found", "not a readable parquet file", cut=100),
    _file("empty", "p.parquet", b"", ": ", "0 bytes", "not a readable parquet file"),
    _file("text", "p.parquet", b"a cat\n", ": ", "6 bytes", "not a readable parquet file"),
    _parquet(
        "other column", pa.table({"text": ["a"]}), ", row 1", "there is 'text'", "call the column of the texts 'prompt'"
    ),
    _parquet("numbers", pa.table({"prompt": [1]}), ", row 1", "of type int", "not a text"),
    _parquet("null", pa.table({"prompt": ["a", None]}), ", row 2", "of type NoneType", "not a text"),
    _parquet("no rows", pa.table({"prompt": pa.array([], pa.string())}), ": ", "it is empty", "at least one prompt"),
    _parquet("bytes", pa.table({"prompt": [b"a"]}), ", row 1", "there is none", "no 'prompt' here"),
    _parquet("not UTF-8", pa.table({"prompt": INVALID}), ": ", "byte 0xff", "not a readable parquet file"),
    _parquet(
        "column twice",
        pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]),
        ": ",
        "'prompt' is there twice",
        "keep one",
    ),
]
PLACES = [
    _named("missing file", "nope.txt", "in /", "no prompt file nope.txt", "no prompt file"),
    _named("misspelt file", "promts.txt", "in /", "no prompt file promts.txt", "did you mean prompts.txt?"),
    _named("missing folder", "no/where.txt", "no/where.txt", "does not exist", "hf:org/name"),
    _named("folder", "model", "model", "is a folder", "name a prompt file in it"),
    _named("no name", "", ".", "is a folder", "name a prompt file in it"),
    _named("name of 300 letters", "a" * 300 + ".txt", "a.txt", "File name too long", "name a prompt file"),
    _named(
        "web address",
        "https://example.org/p.txt",
        "https://example.org/p.txt",
        "not read from addresses",
        "download the file",
    ),
    _named(
        "address of the hub",
        "https://huggingface.co/datasets/org/name",
        "https://huggingface.co/datasets/org/name",
        "not read from addresses",
        "write hf:org/name",
    ),
    _named("device", "/dev/zero", "/dev/zero", "no regular file", "a file on disk"),
    _named(
        "unknown asset", "guardlit://prompts/no.txt", "guardlit://prompts/no.txt", "nothing of this", "everyday.txt"
    ),
    _named("asset above assets", "guardlit://../errors.py", "guardlit://../errors.py", "nothing of this", "there are"),
    _made("pipe", os.mkfifo, "odd.txt", "no regular file", "a file on disk"),
    _made("link to a device", lambda p: p.symlink_to("/dev/zero"), "odd.txt", "no regular file", "a file on disk"),
    _made("link to itself", lambda p: p.symlink_to(p), "in /", "no prompt file odd.txt", "no prompt file"),
    _made("link to nothing", lambda p: p.symlink_to("gone"), "in /", "no prompt file odd.txt", "no prompt file"),
    line("validation prompts", [*FIT, "--data.val", "nope.csv"], "in /", "no prompt file nope.csv", "no prompt file"),
]
ROW = '{"prompt": "a"}\n'
SCRIPT = "import pathlib\npathlib.Path('MARKER').touch()\n"
SETS = [
    _named("data set without a name", "hf:", "hf:", "hf::", "hf:org/name?config=c&split=train&column=prompt"),
    _named("misspelt option", "hf:a/b?colum=x", "hf:a/b?colum=x", "colum", "split=train&column=prompt"),
    _named("missing data set folder", "hf:./none", "hf:./none", "there is no folder", "/none"),
    _named("option twice", "hf:a/b?split=x&split=y", "hf:a/b", "split=x&split=y", "each option once"),
    _named("option without a value", "hf:a/b?split=", "hf:a/b?split=", "split=:", "split=train&column=prompt"),
    _named("file as a data set", "hf:prompts.txt", "hf:prompts.txt", "prompts.txt is a file", "write it without hf:"),
    _named("folder without ./", "hf:a/b/c", "hf:a/b/c", "there is no folder a/b/c", "hf:org/name"),
    _named("data set out of reach", "hf:org/none", "hf:org/none", "cannot be read", "is the machine online?"),
    _folder("empty folder", {}, "", "cannot be read", "data files"),
    _folder(
        "misspelt split", {"train.jsonl": ROW}, "?split=tran", "no split 'tran' here", "there is 'train'; choose one"
    ),
    _folder("two splits", {"train.jsonl": ROW}, "?split=train+test", "no split 'train+test'", "there is 'train'"),
    _folder(
        "slice", {"train.jsonl": ROW}, "?split=train[:9]", "no split 'train[:9]'", "data.train_limit takes the first"
    ),
    _folder(
        "missing column",
        {"train.jsonl": ROW},
        "?column=caption",
        "no 'caption' here",
        "'prompt'; choose one with ?column=NAME",
    ),
    _folder("missing config", {"train.jsonl": ROW}, "?config=c", "'c' not found", "['default']"),
    _folder("broken JSON", {"train.jsonl": '{"prompt":\n'}, "", "JSON parse error", "cannot be read"),
    _folder("broken state", {"state.json": "{"}, "", "cannot be read", "neither a `Dataset` directory nor"),
    _folder("program", {"set.py": SCRIPT}, "", "found set.py", "no longer supported"),
]
METADATA = [
    _metadata("no include", "include", "GenEval", include=None),
    _metadata("unknown class", "'unicorn'", "GenEval", include=[{"class": "unicorn", "count": 1}]),
    _metadata("word for count", "'two'", "GenEval", include=[{"class": "dog", "count": "two"}]),
    _metadata("negative count", "-1", "GenEval", include=[{"class": "dog", "count": -1}]),
    _metadata("unknown color", "'mauve'", "GenEval", include=[{"class": "dog", "count": 1, "color": "mauve"}]),
    _metadata("number for object", "3", "GenEval", include=[3]),
    line(
        "OCR: nothing quoted",
        [*FIT, "--model.reward", "OCR"],
        "a cat on a table",
        "no text in quotes",
        "put the text to be drawn in",
    ),
    file(
        "OCR: Cyrillic",
        "ocr.txt",
        'a sign "OPEN"\na sign "Москва"\n',
        [*FIT, "--model.reward", "OCR", "--data.train"],
        "ocr.txt:2: reward 'ocr' cannot score the prompt 'a sign \"Москва\"'",
        "the recognizer cannot read м о с к в а",
        "it reads European letters in Latin script",
    ),
    line("digits: no digit", [*FIT, "--model.reward", "DigitProbability"], "a cat on a table", "digit", "digit"),
]
CASES = [*TEXT, *JSONL, *CSV, *PARQUET, *PLACES, *SETS, *METADATA]

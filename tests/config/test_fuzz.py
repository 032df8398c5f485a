"""Random prompt files and configurations give prompts or a run, or else one line: 400 here, 10,000 if asked to.

nice pytest -m slow tests/config/test_fuzz.py      # some two minutes of one processor
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed.parsers import built_once
from runs import config

from guardlit.data.prompts import load_prompts
from guardlit.errors import GuardlitError
from guardlit.types import Prompt

Draw = Callable[[st.SearchStrategy[Any]], Any]
ORDINARY, THOROUGH = 50, 1_250  # examples of each of the four kinds of prompt file and of configuration
SUFFIXES = [".txt", ".jsonl", ".csv", ".parquet"]


def fuzz(count: int):
    """A number of examples; the ordinary ones are the same in every run."""
    return settings(
        max_examples=count,
        derandomize=count == ORDINARY,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def in_both_sizes(test: Callable[..., None]) -> Callable[..., None]:
    """A property, tried on few examples in every run of the suite and on many in the slow one."""
    sizes = [pytest.param(ORDINARY), pytest.param(THOROUGH, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]
    return pytest.mark.parametrize("count", sizes)(test)


# prompt files --------------------------------------------------------------------------------------------------------

TEXTS = st.text(alphabet='{}[]":, \r\n\t\u2028\0\ud800aé"prompt0\\-eENaN', max_size=80)
ROWS = st.dictionaries(
    st.sampled_from(["prompt", "include", "", "tag"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=3),
    max_size=3,
)


@st.composite
def prompt_files(draw: Draw, suffix: str) -> bytes:
    """Any bytes, something like text, or a file that was right before some of its bytes were changed."""
    text = draw(st.lists(ROWS, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows))) | TEXTS)
    content: bytes = draw(st.just(text.encode("utf-8", "surrogatepass")) | st.binary(max_size=120))
    if suffix == ".csv" and draw(st.booleans()):
        content = b"prompt,x\n" + content
    if suffix == ".parquet":
        content = parquet(draw(st.lists(st.none() | st.text(max_size=5), max_size=3)))
        for place, byte in draw(
            st.lists(st.tuples(st.integers(0, len(content) - 1), st.binary(max_size=2)), max_size=6)
        ):
            content = content[:place] + byte + content[place + 1 :]
    return content


def parquet(prompts: list[str | None]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.table({"prompt": pa.array(prompts, pa.string())}), sink)
    return sink.getvalue()


def prompts_or_line(path: Path) -> tuple[list[Prompt] | None, str]:
    try:
        return load_prompts(str(path)), ""
    except GuardlitError as error:
        return None, str(error)


@in_both_sizes
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_prompt_file_gives_prompts_or_one_line(count: int, suffix: str, tmp_path: Path):
    path = tmp_path / f"p{suffix}"

    @fuzz(count)
    @given(prompt_files(suffix))
    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        prompts, said = prompts_or_line(path)
        assert said.startswith(str(path)) if prompts is None else prompts
        assert len(said.splitlines()) == (prompts is None)
        for prompt in prompts or ():
            assert prompt.text == prompt.text.strip() != ""
            assert b"\0" not in prompt.text.encode("utf-8")

    try_one()


# configurations ------------------------------------------------------------------------------------------------------

WORDS = [
    "FlowSDE",
    "CPS",
    "GRPOGuard",
    "JPEGCompressibility",
    "SD3Policy",
    "torch.nn.Linear",
    "os.getcwd",
    "auto",
    "x",
    "",
]
NUMBERS = [0, -1, 1, 3, 2**31, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf]
SCALARS = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(WORDS) | st.text(max_size=6)
KEYS = st.sampled_from(["class_path", "init_args", "rank", "weight", "model", "base", "dict_kwargs"]) | st.text(
    max_size=6
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=5)


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in nested mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from places(value, (*above, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


@st.composite
def changed_settings(draw: Draw, right: dict[str, Any]) -> bytes:
    """A configuration with up to three keys taken away, emptied, renamed, added or given other values."""
    tree = copy.deepcopy(right)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(tree))
        if not found:
            break
        *above, key = draw(st.sampled_from(found))
        parent = at(tree, tuple(above))
        match draw(st.sampled_from(["take away", "empty", "rename", "add", "replace"])):
            case "take away":
                del parent[key]
            case "empty":
                parent[key] = None
            case "rename" if isinstance(parent, dict):
                parent[draw(st.just(f"{key}s") | st.just(key[:-1]) | KEYS)] = parent.pop(key)
            case "add" if isinstance(parent, dict):
                parent[draw(KEYS)] = draw(VALUES)
            case _:
                parent[key] = draw(VALUES)
    return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")


@st.composite
def changed_text(draw: Draw, right: str) -> bytes:
    """The text of a configuration with pieces taken out and others put in."""
    text = right
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 12))
        text = text[:start] + draw(st.text(alphabet="{}[]:,-&*!|>'\"%@`#?\n\t <=0123abé\0", max_size=5)) + text[end:]
    return text.encode("utf-8", "surrogatepass")


def outcome(path: Path) -> str | None:
    """The one line that a configuration gets, or None where a run can be made of it."""
    from guardlit.commands.plan import planned

    before, said, code = sys.argv, io.StringIO(), None
    try:
        with contextlib.redirect_stderr(said):
            run = planned(["--config", str(path)])
            return None if run.plan.images > 0 and run.rounds >= 0 else "no run"
    except GuardlitError as error:
        return " ".join(str(error).split())  # as the command line does
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    assert code == 2
    assert said.getvalue().count("\n") == 1
    return said.getvalue()


KINDS: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[bytes]]] = {
    "settings": changed_settings,
    "text": lambda right: changed_text(yaml.safe_dump(right)),
    "words": lambda _: TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    "bytes": lambda _: st.binary(max_size=120),
}


@in_both_sizes
@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_gives_a_run_or_one_line(count: int, kind: str, sd3_folder: Path, tmp_path: Path):
    right = yaml.safe_load(config(tmp_path, sd3_folder).read_text())
    path = tmp_path / "fuzzed.yaml"
    refused = []

    @fuzz(count)
    @given(KINDS[kind](right))
    def try_one(content: bytes) -> None:
        path.write_bytes(content)
        said = outcome(path)
        assert said is None or len(said) > 10
        refused.append(said is not None)

    with built_once():
        try_one()
    assert any(refused)
    assert kind != "settings" or not all(refused)

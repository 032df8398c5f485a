"""Prompts from files and data sets; whatever is wrong with them is one line that names the place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from guardlit.data.prompt_set import AT_ONCE, PromptSet, Row
from guardlit.data.sources import Reader, is_source, reader_of
from guardlit.data.texts import checked
from guardlit.errors import GuardlitError
from guardlit.types import Prompt


def load_prompts(source: str, *, limit: int | None = None, check: Callable[[Prompt], None] | None = None) -> PromptSet:
    """Read and check prompts in the order of their file; duplicates are kept, white space around a prompt is not.

    Every row is checked in one pass that keeps `AT_ONCE` rows in memory; the prompts are on disk afterwards, served by
    index.

    Args:
        source: one of
            `prompts.txt`: one prompt a line;
            `prompts.jsonl`: one object a line with the key "prompt", its other keys are metadata (GenEval's files);
            `prompts.csv`, `prompts.parquet`: a column "prompt", the other columns are metadata;
            `hf:org/name?config=c&split=train&column=caption`: a Hugging Face data set, streamed. All options may be
            left out; they stand for the only config, `split=train` and `column=prompt`. Columns that hold binary data
            (images) are not read. `hf:path/to/folder` reads a local data set folder the same way;
            `guardlit://prompts/...`: a file that comes with guardlit.
        limit: stop after that many prompts; what follows is not checked.
        check: called with every prompt; raises `GuardlitError` for one that the run cannot use.

    Raises:
        GuardlitError: nothing there, not readable, or a prompt that is blank, over-long or not text.
    """
    if limit is not None and limit < 1:
        raise GuardlitError(f"limit of {source} is {limit}; it must be at least 1, or null for all prompts")
    reader = reader_of(source)
    try:
        prompts = PromptSet(_checked(reader, limit, check), reader.unpack)
    except RecursionError as error:
        raise GuardlitError(f"{source}: metadata nested hundreds of levels deep; write flat objects") from error
    if not prompts:
        raise GuardlitError(f"{source}: it is empty; at least one prompt is needed")
    return prompts


def _checked(
    reader: Reader, limit: int | None, check: Callable[[Prompt], None] | None
) -> Iterator[tuple[list[Prompt], Any]]:
    """Checked prompts with the batch that holds them, until there are `limit` or no more."""
    left = limit
    for rows, pack in reader.chunks(min(limit or AT_ONCE, AT_ONCE)):
        prompts = [_usable(row, check) for row in islice(rows, left)]
        if prompts:
            yield prompts, pack(prompts)
        left = None if left is None else left - len(prompts)
        if not prompts or left == 0:
            return


def _usable(row: Row, check: Callable[[Prompt], None] | None) -> Prompt:
    place, text, metadata = row
    prompt = Prompt(checked(place, text), metadata)
    if check is not None:
        try:
            check(prompt)
        except GuardlitError as error:
            raise GuardlitError(f"{place}: {error}") from error
    return prompt


def given_prompts(place: str, given: Sequence[str] | str) -> list[Prompt]:
    """Prompts that a command was given: texts as they are, and those of files and data sets.

    Args:
        place: the option, for messages.
        given: each a text or a source.

    Raises:
        GuardlitError: as `load_prompts`.
    """
    prompts: list[Prompt] = []
    for i, text in enumerate([given] if isinstance(given, str) else given, start=1):
        prompts += load_prompts(text) if is_source(text) else [Prompt(checked(f"{place}: text {i}", text))]
    return prompts

"""A prompt set: read once, checked on the way, then served by index from a file of Arrow batches."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, overload

from guardlit.errors import GuardlitError
from guardlit.types import Prompt

AT_ONCE = 500
"""Rows of a source that are in memory at once, and rows of an Arrow batch in the file."""

Row = tuple[str, object, Mapping[str, Any]]
"""Where a prompt stands, its text as read (not yet checked), and its metadata."""
Pack = Callable[[Sequence[Prompt]], Any]
"""Makes an Arrow batch of the first prompts of a chunk."""
Unpack = Callable[[dict[str, Any]], Prompt]
"""Makes a prompt of a row of such a batch."""
Chunk = tuple[Iterable[Row], Pack]
"""Up to `AT_ONCE` rows of a source, and how to keep them. An empty chunk ends the source."""


class PromptSet(Sequence[Prompt]):
    """Prompts by index, of which none stays in memory.

    They are in a private temporary file, from which the batch of a prompt is read when the prompt is asked for.

    Args:
        chunks: checked prompts and the Arrow batch (or table) that holds them, in order.
        unpack: makes a prompt of a row of a batch.

    Raises:
        GuardlitError: the temporary file cannot be written.
    """

    def __init__(self, chunks: Iterable[tuple[Sequence[Prompt], Any]] = (), unpack: Unpack | None = None) -> None:
        self._unpack = unpack
        self._rows = [0]  # before each batch, and in all
        self._file = _PrivateFile()
        self.digest = self._write(chunks)
        """Number of prompts and SHA-256 of texts and metadata: what a checkpoint and a run must agree on."""

    def _write(self, chunks: Iterable[tuple[Sequence[Prompt], Any]]) -> str:
        sha256 = hashlib.sha256(b"[")  # of the JSON list of all prompts
        for prompts, batch in chunks:
            rows = json.dumps([(p.text, p.metadata) for p in prompts], sort_keys=True, default=str)
            sha256.update((", " * bool(len(self)) + rows[1:-1]).encode())
            self._file.append(_stream(batch))
            self._rows.append(len(self) + len(prompts))
        sha256.update(b"]")
        return f"{len(self)} prompts of SHA-256 {sha256.hexdigest()[:12]}"

    def __len__(self) -> int:
        return self._rows[-1]

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        index %= len(self)
        batch = bisect_right(self._rows, index) - 1
        return self._prompts(self._batch(batch).slice(index - self._rows[batch], 1))[0]

    def __iter__(self) -> Iterator[Prompt]:
        for batch in range(len(self._rows) - 1):
            yield from self._prompts(self._batch(batch))

    def _batch(self, number: int) -> Any:
        import pyarrow as pa

        return pa.ipc.open_stream(self._file.read(number)).read_all()

    def _prompts(self, table: Any) -> list[Prompt]:
        assert self._unpack is not None
        return [self._unpack(row) for row in table.to_pylist()]


def _stream(batch: Any) -> Any:
    """An Arrow batch with its schema, as bytes: batches of a data set need not have one schema."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write(batch)
    return sink.getvalue()


class _PrivateFile:
    """Pieces of bytes on disk, in `$GUARDLIT_CACHE` or else the system's temporary folder.

    The file has no name: ranks never share one, and the system removes it when the process ends, however it ends.
    """

    def __init__(self) -> None:
        self._folder = os.environ.get("GUARDLIT_CACHE") or tempfile.gettempdir()
        self._ends = [0]
        self._file: IO[bytes] | None = None

    def append(self, content: Any) -> None:
        try:
            if self._file is None:
                os.makedirs(self._folder, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed with this object
                weakref.finalize(self, self._file.close)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            raise GuardlitError(
                f"prompts cannot be kept in {self._folder} ({error.strerror}); set GUARDLIT_CACHE to a folder with room"
            ) from error
        self._ends.append(self._ends[-1] + len(content))

    def read(self, number: int) -> bytes:
        assert self._file is not None
        start, end = self._ends[number : number + 2]
        return os.pread(self._file.fileno(), end - start, start)

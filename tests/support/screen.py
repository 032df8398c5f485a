"""A terminal of a given size: what is written to it, as it shows on the screen and in the scrollback."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from types import TracebackType
from typing import TextIO

import pyte

HISTORY = 5000


class Terminal:
    """A pseudo-terminal whose output is rendered.

    Args:
        columns: of the screen.
        rows: of the screen.

    Attributes:
        name: the device, for another process to open.
        stream: writes to it.
        raw: what was written to it.
    """

    def __init__(self, columns: int, rows: int = 24) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.name = os.ttyname(self._slave)
        self.stream: TextIO = os.fdopen(os.dup(self._slave), "w", buffering=1, encoding="utf-8")
        self._columns = columns
        self._screen = pyte.HistoryScreen(columns, rows, history=HISTORY)
        self._input = pyte.ByteStream(self._screen)
        self.raw = b""
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Terminal:
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stream.close()
        os.close(self._slave)
        self._reader.join(20)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # how Linux says that all writers have closed
                return
            if not data:
                return
            self.raw += data
            self._input.feed(data)

    @property
    def text(self) -> str:
        """All that was written, without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode())

    @property
    def lines(self) -> list[str]:
        """The scrollback and the screen, once it is closed, without empty lines at the end."""
        above = ["".join(line[x].data for x in range(self._columns)) for line in self._screen.history.top]
        text = "\n".join(line.rstrip() for line in [*above, *self._screen.display])
        return text.rstrip().splitlines()

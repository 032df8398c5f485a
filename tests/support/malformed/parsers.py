"""Many command lines in one process: building a parser takes most of the time that a malformed one needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lightning.pytorch.cli import LightningCLI


@contextmanager
def built_once() -> Iterator[None]:
    """Each class of command line builds the parser of a command once, and parses with it as often as it is asked to."""
    build, built = LightningCLI.setup_parser, {}

    def setup_parser(self: LightningCLI, *args: object, **kwargs: object) -> None:
        key = type(self), *self.subcommands()
        if key not in built:
            build(self, *args, **kwargs)
            built[key] = {name: value for name, value in vars(self).items() if "parser" in name or "sub" in name}
        vars(self).update(built[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LightningCLI, "setup_parser", setup_parser)
        yield

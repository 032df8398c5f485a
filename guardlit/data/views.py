"""Sequences over prompt sets that read a prompt only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import overload

from torch.utils.data import Dataset

from guardlit.types import Prompt

Numbered = tuple[int, Prompt]
"""An image's number and its prompt."""


class Texts(Sequence[str]):
    """Texts that are read at the first use, and not at all where no prompt has to be encoded.

    Args:
        read: gives the texts.
    """

    def __init__(self, read: Callable[[], list[str]]) -> None:
        self._read = read

    @cached_property
    def _texts(self) -> list[str]:
        return self._read()

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._texts[index]


class ValidationImages(Dataset[Numbered]):
    """A rank's validation images: all prompts once, then again, dealt to the ranks in turn.

    Args:
        prompts: P prompts; image i is of prompt i % P.
        images_per_prompt: K of each, K x P in all.
        rank: of this process.
        world: number of ranks.
    """

    def __init__(self, prompts: Sequence[Prompt], images_per_prompt: int, rank: int = 0, world: int = 1) -> None:
        self._prompts = prompts
        self._numbers = range(rank, len(prompts) * images_per_prompt, world)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Numbered:
        number = self._numbers[index]  # IndexError at the end: `for` needs no more
        return number, self._prompts[number % len(self._prompts)]

    def __iter__(self) -> Iterator[Numbered]:
        return (self[index] for index in range(len(self)))

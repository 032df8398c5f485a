"""What the site takes from pyproject.toml and from the package: the address of the repository, the version."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import guardlit

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@dataclass(frozen=True)
class Facts:
    """What every page may need.

    Attributes:
        repository: its address on the web, without a slash at the end.
        version: of guardlit.
    """

    repository: str
    version: str


def _read() -> Facts:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return Facts(tomllib.loads(text)["project"]["urls"]["Repository"].rstrip("/"), guardlit.__version__)


FACTS = _read()

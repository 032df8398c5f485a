"""Bundled files: the tiny worlds and prompts, with paths `guardlit://name`, and recipes by name. Imports errors."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from guardlit.errors import GuardlitError

SCHEME = "guardlit://"
NAMES = (
    "digits",
    "digits_scorers",
    "words",
    "words_scorers",
    "prompts/digits.jsonl",
    "prompts/everyday.txt",
    "prompts/words.jsonl",
    "prompts/words_validation.jsonl",
)

PUBLISHED = "published"
"""Folder with the sizes of published models by hub id, entered by hand as their config.json files have them.

The transformers' were compared with public copies of these files; the other components' are the families' usual ones.
"""


def published(model: str) -> Path | None:
    """The bundled configuration files of a hub id, which have its sizes and no weights; None if there are none."""
    folder = Path(str(files(__name__).joinpath(PUBLISHED, model)))
    return folder if (folder / "model_index.json").is_file() else None


def resolve(path: str) -> Path | str:
    """The bundled file or folder of `guardlit://name`; any other path or hub id is returned unchanged.

    Raises:
        GuardlitError: nothing of that name is bundled; the message lists all names.
    """
    if not path.startswith(SCHEME):
        return path
    name = path.removeprefix(SCHEME).rstrip("/")
    if name not in NAMES:
        bundled = ", ".join(SCHEME + known for known in NAMES)
        raise GuardlitError(f"{path}: nothing of this name is bundled with guardlit; there are {bundled}")
    return Path(str(files(__name__).joinpath(name)))

"""Folders from which a run imports modules of its user's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

RUN_FILE, KEY = "run.json", "module_folders"
"""The file next to a run's `config.yaml` that names these folders, and its key."""

_searched: dict[str, None] = {}


def make_importable(files: Sequence[Path]) -> None:
    """Let modules be imported, after installed ones, from this folder, those of the files, and those of their runs.

    Args:
        files: configurations; a run's `config.yaml` may be far from the modules that the run imported.
    """
    folders = [str(folder) for folder in (Path.cwd(), *(file.parent.resolve() for file in files))]
    folders = list(dict.fromkeys([*folders, *(folder for file in files for folder in _of_run(file))]))
    _searched.update(dict.fromkeys(folders))
    sys.path += [folder for folder in folders if folder not in sys.path]


def module_folders() -> list[str]:
    """The folders that `make_importable` added and modules were imported from."""
    files = [Path(file) for name, module in list(sys.modules.items()) if "." not in name and (file := _file(module))]
    used = {str((file.parent.parent if file.stem == "__init__" else file.parent).resolve()) for file in files}
    return [folder for folder in _searched if folder in used]


def _file(module: object) -> str | None:
    return getattr(module, "__file__", None)


def _of_run(config: Path) -> list[str]:
    try:
        folders = json.loads((config.parent / RUN_FILE).read_text(encoding="utf-8"))[KEY]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [folder for folder in folders if isinstance(folder, str)] if isinstance(folders, list) else []

"""Folders of exports: one holds one, and names no folder of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from guardlit.errors import GuardlitError
from guardlit.policies.exports.facts import ExportFormat
from guardlit.policies.weights.lora_files import COMFYUI_FILE, FILE, PEFT_FILE

WHOLE = "model_index.json"
"""Of a pipeline folder."""
FILES: dict[ExportFormat, str] = {"diffusers": FILE, "comfyui": COMFYUI_FILE, "peft": PEFT_FILE}


def check_place(folder: Path, to: ExportFormat, whole: bool) -> None:
    """Refuse a folder with an export of another format: its card describes one of them.

    Args:
        folder: to be written; it may hold an older export of the same format, which is replaced.
        to: the format.
        whole: whether complete weights are written.

    Raises:
        GuardlitError: naming the file.
    """
    own = WHOLE if whole else FILES[to]
    others = [name for name in (WHOLE, *FILES.values()) if name != own and (folder / name).exists()]
    if others:
        raise GuardlitError(f"{folder} holds an export of another format ({others[0]}): name another folder by --out")


def hide_paths(folder: Path, name: str) -> None:
    """Replace the folder that a pipeline was loaded from in its configuration files, which may travel.

    Args:
        folder: of a pipeline.
        name: public one of the base model.
    """
    for path in [*folder.glob("*.json"), *folder.glob("*/*config.json")]:
        settings = json.loads(path.read_text(encoding="utf-8"))
        found = [key for key in ("_name_or_path", "name_or_path") if Path(str(settings.get(key, ""))).is_absolute()]
        if found:
            changed = {**settings, **dict.fromkeys(found, name)}
            path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""Folders of exports: one holds one."""

from __future__ import annotations

from pathlib import Path

from guardlit.errors import GuardlitError
from guardlit.policies.exports.facts import ExportFormat
from guardlit.policies.weights.lora_files import COMFYUI_FILE, FILE, PEFT_FILE

WHOLE = "model_index.json"
"""Of a pipeline folder."""
FILES: dict[ExportFormat, str] = {"diffusers": FILE, "comfyui": COMFYUI_FILE, "peft": PEFT_FILE}


def check_place(folder: Path, to: ExportFormat, whole: bool) -> None:
    """Refuse a folder with an export of another format: nobody could tell which of them its card describes.

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

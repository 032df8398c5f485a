"""`guardlit convert`: published checkpoints in the format that the scorers load.

mask2former CHECKPOINT.pth FOLDER    GenEval's detector, as mmdet 2 or 3 published it -> a transformers folder
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from guardlit.config.console import Parser
from guardlit.errors import GuardlitError
from guardlit.rewards.files import read_tensors
from guardlit.rewards.geneval import mask2former
from guardlit.rewards.geneval.detector import load_detector
from guardlit.rewards.geneval.prompt import CLASSES


def main(args: list[str]) -> None:
    """Run `guardlit convert`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: a file that is no such checkpoint, or a folder that cannot be written.
    """
    parser = Parser(
        "guardlit convert",
        usage_hint="(guardlit convert mask2former CHECKPOINT.pth FOLDER)",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=["mask2former"], help="what the file is")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the published file")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="to be written; must not exist, or be empty")
    options = parser.parse(args[1:])
    convert_mask2former(options.checkpoint.expanduser(), options.folder.expanduser())
    print(f"{options.folder}: config.json and model.safetensors of a Mask2Former, checked by loading them")


def convert_mask2former(checkpoint: Path, folder: Path) -> None:
    """Write a transformers folder with the weights of an mmdet checkpoint; nothing is left there if that fails.

    Args:
        checkpoint: a file of `torch.save`, with the weights under the key `state_dict` or by themselves.
        folder: made with its parents.

    Raises:
        GuardlitError: a file that is no such checkpoint, or a folder that cannot be written or is in use.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GuardlitError(f"{folder} exists already; name a folder that does not, or remove it first")
    state = mask2former.in_new_names(_state_dict(checkpoint))
    try:
        weights, sizes = mask2former.convert(state), mask2former.describe(state)
    except GuardlitError as error:
        raise GuardlitError(f"{checkpoint}: {error}") from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as draft:
            _write(weights, sizes, Path(draft))
            load_detector(draft, str(checkpoint))  # transformers must take it, with nothing missing
            folder.mkdir(exist_ok=True)
            for file in Path(draft).iterdir():
                shutil.move(file, folder / file.name)
    except OSError as error:
        raise GuardlitError(f"{folder} cannot be written: {error.strerror or error}") from error


def _state_dict(checkpoint: Path) -> dict[str, Tensor]:
    content: Any = read_tensors(checkpoint)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise GuardlitError(f"{checkpoint}: it holds no `state_dict` of tensors, as mmdet's checkpoints do")
    return state


def _write(weights: dict[str, Tensor], sizes: dict[str, Any], folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import Mask2FormerConfig, SwinConfig

    backbone = SwinConfig(**sizes.pop("backbone_config"))
    config = Mask2FormerConfig(backbone_config=backbone, architectures=["Mask2FormerForUniversalSegmentation"], **sizes)
    if config.num_labels == len(CLASSES):
        config.id2label = dict(enumerate(CLASSES))
        config.label2id = {name: i for i, name in enumerate(CLASSES)}
    config.save_pretrained(folder)
    tensors = {name: weight.contiguous() for name, weight in weights.items()}
    tensors |= mask2former.idle(config.num_labels, backbone.hidden_size)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

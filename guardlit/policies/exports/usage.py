"""How to load exported weights, as a model card says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from guardlit.assets import SCHEME
from guardlit.policies.weights.lora_files import COMFYUI_FILE


class Pipeline(NamedTuple):
    """What the lines of code depend on.

    Attributes:
        kind: diffusers' class of the pipeline.
        transformer: diffusers' class of its network.
        base: public name of the base model.
        dtype: torch's name of the dtype that the base was trained in.
        without: components that the training left out.
        call: arguments of the pipeline's call, a line each.
    """

    kind: str
    transformer: str
    base: str
    dtype: str
    without: Sequence[str]
    call: Sequence[str]


def usage(pipeline: Pipeline, to: str, adapter: bool) -> str:
    """Markdown that says how to use the files.

    Args:
        pipeline: which they are for.
        to: the format.
        adapter: whether they hold a LoRA.
    """
    if to == "comfyui":
        return (
            f"Put `{COMFYUI_FILE}` into ComfyUI's folder `models/loras`, and load it with the node LoraLoaderModelOnly "
            f"behind the base model, {pipeline.base}, at a strength of 1. It has no text encoders' layers."
        )
    lines = _peft(pipeline) if to == "peft" else _diffusers(pipeline, adapter)
    call = ["image = pipe(", '    "a red cup on a table",', *(f"    {argument}," for argument in pipeline.call)]
    return "\n".join(["```python", *lines, *call, ").images[0]", "```"])


def _base(pipeline: Pipeline) -> tuple[list[str], str]:
    """Lines that import what names the base, and the expression."""
    if pipeline.base.startswith(SCHEME):
        return ["from guardlit.assets import resolve"], f'resolve("{pipeline.base}")'
    return [], f'"{pipeline.base}"'


def _options(pipeline: Pipeline) -> str:
    return "".join(f", {name}=None" for name in pipeline.without)


def _diffusers(pipeline: Pipeline, adapter: bool) -> list[str]:
    imports, base = _base(pipeline)
    start = ["import torch", f"from diffusers import {pipeline.kind}"]
    load = f"pipe = {pipeline.kind}.from_pretrained"
    if not adapter:
        folder = 'folder = "."  # this folder, or its name on the Hub'
        return [*start, "", folder, f"{load}(folder, dtype=torch.{pipeline.dtype}{_options(pipeline)})"]
    return [
        *start,
        *imports,
        "",
        f"base = {base}",
        'lora = "."  # this folder, or its name on the Hub',
        f"{load}(base, dtype=torch.{pipeline.dtype}{_options(pipeline)})",
        "pipe.load_lora_weights(lora)",
    ]


def _peft(pipeline: Pipeline) -> list[str]:
    imports, base = _base(pipeline)
    dtype = f"dtype=torch.{pipeline.dtype}"
    return [
        "import torch",
        f"from diffusers import {pipeline.transformer}, {pipeline.kind}",
        *imports,
        "from peft import PeftModel",
        "",
        f"base = {base}",
        'lora = "."  # this folder, or its name on the Hub',
        f'transformer = {pipeline.transformer}.from_pretrained(base, subfolder="transformer", {dtype})',
        "transformer = PeftModel.from_pretrained(transformer, lora).merge_and_unload()",
        f"pipe = {pipeline.kind}.from_pretrained(base, transformer=transformer, {dtype}{_options(pipeline)})",
    ]

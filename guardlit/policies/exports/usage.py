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
        steps: T, of the denoising.
        base_steps: k, the last of them that the base model takes.
    """

    kind: str
    transformer: str
    base: str
    dtype: str
    without: Sequence[str]
    call: Sequence[str]
    steps: int
    base_steps: int


def usage(pipeline: Pipeline, to: str, adapter: bool) -> str:
    """Markdown that says how to use the files.

    Args:
        pipeline: which they are for.
        to: the format.
        adapter: whether they hold a LoRA.
    """
    if to == "comfyui":
        return _comfyui(pipeline)
    lines = _peft(pipeline) if to == "peft" else _diffusers(pipeline, adapter)
    call = ["image = pipe(", '    "a red cup on a table",', *(f"    {argument}," for argument in pipeline.call)]
    to_base, to_trained = _switch(to, adapter)
    if pipeline.base_steps == pipeline.steps:
        lines += ["", f"{to_base}  # it takes all steps"]
    elif pipeline.base_steps:
        lines += _last_steps(pipeline, to_base, to_trained)
        call.append("    callback_on_step_end=last_steps,")
    return "\n".join(["```python", *lines, *call, ").images[0]", "```"])


def _comfyui(pipeline: Pipeline) -> str:
    text = (
        f"Put `{COMFYUI_FILE}` into ComfyUI's folder `models/loras`, and load it with the node LoraLoaderModelOnly "
        f"behind the base model, {pipeline.base}, at a strength of 1. It has no text encoders' layers."
    )
    if not pipeline.base_steps:
        return text
    first = pipeline.steps - pipeline.base_steps
    return (
        f"{text}\n\nThe base model takes the last {pipeline.base_steps} of {pipeline.steps} steps: sample with two "
        f"nodes KSamplerAdvanced. The first, behind the LoRA, has end_at_step {first} and return_with_leftover_noise; "
        f"the second, behind the base model, has start_at_step {first} and no add_noise."
    )


def _switch(to: str, adapter: bool) -> tuple[str, str]:
    """Code that switches from the trained weights to the base's, and back."""
    if not adapter:
        return "pipe.transformer = base_transformer", "pipe.transformer = trained_transformer"
    switched = "lora_layers" if to == "peft" else "pipe"
    name = "adapter_layers" if to == "peft" else "lora"
    return f"{switched}.disable_{name}()", f"{switched}.enable_{name}()"


def _last_steps(pipeline: Pipeline, to_base: str, to_trained: str) -> list[str]:
    """Lines that let the base model take the last steps of a call."""
    return [
        "",
        "",
        "def last_steps(pipe, step, timestep, tensors):",
        f"    if step + 1 == pipe.num_timesteps - {pipeline.base_steps}:  # the base model takes the last ones",
        f"        {to_base}",
        "    return tensors",
        "",
        "",
        f"{to_trained}  # before every call",
    ]


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
        whole = f"{load}(folder, dtype=torch.{pipeline.dtype}{_options(pipeline)})"
        if not pipeline.base_steps:
            return [*start, "", folder, whole]
        kinds = f"from diffusers import {pipeline.transformer}, {pipeline.kind}"
        loaded = f'{pipeline.transformer}.from_pretrained(base, subfolder="transformer", dtype=torch.{pipeline.dtype})'
        return [
            *("import torch", kinds, *imports, "", f"base = {base}", folder, whole),
            "trained_transformer = pipe.transformer",
            f"base_transformer = {loaded}",
        ]
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
        (
            "lora_layers = PeftModel.from_pretrained(transformer, lora).base_model"
            if pipeline.base_steps
            else "transformer = PeftModel.from_pretrained(transformer, lora).merge_and_unload()"
        ),
        f"pipe = {pipeline.kind}.from_pretrained(base, transformer=transformer, {dtype}{_options(pipeline)})",
    ]

"""Malformed model folders, and such as bring code along, which must not run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from malformed.case import FIT, Case, World, line
from safetensors.torch import load_file, save_file
from torch import Tensor

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"
MODULES = ("evil.py", "modeling_evil.py", "configuration_evil.py", "pipeline.py", "__init__.py", "sitecustomize.py")
ONLY = "components are of diffusers or transformers"


def _case(what: str, spoil: Callable[[Path], object], place: str, found: str, right: str) -> Case:
    def command(world: World) -> tuple[str, ...]:
        spoil(world.folder / "model")
        return FIT

    return Case(f"model: {what}", command, f"model{place}", found, right, model=True)


def _write(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda f: (f / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _cut(name: str, length: int) -> Callable[[Path], object]:
    return lambda f: (f / name).write_bytes((f / name).read_bytes()[:length])


def _remove(name: str) -> Callable[[Path], object]:
    return lambda f: shutil.rmtree(f / name) if (f / name).is_dir() else (f / name).unlink()


def _settings(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _rename(name: str) -> Callable[[Path], object]:
    return lambda f: (f / name).rename(f / name.replace(".safetensors", ".fp16.safetensors"))


def _json(name: str, **changes: object) -> Callable[[Path], object]:
    return lambda f: _settings(f, name, **changes)


def _weights(name: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, {"format": "pt"})

    return spoil


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _code(what: str, name: str, found: str, right: str, place: str = "/model_index.json", **changes: object) -> Case:
    """A folder full of modules that leave a mark, one of which a JSON file names."""

    def command(world: World) -> tuple[str, ...]:
        model = world.folder / "model"
        source = f"from pathlib import Path\nPath({str(world.marker)!r}).touch()\nclass Evil: ...\n"
        for folder in (world.folder, model, *(p for p in model.iterdir() if p.is_dir())):
            for module in MODULES:
                (folder / module).write_text(source)
        _settings(model, name, **changes)
        return FIT

    return Case(f"code: {what}", command, f"model{place}", found, right, model=True)


def _harmless(what: str, name: str, **changes: object) -> Case:
    """Code that a file names and nothing looks at: the line is about a weight that is removed next to it."""
    case = _code(what, name, "missing keys", "CLIPTextModelWithProjection", "/text_encoder_2", **changes)

    def command(world: World) -> tuple[str, ...]:
        _weights("text_encoder_2/model.safetensors", _first_gone)(world.folder / "model")
        return tuple(case.spoil(world))

    return Case(case.what, command, case.place, case.found, case.right, model=True)


def _pickle(what: str, old: str, new: str, place: str, found: str, right: str) -> Case:
    """Weights whose pickle would leave a mark in place of safetensors."""

    def command(world: World) -> tuple[str, ...]:
        (world.folder / "model" / old).unlink()
        torch.save({"weight": Touch(world.marker)}, world.folder / "model" / new)
        return FIT

    return Case(f"code: {what}", command, f"model{place}", found, right, model=True)


def _first_gone(tensors: dict[str, Tensor]) -> None:
    tensors.pop(min(tensors))


def _first_short(tensors: dict[str, Tensor]) -> None:
    tensors[min(tensors)] = torch.zeros(2)


INDEX = "/model_index.json"
FLOW = "scheduler/scheduler_config.json"
INDEXES = [
    _case("no index", _remove("model_index.json"), "", "no model_index.json", "no diffusers pipeline folder"),
    _case("index cut short", _write("model_index.json", "{"), INDEX, "line 1 column 2", "is not JSON"),
    _case("list for index", _write("model_index.json", "[]"), INDEX, "holds list", "not an object"),
    _case("index not UTF-8", _write("model_index.json", b"\xff"), INDEX, "byte 0xff", "is not JSON"),
    _case("deep index", _write("model_index.json", "[" * 100_000), INDEX, "recursion", "is not JSON"),
    _case("other pipeline", _json("model_index.json", _class_name="FluxPipeline"), "", "FluxPipeline", "StableDiff"),
    _case("text for component", _json("model_index.json", vae="x"), INDEX, "vae is 'x'", "[library, class]"),
    _case("empty component", _json("model_index.json", vae=[]), INDEX, "vae is []", "[library, class]"),
    _case("number for component", _json("model_index.json", vae=3), INDEX, "vae is 3", "[library, class]"),
    _case("unknown encoder", _json("model_index.json", text_encoder=["transformers", "No"]), "", "No", "transformers"),
    _case(
        "other encoder", _json("model_index.json", text_encoder=["transformers", "BertModel"]), "", "missing", "keys"
    ),
]
FILES = [
    _case("no vae", _remove("vae"), "", "lacks the component 'vae'", "it has scheduler"),
    _case("no tokenizer", _remove("tokenizer"), "/tokenizer", "no vocabulary", "tokenizer.json, vocab.json"),
    _case("weights cut short", _cut(TRANSFORMER, 1000), "/transformer", "Unable to load", "SD3Transformer2DModel"),
    _case("empty weights", _write(TRANSFORMER, b""), "/transformer", "Unable to load", "SD3Transformer2DModel"),
    _case("text for weights", _write(TRANSFORMER, b"hello"), "/transformer", "Unable to load", "SD3Transformer2DModel"),
    _case(
        "header of exabytes",
        _write(TRANSFORMER, (2**62).to_bytes(8, "little") + b"{}"),
        "/transformer",
        "Unable to load",
        "SD3Transformer2DModel",
    ),
    _case("missing weight", _weights(TRANSFORMER, _first_gone), "/transformer", "1 missing", "SD3Transformer2DModel"),
    _case("wrong shape", _weights(TRANSFORMER, _first_short), "/transformer", "[2]", "SD3Transformer2DModel"),
    _case(
        "weight too many",
        _weights(TRANSFORMER, lambda t: t.update(more=torch.zeros(1))),
        "/transformer",
        "1 unexpected keys",
        "SD3Transformer2DModel, first 'more'",
    ),
    _case(
        "NaN in the transformer",
        _weights(TRANSFORMER, lambda t: t["proj_out.weight"].fill_(torch.nan)),
        "/transformer",
        "'proj_out.weight' holds NaN",
        "copy or download it again",
    ),
    _case(
        "infinity in the VAE",
        _weights(VAE, lambda t: t["decoder.conv_out.bias"].fill_(torch.inf)),
        "/vae",
        "'decoder.conv_out.bias' holds NaN or infinity",
        "copy or download it again",
    ),
    _case("no T5", _remove("text_encoder_3"), "", "no files of text_encoder_3 (T5)", "text_encoder_3 to false"),
    _case("no tokenizer of T5", _remove("tokenizer_3"), "", "no files of tokenizer_3", "text_encoder_3 to false"),
    _case(
        "index without T5",
        _json("model_index.json", text_encoder_3=[None, None]),
        "",
        "no files of text_encoder_3 (T5)",
        "text_encoder_3 to false",
    ),
    _case("no second encoder", _remove("text_encoder_2"), "", "component 'text_encoder_2'", "model_index.json names"),
    _case("fp16 alone", _rename(TRANSFORMER), "/transformer", "of the variant fp16 only", "rename the files"),
    _case("fp16 encoder alone", _rename(ENCODER), "/text_encoder", "of the variant fp16 only", "model.safetensors too"),
    _case("encoder without a weight", _weights(ENCODER, _first_gone), "/text_encoder", "1 missing keys", "CLIPText"),
    _case("encoder cut short", _cut(ENCODER, 500), "", "header", "text encoders cannot be loaded"),
    _case("encoder without weights", _remove(ENCODER), "", "model.safetensors", "text encoders cannot be loaded"),
    _case("broken encoder config", _write("text_encoder/config.json", "{"), "/text_encoder", "config.json", "JSON"),
    _case("broken tokenizer", _write("tokenizer/tokenizer.json", "{"), "", "line 1 column 2", "cannot be loaded"),
    _case("no transformer config", _remove("transformer/config.json"), "/transformer", "no config.json", "cannot be"),
    _case("list for transformer config", _write("transformer/config.json", "[]"), "/transformer", "list", "an object"),
    _case(
        "word for heads",
        _json("transformer/config.json", num_attention_heads="two"),
        "/transformer",
        "cannot be loaded",
        "SD3Trans",
    ),
    _case("other VAE", _json("vae/config.json", _class_name="VQModel"), "/vae", "a VQModel", "AutoencoderKL is needed"),
    _case("word for scale", _json("vae/config.json", scaling_factor="x"), "/vae/config.json", "'x'", "positive number"),
    _case("scale of zero", _json("vae/config.json", scaling_factor=0), "/vae/config.json", "is 0", "positive number"),
    _case("no shift of latents", _json("vae/config.json", shift_factor=None), "/vae/config.json", "None", "a number"),
]
SCHEDULERS = [
    _case("no schedule", _remove(FLOW), "/scheduler", "no scheduler_config.json", "describes no schedule"),
    _case("broken schedule", _write(FLOW, "{"), f"/{FLOW}", "line 1 column 2", "is not JSON"),
    _case("other sampler", _json(FLOW, _class_name="DDIMScheduler"), f"/{FLOW}", "DDIMScheduler", "only FlowMatch"),
    _case("word for shift", _json(FLOW, shift="x"), f"/{FLOW}", "shift is 'x'", "a positive number"),
    _case("negative shift", _json(FLOW, shift=-1), f"/{FLOW}", "shift is -1", "a positive number"),
    _case("no time steps", _json(FLOW, num_train_timesteps=0), f"/{FLOW}", "is 0", "a positive number"),
    _case("schedule upside down", _json(FLOW, invert_sigmas=True), f"/{FLOW}", "invert_sigmas", "from noise to image"),
    _case("word for the end", _json(FLOW, shift_terminal="x"), f"/{FLOW}", "shift_terminal is 'x'", "a number"),
    _case("end at the start", _json(FLOW, shift_terminal=1.0), f"/{FLOW}", "shift_terminal is 1.0", "below 1"),
    _case("dynamic shift", _json(FLOW, use_dynamic_shifting=True), "/scheduler", "dynamic shifting", "do not use"),
]
CODE = [
    _code("pipeline", "model_index.json", "'evil'", "StableDiffusion3Pipeline", "", _class_name=["evil", "Evil"]),
    _code("transformer", "model_index.json", "of 'evil'", ONLY, transformer=["evil", "Evil"]),
    _code("text encoder", "model_index.json", "of 'modeling_evil'", ONLY, text_encoder=["modeling_evil", "Evil"]),
    _code("tokenizer", "model_index.json", "of 'evil'", ONLY, tokenizer=["evil", "Evil"]),
    _code("imported module", "model_index.json", "of 'os'", ONLY, scheduler=["os", "system"]),
    _code("component that is not needed", "model_index.json", "of 'evil'", ONLY, safety=["evil", "Evil"]),
    _code("class of the VAE", "vae/config.json", "a evil.Evil", "AutoencoderKL", "/vae", _class_name="evil.Evil"),
    _code("class of the schedule", FLOW, "found evil.Evil", "only FlowMatch", f"/{FLOW}", _class_name="evil.Evil"),
    _harmless("custom_pipeline", "model_index.json", custom_pipeline="evil", trust_remote_code=True),
    _harmless(
        "auto_map of an encoder",
        "text_encoder/config.json",
        auto_map={"AutoConfig": "configuration_evil.Evil", "AutoModel": "modeling_evil.Evil"},
        trust_remote_code=True,
    ),
    _harmless(
        "auto_map of a tokenizer",
        "tokenizer/tokenizer_config.json",
        auto_map={"AutoTokenizer": ["modeling_evil.Evil", None]},
        trust_remote_code=True,
    ),
    _pickle("pickled transformer", TRANSFORMER, TRANSFORMER, "/transformer", "Unable to load", "SD3Transformer2DModel"),
    _pickle(
        "pickled .bin next to it",
        TRANSFORMER,
        "transformer/diffusion_pytorch_model.bin",
        "/transformer",
        "no file named diffusion_pytorch_model.safetensors",
        "SD3Transformer2DModel",
    ),
    _pickle("pickled encoder", ENCODER, "text_encoder/pytorch_model.bin", "", "Weights only", "cannot be loaded"),
    _pickle("pickled VAE", VAE, VAE, "/vae", "Unable to load", "AutoencoderKL"),
]


def _model(what: str, name: str, place: str, found: str, right: str) -> Case:
    return line(f"model: {what}", [*FIT, "--model.policy.model", name], place, found, right)


NAMES = [
    _model("missing folder", "./nowhere", "'./nowhere'", "does not exist", "hub id of the form owner/name"),
    _model("file", "./run.yaml", "'./run.yaml'", "does not exist", "owner/name"),
    _model("hub id out of reach", "owner/absent", "'owner/absent'", "not in the hub cache", "could not be downloaded"),
    _model("web address", "https://huggingface.co/a/b", "huggingface.co/a/b", "does not exist", "owner/name"),
    _model("unknown asset", "guardlit://digit", "guardlit://digit", "nothing of this name", "guardlit://digits"),
    line(
        "model: another family",
        [*FIT, "--model.policy", "FluxPolicy", "--model.policy.model", "model"],
        "model holds",
        "a StableDiffusion3Pipeline",
        "FluxPipeline is needed here",
    ),
]
CASES = [*INDEXES, *FILES, *SCHEDULERS, *CODE, *NAMES]

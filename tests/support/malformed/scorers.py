"""Malformed files of scorers, as the reward server loads them: before anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from malformed.case import Case, World
from malformed.folders import Touch
from safetensors.torch import save_file
from tiny_folders import make_clip


def _served(scorer: str, **arguments: object) -> list[str]:
    entry = {"class_path": scorer, "init_args": arguments}
    return ["serve-reward", "--port", "0", "--scorers", json.dumps({"a": entry})]


def _clip(world: World) -> Path:
    """A tiny CLIP folder of the world's own."""
    return make_clip(world.folder / "clip")


def _pickscore(what: str, spoil: Callable[[Path, World], object], found: str, right: str, place: str = "clip") -> Case:
    def command(world: World) -> list[str]:
        spoil(_clip(world), world)
        return _served("PickScore", model="./clip")

    return Case(f"PickScore: {what}", command, place, found, right)


def _file(
    scorer: str, what: str, write: Callable[[Path, World], object], found: str, right: str, **arguments: object
) -> Case:
    def command(world: World) -> list[str]:
        if scorer == "Aesthetic":
            _clip(world)
        write(world.folder / "w.pt", world)
        return _served(scorer, weights="./w.pt", **arguments)

    return Case(f"{scorer}: {what}", command, "w.pt", found, right)


def _evil(path: Path, world: World) -> None:
    torch.save({"state_dict": {"w": Touch(world.marker)}}, path)


def _only_bin(folder: Path, world: World) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"w": Touch(world.marker)}, folder / "pytorch_model.bin")


def _config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


PICKSCORE = [
    _pickscore("no weights", lambda f, _: (f / "model.safetensors").unlink(), "model.safetensors", "CLIP folder"),
    _pickscore(
        "weights cut short",
        lambda f, _: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:300]),
        "header",
        "not a readable CLIP folder",
    ),
    _pickscore(
        "other weights",
        lambda f, _: save_file({"w": torch.zeros(1)}, f / "model.safetensors", {"format": "pt"}),
        "weights missing",
        "exactly the weights",
    ),
    _pickscore("pickled code", _only_bin, "not a readable CLIP folder", "Weights only load failed"),
    _pickscore("broken config", lambda f, _: (f / "config.json").write_text("{"), "config.json", "valid JSON"),
    _pickscore("no config", lambda f, _: (f / "config.json").unlink(), "no config.json", "model_type 'clip' is needed"),
    _pickscore("other model", lambda f, _: _config(f, model_type="bert"), "model_type 'bert'", "'clip' is needed"),
    _pickscore(
        "own code",
        lambda f, w: (
            (f / "modeling_evil.py").write_text(f"open({str(w.marker)!r}, 'w')"),
            _config(f, model_type="evil", auto_map={"AutoModel": "modeling_evil.Evil"}),
        ),
        "model_type 'evil'",
        "'clip' is needed",
    ),
    _pickscore(
        "no vocabulary", lambda f, _: [p.unlink() for p in f.glob("[tvm]o[kc]*")], "`vocab` and `merges`", "CLIP folder"
    ),
    _pickscore("no folder", lambda f, _: shutil.rmtree(f), "clip", "CLIP folder"),
]
CODE = "code in a file of weights is not run here"
CORRUPT = "corrupt, or of another kind"
FILES = [
    _file("HPSv2", "pickled code", _evil, CODE, "convert it to safetensors"),
    _file("HPSv2", "text", lambda p, _: p.write_text("hello"), CORRUPT, "file of weights"),
    _file("HPSv2", "list", lambda p, _: torch.save([1], p), "holds a list", "not named tensors"),
    _file("HPSv2", "other weights", lambda p, _: torch.save({"w": torch.zeros(1)}, p), "weights missing", "exactly"),
    _file("ImageReward", "pickled code", _evil, CODE, "convert it to safetensors"),
    _file("Aesthetic", "pickled code", _evil, CODE, "convert it to safetensors", model="./clip"),
    _file("Aesthetic", "text", lambda p, _: p.write_text("hello"), CORRUPT, "file of weights", model="./clip"),
    _file(
        "Aesthetic",
        "other weights",
        lambda p, _: torch.save({"w": torch.zeros(1)}, p),
        "weights missing",
        "exactly",
        model="./clip",
    ),
]
CASES = [*PICKSCORE, *FILES]

"""Malformed checkpoints, and those of other programs and runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from malformed.case import FIT, RUN, Case, World, line
from malformed.folders import Touch


def _case(
    what: str,
    write: Callable[[Path, World], object],
    found: str,
    right: str,
    command: str = "fit",
    place: str = "c.ckpt",
) -> Case:
    def spoil(world: World) -> list[str]:
        write(world.folder / "c.ckpt", world)
        return [command, *RUN, "--ckpt_path", "c.ckpt"]

    return Case(f"{command}: {what}", spoil, place, found, right)


def _bytes(content: bytes) -> Callable[[Path, World], object]:
    return lambda path, _: path.write_bytes(content)


def _saved(content: object) -> Callable[[Path, World], object]:
    return lambda path, _: torch.save(content, path)


def _cut(path: Path, _: World) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


def _flipped(path: Path, _: World) -> None:
    torch.save({"state_dict": {}, "guardlit": {"fingerprint": {}}}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)


FOREIGN = {"state_dict": {}, "pytorch-lightning_version": "2.6.6"}
OURS = FOREIGN | {"guardlit": {"fingerprint": {"policy": "FluxPolicy"}}}
CASES = [
    *(
        _case(what, write, "is corrupt", "corrupt (", command)
        for command in ("fit", "export")
        for what, write in {
            "text for a checkpoint": _bytes(b"hello"),
            "empty checkpoint": _bytes(b""),
            "checkpoint cut short": _cut,
            "checkpoint with zeros": _flipped,
            "pickled code": lambda path, world: torch.save({"state_dict": Touch(world.marker)}, path),
        }.items()
    ),
    _case("list of tensors", _saved([torch.zeros(1)]), "a Lightning checkpoint", "is not a Lightning checkpoint"),
    _case("weights alone", _saved({"w": torch.zeros(1)}), "a Lightning checkpoint", "is not a Lightning checkpoint"),
    _case("checkpoint of others", _saved(FOREIGN), "not written by", "no entry 'guardlit'", "export", "checkpoint"),
    _case("other policy", _saved(OURS), "policy = FluxPolicy", "this run has SD3Policy", "export", "checkpoint"),
    line("missing checkpoint", [*FIT, "--ckpt_path", "no.ckpt"], "checkpoint no.ckpt", "no.ckpt", "does not exist"),
    line("folder for checkpoint", [*FIT, "--ckpt_path", "model"], "model", "holds exported weights", "lora.start"),
    line("no name of a checkpoint", [*FIT, "--ckpt_path", ""], "checkpoint", "checkpoint .", "is corrupt"),
    line("last of none", [*FIT, "--ckpt_path", "last"], "runs/version_*", "no checkpoint", "--ckpt_path last"),
    line("validate: missing", ["validate", *RUN, "--ckpt_path", "no"], "checkpoint no", "no", "does not exist"),
    line("sample: missing", ["sample", *RUN, "--ckpt_path", "no"], "checkpoint no", "no", "does not exist"),
]

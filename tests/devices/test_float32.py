"""`trainer.tf32` and `trainer.deterministic`: what they switch in torch, and what the run folder records."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from runs import config, guardlit
from torch import backends

from guardlit.commands.lightning_cli import settings_of
from guardlit.commands.trainer import Trainer
from guardlit.devices.float32 import allow_tf32, float32_products

OFF, ON = ({"matmul": allowed, "convolution": allowed} for allowed in (False, True))


@pytest.fixture(autouse=True)
def _off_again() -> Iterator[None]:
    yield
    allow_tf32(False)


def newer(place: object, precision: str) -> None:
    place.fp32_precision = precision  # type: ignore[attr-defined]


SET_BEFORE: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "everything": lambda: newer(backends, "tf32"),
    "cuDNN": lambda: newer(backends.cudnn, "tf32"),
    "convolutions": lambda: newer(backends.cudnn.conv, "tf32"),
    "products": lambda: newer(backends.cuda.matmul, "tf32"),
    "products, by the older switch": lambda: torch.set_float32_matmul_precision("medium"),
}


@pytest.mark.parametrize("before", SET_BEFORE)
@pytest.mark.parametrize("allowed", [False, True])
def test_float32_is_what_was_asked_for_whatever_was_set_before(before: str, allowed: bool):
    allow_tf32(not allowed)
    SET_BEFORE[before]()
    Trainer(tf32=allowed, accelerator="cpu", logger=False)
    assert float32_products() == (ON if allowed else OFF)
    # the older switches, which Lightning and libraries read, raise where the newer ones say otherwise
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert backends.cuda.matmul.allow_tf32 is backends.cudnn.allow_tf32 is allowed


def test_null_leaves_torch_as_it_is():
    allow_tf32(True)
    Trainer(tf32=None, accelerator="cpu", logger=False)
    assert float32_products() == ON
    Trainer(accelerator="cpu", logger=False)
    assert float32_products() == OFF


def test_the_command_line_takes_it(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = config(tmp_path, sd3_folder)
    parsed = {text: settings_of(["fit", "--config", str(path), "--trainer.tf32", text]) for text in ("true", "null")}
    assert [settings["trainer"]["tf32"] for settings in parsed.values()] == [True, None]
    settings = yaml.safe_load(path.read_text())
    settings["trainer"]["tf32"] = True
    path.write_text(yaml.safe_dump(settings))
    assert settings_of(["fit", "--config", str(path)])["trainer"]["tf32"] is True
    assert guardlit("fit", "--config", path, "--trainer.tf32", "sometimes") == 2
    assert "tf32" in capsys.readouterr().err.splitlines()[-1]


FULL = {"model__policy__init_args__lora": None, "model__policy__init_args__reference": True}


@pytest.mark.parametrize("changes", [{}, {**FULL, "model__kl": {"weight": 0.1}}], ids=["lora", "full"])
def test_a_deterministic_run_says_so(changes: dict, sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    path = config(tmp_path, sd3_folder, trainer__max_epochs=1, trainer__tf32=True, **changes)
    assert guardlit("fit", "--config", path, "--trainer.deterministic", "true") == 0
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    facts = json.loads((tmp_path / "runs/version_0/run.json").read_text())
    assert (facts["deterministic"], facts["tf32"]) == (True, ON)

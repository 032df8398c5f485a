"""Offline, one thread, and the tiny model folders that several tests share."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is first imported

import pytest
import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[1]))  # so that tests may say `from benchmarks.gpu import report`
sys.path.insert(0, str(Path(__file__).parent / "support"))  # and `from tiny_folders import make_sd3`
sys.path.append(str(Path(__file__).parents[1] / "callbacks/tests/support"))  # and `from wandb_files import history`


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny PickScore-like CLIP folder."""
    from tiny_folders import make_clip

    return make_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the tiny pipeline folder of a model family by its name in `families.FAMILIES`; each is made once."""
    from families import FAMILIES

    return functools.cache(lambda name: FAMILIES[name].make(tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="session")
def sd3_folder(tiny: Callable[[str], Path]) -> Path:
    """A tiny Stable Diffusion 3 pipeline folder: 64 x 64 pixels, 16 x 8 x 8 latents."""
    return tiny("sd3")


@pytest.fixture(scope="session")
def inception_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with torch-fidelity's file of Inception v3, random weights."""
    from scorer_files import make_inception

    return make_inception(tmp_path_factory.mktemp("inception"))


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """`trainer.deterministic` of a run in this process ends with its test."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--rehearse-gpu`: the tests marked `gpu` on the CPU, to see that their bodies work."""
    parser.addoption("--rehearse-gpu", action="store_true", help="run the tests marked gpu on the CPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a CUDA device where there is none."""
    if torch.cuda.is_available() or config.getoption("--rehearse-gpu"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests marked `gpu` run: the CUDA device; in a rehearsal on a machine without one the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


@pytest.fixture
def cuda_only(device: torch.device) -> None:
    """For what a CPU has nothing like: a rehearsal skips it."""
    if device.type != "cuda":
        pytest.skip("a CPU has no loss scaler, and PyTorch counts no memory there")

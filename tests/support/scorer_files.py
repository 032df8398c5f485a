"""Official files of weights, filled as the reference programs filled theirs, and requests to score."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from reference.seeded import (
    PROMPTS,
    head_layout,
    imagereward_layout,
    pictures,
    weights,
    write_bert_files,
    write_clip_files,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from guardlit.rewards import Aesthetic, CLIPScore, HPSv2, ImageReward, PickScore
from guardlit.rewards.base import Scorer
from guardlit.rewards.files import without_weights
from guardlit.types import RewardRequest

CPU = torch.device("cpu")


def reference(name: str) -> dict[str, Any]:
    """What tests/support/reference/make_*.py recorded."""
    return json.loads((Path(__file__).parent / "reference" / f"{name}.json").read_text())


def request(images: Sequence[np.ndarray], prompts: list[str]) -> RewardRequest:
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return RewardRequest(stacked, prompts, [{}] * len(prompts))


def one_by_one(scorer: Scorer, images: Sequence[np.ndarray] | None = None) -> Tensor:
    """Scores of pictures of different sizes, each with its prompt."""
    images = pictures() if images is None else images
    pairs = zip(images, PROMPTS, strict=False)
    return torch.cat([scorer.score(request([image], [prompt])).values for image, prompt in pairs])


def ready(scorer: Scorer) -> Any:
    scorer.setup(CPU)
    return scorer


def tensors(shapes: dict[str, Any], seed: int, faint: str | None = None) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in weights(shapes, seed, faint).items()}


@cache
def tiny_hps() -> str:
    """Makes open_clip know the tiny architecture of hpsv2.json; its name."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tiny-hps.json").write_text(json.dumps(reference("hpsv2")["tiny"]["config"]))
        open_clip.add_model_config(folder)
    return "tiny-hps"


def make_hpsv2(folder: Path, architecture: str | None = None, seed: int = 1) -> dict[str, Any]:
    """`HPS_v2.1_compressed.pt` in a folder; the scorer's arguments."""
    architecture = architecture or tiny_hps()
    with without_weights():
        clip = open_clip.CLIP(**open_clip.get_model_config(architecture))
    state = tensors({key: tensor.shape for key, tensor in clip.state_dict().items()}, seed)
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    return {"weights": str(folder), "architecture": architecture}


def make_imagereward(folder: Path, case: str = "tiny") -> dict[str, Any]:
    """`ImageReward.pt` and a tokenizer in a folder; the scorer's arguments."""
    made = reference("imagereward")[case]
    vocabulary = write_bert_files(folder / "bert") + 2
    layout = imagereward_layout(vocab_size=vocabulary, **made["sizes"])
    state = tensors(layout, made["seed"], made["faint"])
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(made["sizes"]["text"]["max_position_embeddings"])[
        None
    ]
    torch.save(state, folder / "ImageReward.pt")
    text = made["sizes"]["text"] | {"vocab_size": vocabulary}
    return {
        "weights": str(folder),
        "tokenizer": str(folder / "bert"),
        "vision": made["sizes"]["vision"],
        "text": text,
    }


def make_clip_folder(folder: Path, config: dict[str, Any], *, halves: bool = False) -> Path:
    """A CLIP folder as the hub has them, with the published vocabulary; whole numbers of half precision if asked."""
    from transformers import CLIPConfig, CLIPModel

    write_clip_files(folder, config)
    with without_weights():
        clip = CLIPModel(CLIPConfig(**config))
    state = tensors({key: tensor.shape for key, tensor in clip.state_dict().items()}, 1)
    state = {key: value.half().float() if halves else value for key, value in state.items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def make_pickscore(folder: Path) -> dict[str, Any]:
    return {"model": str(make_clip_folder(folder, reference("pickscore")["config"]))}


def make_clipscore(folder: Path) -> dict[str, Any]:
    return {"model": str(make_clip_folder(folder, reference("clip")["config"], halves=True))}


def make_aesthetic(folder: Path) -> dict[str, Any]:
    state = {key: value.half().float() for key, value in tensors(head_layout(768), 2).items()}
    arguments = make_clipscore(folder)
    torch.save(state, folder / "sac+logos+ava1-l14-linearMSE.pth")
    return {"weights": str(folder), **arguments}


MAKERS: dict[str, tuple[type[Any], Callable[[Path], dict[str, Any]]]] = {
    "hpsv2": (HPSv2, make_hpsv2),
    "imagereward": (ImageReward, make_imagereward),
    "pickscore": (PickScore, make_pickscore),
    "clipscore": (CLIPScore, make_clipscore),
    "aesthetic": (Aesthetic, make_aesthetic),
}


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def make_inception(folder: Path) -> Path:
    """torch-fidelity's file in a folder, 24 M random weights: the layout is what its network asks for."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    layout: dict[str, Any] = {}

    def note_layout(net: nn.Module, _: Any) -> None:
        layout.update({key: tensor.shape for key, tensor in net.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", note_layout)
        module.FeatureExtractorInceptionV3("inception-v3-compat", ["64"])
    state = tensors(layout, 1)
    state |= {key: torch.ones(shape) for key, shape in layout.items() if key.endswith("running_var")}
    state |= {key: 2**0.5 * weight for key, weight in state.items() if weight.ndim == 4}  # half of it is lost to ReLU
    torch.save(state, folder / "pt_inception-2015-12-05-6726825d.pth")
    return folder

"""CLIPScore and the aesthetic predictor against OpenAI's CLIP and image-reward's programs on it, and torchmetrics."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from reference.seeded import PROMPTS, pictures
from scorer_files import CPU, make_aesthetic, one_by_one, ready, reference, request
from torch.nn import functional as F  # noqa: N812 - the usual name

from guardlit.errors import GuardlitError
from guardlit.rewards import Aesthetic, CLIPScore, TorchmetricsClip

# OpenAI's program fixes curly quotes and entities first (1, 2), and rounds an odd margin of the crop differently (4)
# from transformers and its users.
OTHER_TEXT, OTHER_CROP = {1, 2}, {4}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_aesthetic(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clipscore(arguments: dict[str, Any]) -> CLIPScore:
    return ready(CLIPScore(arguments["model"]))


def cosines(scorer: CLIPScore) -> torch.Tensor:
    pairs = zip(pictures(), PROMPTS, strict=True)
    with torch.no_grad():
        return torch.cat([scorer.compared(request([image], [prompt]))[0] for image, prompt in pairs])


def test_cosines_are_those_of_openais_program(clipscore: CLIPScore):
    errors = (cosines(clipscore) - torch.tensor(reference("clip")["cosines"])).abs()
    differ = OTHER_TEXT | OTHER_CROP
    assert max(errors[i] for i in range(6) if i not in differ) < 1e-6
    assert min(errors[i] for i in differ) > 1e-4


def test_the_score_is_a_hundred_cosines_and_never_negative(clipscore: CLIPScore):
    expected = cosines(clipscore)
    assert expected.min() < 0 < expected.max()
    torch.testing.assert_close(one_by_one(clipscore), 100 * expected.clamp(min=0), rtol=1e-6, atol=0)


def test_wrong_scoring_fails(clipscore: CLIPScore):
    expected = torch.tensor(reference("clip")["cosines"])
    scorer = copy.copy(clipscore)
    right = scorer._preprocess
    scorer._preprocess = lambda images: right(F.avg_pool2d(images.float(), 2).to(torch.uint8))
    assert (cosines(scorer) - expected)[[0, 3, 5]].abs().max() > 1e-4


def test_torchmetrics_agrees_on_every_sample(clipscore: CLIPScore, arguments: dict[str, Any]):
    from torchmetrics.multimodal import CLIPScore as Metric

    metric = Metric(TorchmetricsClip(arguments["model"]))
    short = [
        i for i, prompt in enumerate(PROMPTS) if len(prompt) < 100
    ]  # that metric cuts off the end token of a longer one
    theirs = []
    for i in short:
        metric.reset()
        metric.update(torch.from_numpy(pictures()[i]).permute(2, 0, 1)[None], [PROMPTS[i]])
        theirs.append(metric.compute().detach())
    torch.testing.assert_close(torch.stack(theirs), one_by_one(clipscore)[short], rtol=1e-5, atol=1e-5)


def test_both_are_gold_scores(arguments: dict[str, Any], tmp_path: Path):
    """By GoldScore, whose configuration gives torchmetrics' metric the adapter as a class path."""
    from guardlit_callbacks import GoldScore
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(GoldScore, "gold")
    adapter = {"class_path": "guardlit.rewards.TorchmetricsClip", "init_args": {"model": arguments["model"]}}
    scorers = {
        "ours": {"class_path": "guardlit.rewards.CLIPScore", "init_args": {"model": arguments["model"]}},
        "theirs": {
            "class_path": "torchmetrics.multimodal.CLIPScore",
            "init_args": {"model_name_or_path": adapter},
        },
    }
    options = {"scorers": scorers, "metadata": None, "proxy": None, "average": ["ours"]}
    config = {"gold": {"class_path": "guardlit_callbacks.GoldScore", "init_args": options}}
    gold = parser.instantiate(parser.parse_object(config)).gold

    images = torch.from_numpy(pictures([(48, 48)] * 6)[0]).permute(2, 0, 1).expand(2, -1, -1, -1).contiguous()
    images[1] = 255 - images[1]
    prompts = [PROMPTS[0], PROMPTS[5]]
    trainer = Trainer(logger=False, enable_checkpointing=False, default_root_dir=tmp_path, accelerator="cpu")
    gold.on_validation_epoch_start(trainer, _Module())
    samples = gold.collect({"images": images, "prompts": prompts})
    for sample in samples:
        assert sample["theirs"] == pytest.approx(sample["ours"], rel=1e-4, abs=1e-4)
    assert max(sample["ours"] for sample in samples) > 0.1


class _Module:
    device = CPU


def test_ratings_are_those_of_the_published_predictor(arguments: dict[str, Any]):
    scorer = ready(Aesthetic(**arguments))
    errors = (one_by_one(scorer) - torch.tensor(reference("clip")["aesthetic"])).abs()
    assert max(errors[i] for i in range(6) if i not in OTHER_CROP) < 1e-6
    assert min(errors[i] for i in OTHER_CROP) > 1e-3


def test_a_rating_needs_an_embedding_of_length_one(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    scorer = ready(Aesthetic(**arguments))
    monkeypatch.setattr(torch.nn.functional, "normalize", lambda tensor: tensor)
    errors = (one_by_one(scorer) - torch.tensor(reference("clip")["aesthetic"])).abs()
    assert errors.max() > 1e-2


def test_only_the_vision_tower_stays_in_memory(arguments: dict[str, Any]):
    network = ready(Aesthetic(**arguments)).network
    assert not [name for name, _ in network.named_parameters() if "text" in name]


def test_a_head_for_another_clip_gives_one_line(arguments: dict[str, Any], clip_folder: Path):
    with pytest.raises(GuardlitError) as caught:
        Aesthetic(arguments["weights"], str(clip_folder)).setup(CPU)
    assert "1 weights of wrong shape (layers.0.weight)" in str(caught.value)
    assert "\n" not in str(caught.value)

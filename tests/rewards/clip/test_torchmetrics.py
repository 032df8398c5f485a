"""torchmetrics' own FID, KID, IS and LPIPS, offline, with networks from local files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from reference.seeded import pictures
from scorer_files import Malicious, tensors
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.rewards import TorchmetricsClip, inception

NAME = "pt_inception-2015-12-05-6726825d.pth"


def images(*which: int) -> Tensor:
    return torch.stack([torch.from_numpy(pictures([(40, 40)] * 6)[i]).permute(2, 0, 1) for i in which])


def test_fid_is_that_of_the_same_file_given_to_torchmetrics(inception_folder: Path):
    from torchmetrics.image.fid import FrechetInceptionDistance

    ours = FrechetInceptionDistance(inception(str(inception_folder), "64"))
    theirs = FrechetInceptionDistance(64, feature_extractor_weights_path=str(inception_folder / NAME))
    for metric in (ours, theirs):
        metric.update(images(0, 1), real=True)
        metric.update(images(2, 3), real=False)
    assert ours.compute() == theirs.compute()
    assert ours.compute() > 1e-3


def test_kid_and_is_take_the_file_too(inception_folder: Path):
    """By themselves they would download it."""
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    kid = KernelInceptionDistance(inception(str(inception_folder), "192"), subsets=2, subset_size=2)
    kid.update(images(0, 1), real=True)
    kid.update(images(2, 3), real=False)
    assert torch.isfinite(kid.compute()[0])
    score = InceptionScore(inception(str(inception_folder), "logits_unbiased"), splits=1)
    score.update(images(0, 2))
    mean, _ = score.compute()
    assert 1.001 < mean <= 2  # at most the number of images


def test_nothing_is_drawn(inception_folder: Path):
    from torchmetrics.image.fid import FrechetInceptionDistance

    before = torch.random.get_rng_state()
    FrechetInceptionDistance(inception(str(inception_folder), "64"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_code_in_the_file_is_refused(tmp_path: Path):
    torch.save({"fc.bias": Malicious(tmp_path / "victim")}, tmp_path / NAME)
    with pytest.raises(GuardlitError, match=r"its pickle asks for posix\.mkdir"):
        inception(str(tmp_path))
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("content", [{"fc.bias": torch.zeros(3)}, {}])
def test_other_weights_give_one_line(tmp_path: Path, content: dict[str, Tensor]):
    torch.save(content, tmp_path / NAME)
    with pytest.raises(GuardlitError) as caught:
        inception(str(tmp_path))
    assert str(caught.value) == f"{tmp_path / NAME}: these are not the weights of torch-fidelity's Inception v3"


def test_without_torch_fidelity_the_message_says_what_to_install(
    inception_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(GuardlitError, match=r"torch-fidelity: pip install 'guardlit\[metrics\]'"):
        inception(str(inception_folder))


def test_lpips_takes_its_backbone_from_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torchvision
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with torch.random.fork_rng():
        layout = {k: v.shape for k, v in torchvision.models.squeezenet1_1().state_dict().items()}
    state = tensors(layout, 1)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    metric = LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True)
    assert torch.equal(metric.net.net.slices[0][0].weight, state["features.0.weight"])
    first, second = images(0, 1) / 255, images(1, 0) / 255
    assert metric(first, first) == 0
    assert metric(first, second) > 0.01


def test_a_folder_without_clip_gives_one_line(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(GuardlitError) as caught:
        TorchmetricsClip(str(tmp_path))()
    assert "\n" not in str(caught.value)
    with pytest.raises(GuardlitError, match="run `hf download absent/model`"):
        TorchmetricsClip("absent/model")()

"""HPSv2 against the scores that the hpsv2 package gave, and what must not give them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.seeded import PROMPTS, pictures, write_clip_files
from scorer_files import CPU, make_hpsv2, one_by_one, ready, reference
from torch import Tensor

import guardlit.rewards.clip.hpsv2 as module
from guardlit.errors import GuardlitError
from guardlit.rewards import HPSv2
from guardlit.rewards.clip.hpsv2 import fit_longest_edge
from guardlit.rewards.clip.preprocess import OPENAI_MEAN, OPENAI_STD, normalize

TOLERANCE = 1e-6  # of a cosine; the scores of these pictures and prompts spread over 0.1


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_hpsv2(tmp_path_factory.mktemp("hpsv2"))


def error(scorer: HPSv2) -> float:
    """Largest distance from the package's scores."""
    return (one_by_one(scorer) - torch.tensor(reference("hpsv2")["tiny"]["expected"])).abs().max().item()


def test_scores_are_those_of_the_package(arguments: dict[str, Any]):
    assert error(ready(HPSv2(**arguments))) < TOLERANCE


def no_antialias(scorer: HPSv2, **_: Any) -> None:
    scorer.antialias = False


def shortest_edge(monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    def fit(pixels: Tensor, size: int, antialias: bool) -> Tensor:
        height, width = (round(edge * size / min(pixels.shape[-2:])) for edge in pixels.shape[-2:])
        pixels = torch.nn.functional.interpolate(pixels, size=(height, width), mode="bicubic", antialias=antialias)
        top, left = (height - size) // 2, (width - size) // 2
        return pixels[..., top : top + size, left : left + size]

    monkeypatch.setattr(module, "fit_longest_edge", fit)


def gray_margins(monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    """The mean of the training images in the margins: 0 after normalization."""

    def fit(pixels: Tensor, size: int, antialias: bool) -> Tensor:
        seen = fit_longest_edge(normalize(pixels, OPENAI_MEAN, OPENAI_STD), size, antialias)
        return seen * seen.new_tensor(OPENAI_STD).view(-1, 1, 1) + seen.new_tensor(OPENAI_MEAN).view(-1, 1, 1)

    monkeypatch.setattr(module, "fit_longest_edge", fit)


def transformers_tokenizer(scorer: HPSv2, folder: Path, **_: Any) -> None:
    from transformers import CLIPTokenizer

    write_clip_files(folder, {"vision_config": {"image_size": 32}})
    other = CLIPTokenizer.from_pretrained(folder)
    length: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": 77}
    scorer._tokenizer = lambda texts: other(texts, return_tensors="pt", **length)["input_ids"]


@pytest.mark.parametrize(
    ("spoil", "at_least"),
    [(no_antialias, 1e-2), (shortest_edge, 1e-2), (gray_margins, 1e-3), (transformers_tokenizer, 1e-3)],
)
def test_wrong_settings_fail(
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spoil: Callable[..., None],
    at_least: float,
):
    scorer = ready(HPSv2(**arguments))
    spoil(scorer=scorer, monkeypatch=monkeypatch, folder=tmp_path)
    assert error(scorer) > at_least


def test_no_antialias_is_an_option_that_is_recorded(arguments: dict[str, Any]):
    scorer = ready(HPSv2(**arguments, antialias=False))
    assert error(scorer) > 1e-2
    assert scorer.provenance["antialias"] == "false"
    assert ready(HPSv2(**arguments)).provenance["antialias"] == "true"


@pytest.mark.parametrize("shape", [(300, 200), (100, 231), (224, 100), (64, 64), (224, 224)])
def test_images_are_fitted_into_the_square(shape: tuple[int, int]):
    import torchvision.transforms.v2.functional as tv

    image = torch.from_numpy(pictures([shape])[0]).permute(2, 0, 1)[None].float() / 255
    fitted = fit_longest_edge(image, 224)
    assert fitted.shape == (1, 3, 224, 224)
    height, width = (round(edge * 224 / max(shape)) for edge in shape)
    top, left = (224 - height) // 2, (224 - width) // 2
    inside = tv.resize(image, [height, width], tv.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(fitted[..., top : top + height, left : left + width], inside, rtol=0, atol=1e-6)
    black = fitted.clone()
    black[..., top : top + height, left : left + width] = 0
    assert black.abs().max() == 0


def test_the_version_is_recorded_and_must_be_that_of_the_file(arguments: dict[str, Any], tmp_path: Path):
    assert ready(HPSv2(**arguments)).provenance["version"] == "v2.1"
    file = Path(arguments["weights"]) / "HPS_v2.1_compressed.pt"
    old = tmp_path / "HPS_v2_compressed.pt"
    old.symlink_to(file)
    assert ready(HPSv2("v2.0", **arguments | {"weights": str(tmp_path)})).provenance["version"] == "v2.0"
    with pytest.raises(GuardlitError) as caught:
        HPSv2(**arguments | {"weights": str(old)}).setup(CPU)
    assert str(caught.value) == f"{old}: the file of HPS v2.0, but `version` of HPSv2 says v2.1"
    with pytest.raises(GuardlitError, match=r"the file of HPS v2\.1, but `version` of HPSv2 says v2\.0"):
        HPSv2("v2.0", **arguments | {"weights": str(file)}).setup(CPU)


def test_an_architecture_that_open_clip_lacks(arguments: dict[str, Any]):
    with pytest.raises(GuardlitError, match="architecture 'ViT-Q-13' of HPSv2 is unknown to open_clip"):
        HPSv2(**arguments | {"architecture": "ViT-Q-13"}).setup(CPU)


def test_the_published_architecture_is_the_default():
    scorer = HPSv2()
    assert (scorer.version, scorer.weights_file, scorer.architecture) == ("v2.1", "xswu/HPSv2", "ViT-H-14")


@pytest.mark.slow
def test_the_full_size_gives_the_scores_of_the_package(tmp_path: Path):
    """986 M weights, a file of 3.9 GB, about a minute; not less memory than 9 GB."""
    case = reference("hpsv2")["full"]
    arguments = make_hpsv2(tmp_path, case["architecture"], case["seed"])
    start = time.perf_counter()
    scorer = ready(HPSv2(**arguments))
    loaded = time.perf_counter()
    scores = one_by_one(scorer, pictures([tuple(size) for size in case["sizes"]]))
    done = time.perf_counter()
    (tmp_path / "HPS_v2.1_compressed.pt").unlink()  # pytest keeps folders of earlier runs
    expected = torch.tensor(case["expected"])
    error = (scores - expected).abs().max().item()
    print(f"load {loaded - start:.1f} s, score {(done - loaded) / len(expected):.1f} s/image, error {error:.1e}")
    assert len(expected) == 2 < len(PROMPTS)
    torch.testing.assert_close(scores, expected, rtol=0, atol=TOLERANCE)

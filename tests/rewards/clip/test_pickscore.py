"""PickScore against transformers' own processor and towers, and the folders it must refuse."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scorer_files import make_pickscore, one_by_one, ready, reference
from tiny_folders import IMAGE_SIZE
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from guardlit.errors import GuardlitError
from guardlit.rewards.clip.hpsv2 import fit_longest_edge
from guardlit.rewards.clip.pickscore import PickScore
from guardlit.rewards.clip.preprocess import ClipPreprocess, normalize, resize_shortest_edge
from guardlit.rewards.network import Placement
from guardlit.types import RewardRequest

CPU = torch.device("cpu")
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # of scores around 1
PROMPTS = ["a photo of a cat", "“a red dog”, says the sign", "a photo of a cat", "seven " * 100, "", "a blue bird"]


def pictures(height: int = 96, width: int = 96) -> Tensor:
    """Six different images: ramps, waves, a chequerboard, stripes and noise, (6, 3, height, width) uint8."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    board = ((torch.arange(height)[:, None] // 3 + torch.arange(width) // 3) % 2).float()
    noise = torch.rand(height, width, generator=torch.Generator().manual_seed(0))
    stripes = (torch.arange(width) % 2).float().expand(height, width)
    planes = [x, y * x, 0.5 + 0.5 * torch.sin(40 * x + 9 * y), board, stripes, noise]
    return torch.stack([torch.stack([p, 1 - p, p * y]) * 255 for p in planes]).round().to(torch.uint8)


def pil_pixels(images: Tensor, **sizes: object) -> Tensor:
    from transformers import CLIPImageProcessorPil

    arrays = [np.moveaxis(image.numpy(), 0, -1) for image in images]
    return CLIPImageProcessorPil(**sizes)(arrays, return_tensors="pt")["pixel_values"]


def reference_scores(folder: Path, prompts: list[str], pixels: Tensor, *, normalize: bool = True) -> Tensor:
    """The published formula one pair at a time, in float64."""
    from transformers import CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder, dtype=torch.float64)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    scores = []
    for prompt, image in zip(prompts, pixels, strict=True):
        tokens = tokenizer(prompt, truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            text = model.text_projection(model.text_model(**tokens).pooler_output)[0]
            seen = model.visual_projection(model.vision_model(image[None].double()).pooler_output)[0]
            score = model.logit_scale.exp() * (text @ seen)
            scores.append(score / (text.norm() * seen.norm()) if normalize else score)
    return torch.stack(scores)


@pytest.fixture(scope="module")
def scorer(clip_folder: Path) -> PickScore:
    scorer = PickScore(str(clip_folder))
    scorer.setup(CPU)
    return scorer


def request(images: Tensor, prompts: list[str]) -> RewardRequest:
    return RewardRequest(images, prompts, [{}] * len(prompts))


@pytest.fixture(scope="module")
def published() -> ClipPreprocess:
    """The settings of CLIP and PickScore: 224 pixels."""
    from transformers import CLIPImageProcessor

    return ClipPreprocess.like(CLIPImageProcessor())


@pytest.mark.parametrize("shape", [(96, 96), (224, 224), (512, 512), (333, 517), (50, 40), (1024, 768)])
def test_pixels_are_those_of_pil(published: ClipPreprocess, shape: tuple[int, int]):
    images = pictures(*shape)
    assert torch.equal(published(images), pil_pixels(images))


@pytest.mark.parametrize(("antialias", "at_least"), [(False, 50), (True, 2)])
def test_an_ordinary_bicubic_resize_is_not(published: ClipPreprocess, antialias: bool, at_least: int):
    images = pictures(512, 512)
    mean, std = torch.tensor(published.mean).view(-1, 1, 1), torch.tensor(published.std).view(-1, 1, 1)
    levels = (pil_pixels(images) * std + mean) * 255
    ordinary = F.interpolate(images.float(), size=(224, 224), mode="bicubic", antialias=antialias)
    assert (ordinary - levels).abs().max() > at_least


def test_resize_keeps_what_has_the_right_size():
    images = pictures(64, 96)
    assert torch.equal(resize_shortest_edge(images, 64), images.float())
    with pytest.raises(TypeError, match="uint8"):
        ClipPreprocess(64, (64, 64), (0.5,) * 3, (0.5,) * 3)(images.float())


@pytest.mark.parametrize("shape", [(96, 96), (256, 256), (75, 111)])
def test_scores_are_the_published_formula(scorer: PickScore, clip_folder: Path, shape: tuple[int, int]):
    images = pictures(*shape)
    result = scorer.score(request(images, PROMPTS))
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pil = pil_pixels(images, size={"shortest_edge": IMAGE_SIZE}, crop_size=side)
    torch.testing.assert_close(result.values.double(), reference_scores(clip_folder, PROMPTS, pil), **ROUNDING)
    assert result.valid.all()
    assert result.values.std() > 0.1


def test_wrong_scoring_fails(scorer: PickScore, clip_folder: Path):
    images = pictures(256, 256)
    right = scorer.score(request(images, PROMPTS)).values.double()
    preprocess = scorer._preprocess
    mean, std = torch.tensor(preprocess.mean).view(-1, 1, 1), torch.tensor(preprocess.std).view(-1, 1, 1)
    aliased = F.interpolate(images.float(), size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic").round().clamp(0, 255) / 255
    for wrong in (
        reference_scores(clip_folder, PROMPTS, (aliased - mean) / std),
        reference_scores(clip_folder, PROMPTS, preprocess(images) * std + mean),  # pixels left in [0, 1]
        reference_scores(clip_folder, PROMPTS, preprocess(images), normalize=False),
        reference_scores(clip_folder, PROMPTS[::-1], preprocess(images)),
    ):
        assert ((wrong - right) / right).abs().max() > 1e-2


def test_batches_and_order_do_not_matter(scorer: PickScore, clip_folder: Path):
    images = pictures()
    whole = scorer.score(request(images, PROMPTS)).values
    small = PickScore(str(clip_folder), placement=Placement(batch_size=2))
    small.setup(CPU)
    torch.testing.assert_close(small.score(request(images, PROMPTS)).values, whole, **ROUNDING)
    order = [3, 0, 5, 1, 4, 2]
    permuted = scorer.score(request(images[order], [PROMPTS[i] for i in order])).values
    torch.testing.assert_close(permuted, whole[order], **ROUNDING)


def test_every_prompt_is_encoded_once(scorer: PickScore, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    embed = scorer._embed_texts
    monkeypatch.setattr(scorer, "_embed_texts", lambda texts: seen.extend(texts) or embed(texts))
    scorer.score(request(pictures(), PROMPTS))
    assert sorted(seen) == sorted(set(PROMPTS))


def test_global_random_state_is_unchanged(clip_folder: Path):
    before = torch.random.get_rng_state()
    scorer = PickScore(str(clip_folder))
    scorer.setup(CPU)
    scorer.score(request(pictures(), PROMPTS))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_precision_is_the_one_asked_for(clip_folder: Path, tmp_path: Path, scorer: PickScore):
    half = shutil.copytree(clip_folder, tmp_path / "half")
    weights = safetensors.torch.load_file(half / "model.safetensors")
    safetensors.torch.save_file({k: v.half() for k, v in weights.items()}, half / "model.safetensors", {"format": "pt"})
    full = PickScore(str(half))
    full.setup(CPU)
    assert {p.dtype for p in full.network.parameters()} == {torch.float32}
    low = PickScore(str(clip_folder), placement=Placement(dtype="bf16"))
    low.setup(CPU)
    result = low.score(request(pictures(), PROMPTS))
    assert low.network.dtype == torch.bfloat16
    assert result.values.dtype == torch.float32
    torch.testing.assert_close(result.values, scorer.score(request(pictures(), PROMPTS)).values, rtol=0, atol=5)
    assert result.provenance["dtype"] == "bf16"


def edit_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return edit


def edit_json(name: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (edit_weights(lambda w: w.pop("logit_scale")), "1 weights missing (logit_scale)"),
        (edit_weights(lambda w: w.update(extra=torch.zeros(1))), "1 weights unexpected (extra)"),
        (
            edit_weights(lambda w: w.update({"text_projection.weight": torch.zeros(16, 8)})),
            "1 weights of wrong shape (text_projection.weight)",
        ),
        (edit_json("config.json", model_type="bert"), "not a CLIP model, its config.json says model_type 'bert'"),
        (remove("config.json"), "no config.json"),
        (remove("model.safetensors"), "no file named model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"), "not a readable CLIP folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a readable CLIP folder"),
        (remove("tokenizer.json", "vocab.json", "merges.txt"), "its tokenizer knows 2 tokens, the text encoder"),
        (edit_json("preprocessor_config.json", resample=2), "something else than CLIP's preprocessing"),
        (edit_json("preprocessor_config.json", do_center_crop=False), "something else than CLIP's preprocessing"),
        (edit_json("preprocessor_config.json", size={"height": 32, "width": 32}), "something else than CLIP's"),
        (remove("preprocessor_config.json"), "laion/CLIP-ViT-H-14-laion2B-s32B-b79K: neither here nor in"),
    ],
)
def test_bad_folders_give_one_line(clip_folder: Path, tmp_path: Path, spoil: Callable[[Path], object], expected: str):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    spoil(folder)
    with pytest.raises(GuardlitError) as caught:
        PickScore(str(folder)).setup(CPU)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_old_bin_files_load_and_code_in_them_does_not_run(clip_folder: Path, tmp_path: Path, scorer: PickScore):
    folder = shutil.copytree(clip_folder, tmp_path / "old")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    buffer = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(weights | buffer, folder / "pytorch_model.bin")
    old = PickScore(str(folder))
    old.setup(CPU)
    asked = request(pictures(), PROMPTS)
    assert torch.equal(old.score(asked).values, scorer.score(asked).values)

    torch.save({**weights, "path": Path("x")}, folder / "pytorch_model.bin")
    with pytest.raises(GuardlitError, match="not a readable CLIP folder"):
        PickScore(str(folder)).setup(CPU)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("/nowhere/clip", "there is no /nowhere/clip; a CLIP folder"),
        ("absent/model", "run `hf download absent/model`"),
    ],
)
def test_models_that_are_missing(model: str, expected: str):
    with pytest.raises(GuardlitError) as caught:
        PickScore(model).setup(CPU)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_default_processor(clip_folder: Path):
    assert PickScore().processor == "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    assert PickScore(str(clip_folder)).processor == str(clip_folder)
    assert PickScore("a/b", processor="c/d").processor == "c/d"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_scores_on_a_gpu_are_those_of_the_cpu(clip_folder: Path, scorer: PickScore, published: ClipPreprocess):
    images = pictures(512, 512)
    on_gpu = PickScore(str(clip_folder))
    on_gpu.setup(torch.device("cuda"))
    expected = scorer.score(request(images, PROMPTS)).values
    torch.testing.assert_close(on_gpu.score(request(images.cuda(), PROMPTS)).values, expected, rtol=1e-3, atol=0)
    assert torch.equal(published(images.cuda()).cpu(), published(images))


# against the published program -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_scorer(tmp_path_factory: pytest.TempPathFactory) -> PickScore:
    return ready(PickScore(**make_pickscore(tmp_path_factory.mktemp("pickscore"))))


def error(scorer: PickScore) -> float:
    """Largest relative distance from the scores of the published program."""
    expected = torch.tensor(reference("pickscore")["expected"])
    return ((one_by_one(scorer) - expected) / expected).abs().max().item()


def test_scores_are_those_of_the_published_program(published_scorer: PickScore):
    assert error(published_scorer) < 1e-5


def aliased(scorer: PickScore) -> None:
    right = scorer._preprocess

    def wrong(images: Tensor) -> Tensor:
        edge = right.size / min(images.shape[-2:])
        size = [int(side * edge) for side in images.shape[-2:]]
        pixels = F.interpolate(images.float(), size=size, mode="bicubic").round().clamp(0, 255) / 255
        top, left = ((side - right.size) // 2 for side in size)
        return normalize(pixels[..., top : top + right.size, left : left + right.size], right.mean, right.std)

    scorer._preprocess = wrong


def longest_edge(scorer: PickScore) -> None:
    right = scorer._preprocess
    scorer._preprocess = lambda images: normalize(fit_longest_edge(images / 255, right.size), right.mean, right.std)


def crop_of_torchvision(scorer: PickScore) -> None:
    scorer._preprocess = replace(scorer._preprocess, margin="even")


def open_clips_tokenizer(scorer: PickScore) -> None:
    import open_clip
    from transformers import BatchEncoding

    other = open_clip.get_tokenizer("ViT-H-14")
    scorer._tokenizer = lambda texts, **_: BatchEncoding({"input_ids": other(texts)})


@pytest.mark.parametrize("spoil", [aliased, longest_edge, crop_of_torchvision, open_clips_tokenizer])
def test_wrong_settings_fail(published_scorer: PickScore, spoil: Callable[[PickScore], None]):
    scorer = copy.copy(published_scorer)
    spoil(scorer)
    assert error(scorer) > 1e-3

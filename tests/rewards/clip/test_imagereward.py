"""ImageReward against the scores that the image-reward package gave, and what must not give them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.seeded import imagereward_layout, pictures
from scorer_files import CPU, make_imagereward, one_by_one, ready, reference
from torch import Tensor

import guardlit.rewards.clip.imagereward as module
from guardlit.errors import GuardlitError
from guardlit.rewards import ImageReward
from guardlit.rewards.clip.preprocess import OPENAI_MEAN, OPENAI_STD, ClipPreprocess, normalize

TOLERANCE = 2e-6  # the scores of these pictures and prompts spread over 0.3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return {case: make_imagereward(tmp_path_factory.mktemp(case), case) for case in ("tiny", "faint")}


def error(scorer: ImageReward, case: str = "tiny") -> float:
    """Largest distance from the package's scores."""
    return (one_by_one(scorer) - torch.tensor(reference("imagereward")[case]["expected"])).abs().max().item()


@pytest.mark.parametrize("case", ["tiny", "faint"])
def test_scores_are_those_of_the_package(folders: dict[str, dict[str, Any]], case: str):
    assert error(ready(ImageReward(**folders[case])), case) < TOLERANCE


@pytest.mark.parametrize(
    ("part", "wrong", "case", "at_least"),
    [
        ("text", {"num_attention_heads": 8}, "tiny", 0.1),  # transformers' default; every weight still fits
        ("text", {"layer_norm_eps": 1e-5}, "tiny", 1e-5),
        ("vision", {"layer_norm_eps": 1e-5}, "faint", 1e-2),  # transformers' default; hardly seen in other weights
        ("vision", {"num_attention_heads": 8}, "tiny", 0.1),
    ],
)
def test_a_wrong_architecture_fails(
    folders: dict[str, dict[str, Any]], part: str, wrong: dict[str, Any], case: str, at_least: float
):
    arguments = folders[case] | {part: folders[case][part] | wrong}
    assert error(ready(ImageReward(**arguments)), case) > at_least


def aliased(scorer: ImageReward, **_: Any) -> None:
    right = scorer._preprocess

    def wrong(images: Tensor) -> Tensor:
        edge = right.size / min(images.shape[-2:])
        size = [int(side * edge) for side in images.shape[-2:]]
        pixels = torch.nn.functional.interpolate(images.float(), size=size, mode="bicubic").round().clamp(0, 255) / 255
        top, left = (round((side - right.size) / 2) for side in size)
        pixels = pixels[..., top : top + right.size, left : left + right.size]
        return normalize(pixels, right.mean, right.std)

    scorer._preprocess = wrong


def crop_of_transformers(scorer: ImageReward, **_: Any) -> None:
    scorer._preprocess = replace(scorer._preprocess, margin="down")


def squeezed(scorer: ImageReward, **_: Any) -> None:
    right = scorer._preprocess

    def wrong(images: Tensor) -> Tensor:
        pixels = torch.nn.functional.interpolate(images.float(), size=right.crop, mode="bicubic", antialias=True) / 255
        return normalize(pixels, right.mean, right.std)

    scorer._preprocess = wrong


def longer_prompts(monkeypatch: pytest.MonkeyPatch, **_: Any) -> None:
    monkeypatch.setattr(module, "_PROMPT_TOKENS", 40)


def cased_tokenizer(scorer: ImageReward, folder: Path, **_: Any) -> None:
    shutil.copytree(scorer.tokenizer, folder / "cased")
    settings = json.loads((folder / "cased" / "tokenizer_config.json").read_text())
    (folder / "cased" / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    scorer.tokenizer = str(folder / "cased")
    scorer._load_tokenizer(scorer.text["vocab_size"])


def in_training_mode(scorer: ImageReward, **_: Any) -> None:
    scorer.network["text"].embeddings.dropout.p = 0.1
    scorer.network.train()


@pytest.mark.parametrize(
    ("spoil", "at_least"),
    [
        (aliased, 1e-2),
        (crop_of_transformers, 1e-3),
        (squeezed, 1e-2),
        (longer_prompts, 1e-3),
        (cased_tokenizer, 1e-3),
        (in_training_mode, 1e-2),
    ],
)
def test_wrong_settings_fail(
    folders: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spoil: Callable[..., None],
    at_least: float,
):
    scorer = ready(ImageReward(**folders["tiny"]))
    spoil(scorer=scorer, monkeypatch=monkeypatch, folder=tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert error(scorer) > at_least


@pytest.mark.parametrize("shape", [(100, 60), (64, 37), (57, 90), (300, 200), (32, 32)])
def test_pixels_are_those_of_torchvision_on_a_pil_image(shape: tuple[int, int]):
    from PIL import Image
    from torchvision import transforms as tv

    steps = [tv.Resize(32, tv.InterpolationMode.BICUBIC), tv.CenterCrop(32), tv.ToTensor()]
    image = pictures([shape])[0]
    expected = tv.Compose([*steps, tv.Normalize(OPENAI_MEAN, OPENAI_STD)])(Image.fromarray(image))
    ours = ClipPreprocess(32, (32, 32), margin="even")(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)  # a gray level is 1.5e-2


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("blip.visual_encoder.blocks.0.attn.q.weight", "blip.visual_encoder.blocks.0.attn.q.weight"),
        ("blip.itm_head.weight", "blip.itm_head.weight"),
        ("module.mlp.layers.0.weight", "module.mlp.layers.0.weight"),
        ("blip.text_encoder.pooler.dense.weight", "text.pooler.dense.weight"),
        ("blip.vision_proj.scale", "blip.vision_proj.scale"),
    ],
)
def test_a_key_that_no_rule_knows_is_an_error(
    folders: dict[str, dict[str, Any]], tmp_path: Path, key: str, expected: str
):
    weights = torch.load(Path(folders["tiny"]["weights"]) / "ImageReward.pt")
    torch.save(weights | {key: torch.zeros(2)}, tmp_path / "ImageReward.pt")
    with pytest.raises(GuardlitError) as caught:
        ImageReward(**folders["tiny"] | {"weights": str(tmp_path)}).setup(CPU)
    assert f"1 weights unexpected ({expected})" in str(caught.value)


def test_every_rule_is_needed(folders: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    rules = module._RENAMED
    assert len(rules) == 10
    for rule in rules:
        monkeypatch.setattr(module, "_RENAMED", tuple(other for other in rules if other is not rule))
        with pytest.raises(GuardlitError, match="weights missing"):
            ImageReward(**folders["tiny"]).setup(CPU)


def test_a_tokenizer_of_another_vocabulary_gives_one_line(folders: dict[str, dict[str, Any]], tmp_path: Path):
    folder = Path(shutil.copytree(folders["tiny"]["tokenizer"], tmp_path / "bert"))
    lines = (folder / "vocab.txt").read_text().splitlines()
    for kept, known in ((lines[:-1], 158), ([], 5)):
        (folder / "vocab.txt").write_text("".join(line + "\n" for line in kept))
        if not kept:
            (folder / "vocab.txt").unlink()
        with pytest.raises(GuardlitError) as caught:
            ImageReward(**folders["tiny"] | {"tokenizer": str(folder)}).setup(CPU)
        start = f"{folder}: its tokenizer knows {known} tokens, ImageReward was trained with 159; point `tokenizer` to"
        assert str(caught.value).startswith(start)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_missing(folders: dict[str, dict[str, Any]]):
    with pytest.raises(GuardlitError, match=r"run `hf download absent/model tokenizer_config\.json` on a machine"):
        ImageReward(**folders["tiny"] | {"tokenizer": "absent/model"}).setup(CPU)


def test_the_published_architecture_is_the_default():
    network = ImageReward()._build()
    layout = imagereward_layout(vocab_size=30524, **reference("imagereward")["full"]["sizes"])
    used = [shape for key, shape in layout.items() if "_proj." not in key and "position_ids" not in key]
    assert sum(p.numel() for p in network.parameters()) == sum(math.prod(shape) for shape in used) == 446_206_689
    vision, text = network["vision"].config, network["text"].config
    assert (vision.num_attention_heads, vision.layer_norm_eps) == (16, 1e-6)
    assert (text.num_attention_heads, text.layer_norm_eps, text.encoder_hidden_size) == (12, 1e-12, 1024)
    assert ImageReward().weights_file == "THUDM/ImageReward"
    assert "vision" not in ImageReward().provenance


def test_another_architecture_is_recorded(folders: dict[str, dict[str, Any]]):
    assert "'num_attention_heads': 4" in ImageReward(**folders["tiny"]).provenance["vision"]


def test_the_hubs_cache_serves_offline(
    folders: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With no more files than docs/rewards.md tells to download."""
    tiny = folders["tiny"]
    for repository, source, names in [
        ("models--THUDM--ImageReward", tiny["weights"], ["ImageReward.pt"]),
        ("models--google-bert--bert-base-uncased", tiny["tokenizer"], ["vocab.txt", "tokenizer_config.json"]),
    ]:
        snapshot = tmp_path / repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        for name in names:
            (snapshot / name).symlink_to(Path(source) / name)
        (tmp_path / repository / "refs").mkdir()
        (tmp_path / repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    scorer = ready(ImageReward(vision=tiny["vision"], text=tiny["text"]))
    assert error(scorer) < TOLERANCE
    assert scorer.provenance["tokenizer"] == "google-bert/bert-base-uncased"


@pytest.mark.slow
def test_the_full_size_gives_the_scores_of_the_package(tmp_path: Path):
    """447 M weights, a file of 1.8 GB; but for the number of words, which the small vocabulary has."""
    case = reference("imagereward")["full"]
    scorer = ready(ImageReward(**make_imagereward(tmp_path, "full")))
    scores = one_by_one(scorer, pictures([tuple(size) for size in case["image_sizes"]]))
    (tmp_path / "ImageReward.pt").unlink()  # pytest keeps folders of earlier runs
    expected = torch.tensor(case["expected"])
    print(f"error {(scores - expected).abs().max().item():.1e}")
    torch.testing.assert_close(scores, expected, rtol=0, atol=TOLERANCE)

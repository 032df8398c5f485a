"""GenEval as one scorer: detector, colors, rules, on tiny networks in the published formats."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import geneval_tiny as tiny
from runs import config, guardlit
from tiny_geneval import make_color_clip, make_detector
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from guardlit.errors import GuardlitError
from guardlit.rewards import GenEval, Placement
from guardlit.rewards.geneval.colors import color_vectors, crops, nearest, sentences
from guardlit.rewards.geneval.detector import View
from guardlit.rewards.geneval.prompt import CLASSES, COLORS, read_metadata
from guardlit.types import Prompt, RewardRequest

CPU = torch.device("cpu")
MODES = ["official", "strict", "flow_grpo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `detector` and `clip`."""
    return make_detector(tmp_path_factory.mktemp("geneval") / "tiny").parent


@pytest.fixture(scope="module")
def open_clip_model(folder: Path) -> Any:
    return make_color_clip(folder / "clip")


@pytest.fixture(scope="module")
def scorer(folder: Path, open_clip_model: Any) -> GenEval:
    return ready(folder)


def ready(folder: Path, **options: Any) -> GenEval:
    scorer = GenEval(str(folder / "detector"), clip=str(folder / "clip"), **options)
    scorer.setup(CPU)
    return scorer


def pictures(count: int, size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.stack([torch.from_numpy(tiny.picture(*size, i)).permute(2, 0, 1) for i in range(2, 2 + count)])


def request(images: Tensor, metadata: list[dict[str, Any]]) -> RewardRequest:
    return RewardRequest(images, ["a photo"] * len(images), metadata)


def wants(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"tag": "colors", "include": [{"class": name, "count": count, **more}]}


# colors -------------------------------------------------------------------------------------------------------------


def objects() -> tuple[Tensor, Tensor, Tensor]:
    """A picture, boxes of odd shapes in it, and masks that do not fill them."""
    image = torch.from_numpy(tiny.picture(90, 128, 1)).permute(2, 0, 1)
    boxes = torch.tensor([[0, 0, 128, 90], [10, 5, 43, 80], [60, 40, 127, 55], [30, 30, 50, 52], [100, 9, 102, 80]])
    y, x = torch.meshgrid(torch.arange(90), torch.arange(128), indexing="ij")
    inside = [(x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3]) for box in boxes.tolist()]
    masks = [rectangle & ((x + y) % 7 > 1) for rectangle in inside]
    return image, boxes, torch.stack(masks)


@torch.no_grad()
def official_cosines(model: Any, name: str) -> Tensor:
    """The benchmark's steps with open_clip's tokenizer, transform and towers, one crop at a time, (K, 10)."""
    import open_clip
    from PIL import Image

    tokenizer = open_clip.SimpleTokenizer()
    classifier = []
    for color in COLORS:
        texts = [
            f"a photo of a {color} {name}",
            f"a photo of a {color}-colored {name}",
            f"a photo of a {color} object",
        ]
        mean = F.normalize(model.encode_text(tokenizer(texts)), dim=-1).mean(dim=0)
        classifier.append(mean / mean.norm())
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    transform = open_clip.image_transform(32, is_train=False, mean=mean, std=std)
    image, boxes, masks = objects()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    seen = []
    for box, mask in zip(boxes.float().tolist(), masks.numpy(), strict=True):
        alone = Image.composite(picture, Image.new("RGB", picture.size, color="#999"), Image.fromarray(mask))
        seen.append(transform(alone.crop(box)))
    embedded = torch.cat([F.normalize(model.encode_image(pixels[None]), dim=-1) for pixels in seen])
    return embedded @ torch.stack(classifier, dim=1)


@torch.no_grad()
def our_cosines(scorer: GenEval, name: str, image: Tensor, boxes: Tensor, masks: Tensor) -> Tensor:
    vectors = color_vectors(scorer._embed_texts(sentences(name)))
    return F.normalize(scorer._embed_pixels(crops(image, boxes, masks, scorer._preprocess)), dim=-1) @ vectors.T


@pytest.mark.parametrize("name", ["dog", "tv remote"])
def test_colors_are_those_of_open_clip(scorer: GenEval, open_clip_model: Any, name: str):
    expected = official_cosines(open_clip_model, name)
    assert expected.std(dim=1).min() > 0.01  # the colors are apart
    torch.testing.assert_close(our_cosines(scorer, name, *objects()), expected, rtol=0, atol=2e-6)
    assert scorer._colors(*objects(), name) == [COLORS[i] for i in expected.argmax(1).tolist()]


def test_wrong_color_classification_fails(folder: Path, open_clip_model: Any, monkeypatch: pytest.MonkeyPatch):
    scorer = ready(folder)
    image, boxes, masks = objects()
    expected = official_cosines(open_clip_model, "dog")

    def off(*changed: Tensor) -> float:
        return float((our_cosines(scorer, "dog", *changed) - expected).abs().max())

    assert off(image, boxes, torch.ones_like(masks)) > 1e-3  # surroundings not painted over
    assert off(image.flip(0), boxes, masks) > 1e-3
    monkeypatch.setattr("guardlit.rewards.geneval.colors._SURROUNDINGS", "#000")
    assert off(image, boxes, masks) > 1e-3
    monkeypatch.undo()
    monkeypatch.setattr("guardlit.rewards.geneval.colors._TEMPLATES", ("a photo of a {color} {name}",) * 3)
    assert off(image, boxes, masks) > 1e-3
    monkeypatch.undo()
    for layer in scorer.clip.vision_model.encoder.layers:
        layer.mlp.activation_fn = torch.nn.GELU()
    assert off(image, boxes, masks) > 1e-4


def test_colors_of_embeddings_that_are_no_numbers():
    with pytest.raises(FloatingPointError):
        nearest(torch.full((1, 4), torch.nan), torch.eye(10, 4))


# from what the networks say to a verdict -----------------------------------------------------------------------------


def said(*instances: tuple[str, float, tuple[int, int, int, int]]) -> tuple[Tensor, Tensor]:
    """Logits of queries that see one class each, with a probability, in a rectangle of a 64 x 64 picture."""
    classes, masks = torch.full((len(instances), 81), -30.0), torch.full((len(instances), 200, 200), -60.0)
    for i, (name, probability, (left, top, right, bottom)) in enumerate(instances):
        classes[i, CLASSES.index(name)] = np.log(probability)
        classes[i, -1] = np.log(1 - probability)
        masks[i, top * 200 // 64 : bottom * 200 // 64, left * 200 // 64 : right * 200 // 64] = 60.0
    return classes, masks


def verdict(scorer: GenEval, metadata: dict[str, Any], *instances: tuple[str, float, tuple[int, int, int, int]]) -> Any:
    image = pictures(1)[0]
    return scorer._verdict(image, *said(*instances), read_metadata(metadata), View.of(64, 64))


LEFT, RIGHT = (0, 20, 16, 40), (40, 20, 60, 40)


def test_what_counts_as_found(scorer: GenEval):
    dog = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    for probability, found in ((0.29, False), (0.31, True)):
        assert verdict(scorer, dog, ("dog", probability, LEFT)).official is found
    two = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]}
    for probability, found in ((0.89, False), (0.91, True)):
        assert verdict(scorer, two, ("dog", 0.95, LEFT), ("dog", probability, RIGHT)).official is found
    crowd = [("dog", 0.99, (3 * i, 0, 3 * i + 3, 30)) for i in range(20)]
    assert verdict(scorer, dog, *crowd).flow_grpo == 1 - 15  # sixteen at most


def test_boxes_decide_on_positions(scorer: GenEval):
    placed = {
        "tag": "position",
        "include": [{"class": "laptop", "count": 1}, {"class": "cow", "count": 1, "position": ["right of", 0]}],
    }
    right = verdict(scorer, placed, ("laptop", 0.9, LEFT), ("cow", 0.9, RIGHT))
    wrong = verdict(scorer, placed, ("laptop", 0.9, RIGHT), ("cow", 0.9, LEFT))
    assert (right.official, right.strict, right.flow_grpo) == (True, True, 1.0)
    assert (wrong.official, wrong.strict, wrong.flow_grpo) == (False, False, 0.75)


def test_the_most_confident_are_colored(scorer: GenEval):
    instances = [("cup", 0.5, LEFT), ("cup", 0.9, RIGHT)]
    seen = [color for color in COLORS if verdict(scorer, wants("cup", color=color), *instances).official]
    alone = [color for color in COLORS if verdict(scorer, wants("cup", color=color), instances[1]).official]
    assert seen == alone
    assert len(seen) == 1


# the whole scorer ----------------------------------------------------------------------------------------------------


def tv_and_more() -> list[dict[str, Any]]:
    """The tiny detector finds a tv in every picture, sure of it."""
    tv = {"class": "tv", "count": 1}
    train = {"class": "train", "count": 1, "position": ["below", 0]}
    return [wants("tv"), {"tag": "position", "include": [tv, train]}, wants("zebra"), wants("tv", 2)]


@pytest.fixture(scope="module")
def whole(scorer: GenEval) -> dict[str, Tensor]:
    result = scorer.score(request(pictures(4), tv_and_more()))
    assert result.valid.all()
    assert torch.equal(result.values, result.details["official"])
    return dict(result.details)


def test_scores_of_the_chain(whole: dict[str, Tensor]):
    expected = json.loads((Path(__file__).parents[2] / "support" / "reference" / "geneval.json").read_text())["mmdet2"][
        "pictures"
    ][2]
    tvs = sum(label == CLASSES.index("tv") and score > 0.3 for label, score, *_ in expected)
    assert tvs == 1
    assert [list(whole), whole["official"][0].item(), whole["official"][2].item()] == [MODES, 1.0, 0.0]
    assert whole["strict"][0] == whole["flow_grpo"][0] == 1.0  # of the reference's own picture
    assert whole["flow_grpo"][2] == 0.0
    assert all(v.dtype == torch.float32 for v in whole.values())


@pytest.mark.parametrize("placement", [Placement(batch_size=3), Placement(batch_size=4, offload=True)])
def test_batches_and_offloading_do_not_matter(folder: Path, whole: dict[str, Tensor], placement: Placement):
    for mode in MODES[2:]:
        other = ready(folder, mode=mode, placement=placement)
        result = other.score(request(pictures(4), tv_and_more()))
        assert torch.equal(result.values, whole[mode])
        assert {name: v.tolist() for name, v in result.details.items()} == {n: v.tolist() for n, v in whole.items()}
        assert other.logged == tuple(MODES)


def test_provenance_names_every_file(folder: Path, scorer: GenEval):
    digests = {
        part: hashlib.sha256((folder / part / "model.safetensors").read_bytes()).hexdigest()
        for part in ("detector", "clip")
    }
    assert scorer.provenance == {
        "scorer": "geneval",
        "detector": str(folder / "detector"),
        "detector_sha256": digests["detector"],
        "clip": str(folder / "clip"),
        "clip_sha256": digests["clip"],
        "dtype": "fp32",
        "mode": "official",
        "swap_channels": "False",
    }


def test_channels_are_swapped_for_the_detector_only(folder: Path, scorer: GenEval, monkeypatch: pytest.MonkeyPatch):
    swapped = ready(folder, swap_channels=True)
    seen: list[Tensor] = []
    for one in (scorer, swapped):
        monkeypatch.setattr(one, "_verdict", lambda image, classes, *_: seen.extend([image, classes]))
    image = pictures(1)
    scorer.score(request(image, [wants("tv")]))
    scorer.score(request(image.flip(1), [wants("tv")]))
    swapped.score(request(image, [wants("tv")]))
    assert torch.equal(seen[4], image[0])
    assert torch.equal(seen[5], seen[3])
    assert not torch.allclose(seen[5], seen[1], atol=1e-2)


def test_a_network_that_gives_no_numbers_gives_no_score(folder: Path, open_clip_model: Any):
    scorer = ready(folder)
    scorer.clip.visual_projection.weight.fill_(torch.nan)
    colored = wants("tv", color="red")
    result = scorer.score(request(pictures(2), [colored, wants("tv")]))
    assert result.valid.tolist() == [False, True]
    assert torch.isnan(result.values[0])
    assert all(torch.isnan(column[0]) for column in result.details.values())
    scorer.network["detector"].class_predictor.weight.fill_(torch.nan)  # type: ignore[index]
    assert not scorer.score(request(pictures(1), [wants("tv")])).valid.any()


def test_global_random_state_is_unchanged(folder: Path, open_clip_model: Any):
    before = torch.random.get_rng_state()
    ready(folder).score(request(pictures(1), [wants("tv", color="red")]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mistakes_get_one_line(folder: Path, scorer: GenEval):
    with pytest.raises(ValueError, match="mode of GenEval is 'soft'; it is one of official, strict, flow_grpo"):
        GenEval("detector", mode="soft")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"placement\.dtype of GenEval is bf16; it must be fp32"):
        GenEval("detector", placement=Placement(dtype="bf16"))
    for detector, clip, expected in (
        (folder / "clip", folder / "clip", "says model_type 'clip'; GenEval needs a 'mask2former'"),
        (folder / "detector", folder / "detector", "not a CLIP model, its config.json says model_type 'mask2former'"),
        (folder / "none", folder / "clip", "none; a Mask2Former folder is needed here"),
    ):
        with pytest.raises(GuardlitError) as caught:
            GenEval(str(detector), clip=str(clip)).setup(CPU)
        assert expected in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert scorer.refusal(Prompt("a cup", wants("cups"))) == (
        "reward 'geneval' cannot score the prompt 'a cup': GenEval's include[0].class is 'cups'; did you mean cup?"
    )
    with pytest.raises(GuardlitError, match="did you mean cup"):
        scorer.score(request(pictures(1), [wants("cups")]))


# a run ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(folder: Path, open_clip_model: Any, sd3_folder: Path, tmp_path: Path) -> Path:
    lines = [{**wants("tv"), "prompt": "a photo of a tv"}, {**wants("zebra", 2), "prompt": "a photo of two zebras"}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    paths = {"detector": str(folder / "detector"), "clip": str(folder / "clip")}
    return config(
        tmp_path,
        sd3_folder,
        model__reward={"class_path": "GenEval", "init_args": {**paths, "mode": "flow_grpo"}},
        data__train=str(tmp_path / "prompts.jsonl"),
        data__val=str(tmp_path / "prompts.jsonl"),
        data__val_limit=1,
        data__prompts_per_round=1,
        data__updates_per_round=2,
        data__inner_epochs=1,
        trainer__max_epochs=1,
    )


def test_one_round_logs_all_three_scores(run: Path, tmp_path: Path):
    assert guardlit("fit", "--config", run) == 0
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    means = [
        {mode: row[f"average_reward/{mode}"] for mode in MODES} for row in rows if row.get("average_reward/official")
    ]
    assert len(means) == 1
    assert all(means[0].values())
    assert any(row.get("val/reward") for row in rows)


def test_a_run_names_the_prompt_that_cannot_be_scored(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = {**wants("zebras"), "prompt": "a photo of zebras"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(line) + "\n")
    assert guardlit("fit", "--config", run) == 2
    error = [text for text in capsys.readouterr().err.splitlines() if text.startswith("guardlit ")]
    assert len(error) == 1
    assert "prompt 'a photo of zebras': GenEval's include[0].class is 'zebras'; did you mean zebra?" in error[0]

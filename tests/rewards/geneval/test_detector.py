"""GenEval's detector: mmdet's file, through `guardlit convert`, gives what mmdet gave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from reference import geneval_tiny as tiny
from runs import guardlit
from tiny_geneval import SEED, make_checkpoint, make_detector
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.rewards.geneval import detector as geneval_detector
from guardlit.rewards.geneval import mask2former
from guardlit.rewards.geneval.detector import Instances, View, find, load_detector, prepare
from guardlit.rewards.geneval.prompt import CLASSES
from guardlit.rewards.geneval.resize import resize_bilinear

EXPECTED: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "support" / "reference" / "geneval.json").read_text()
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_detector(tmp_path_factory.mktemp("geneval") / "tiny")


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    return load_detector(str(folder)).eval()


def logits(network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        said = network(pixel_values=pixels)
    return said.class_queries_logits[0], said.masks_queries_logits[0]


def distance(values: Tensor, expected: dict[str, Any]) -> float:
    """Largest deviation from mmdet's values, over their standard deviation."""
    assert list(values.shape) == expected["shape"]
    flat = values.double().flatten()
    some = flat[:: len(flat) // 30] - torch.tensor(expected["some"], dtype=torch.float64)
    moments = (float(flat.mean()) - expected["mean"], float(flat.std()) - expected["std"])
    return max(float(some.abs().max()), *map(abs, moments)) / expected["std"]


def picture(index: int) -> tuple[Tensor, View]:
    size = tiny.SIZES[index]
    return torch.from_numpy(tiny.picture(*size, index)).permute(2, 0, 1)[None], View.of(*size)


def rows(found: Instances, count: int) -> list[list[float]]:
    areas = found.masks.flatten(1).sum(1).tolist()
    boxes = found.boxes.tolist()
    listed = zip(found.labels.tolist(), found.scores.tolist(), boxes, areas, strict=True)
    return [[label, score, *box, area] for label, score, box, area in listed][:count]


def agree(found: list[list[float]], expected: list[list[float]]) -> bool:
    """The same labels, boxes and areas in the same order, scores within 1e-5."""
    ours, theirs = np.array(found), np.array(expected)
    if ours.shape != theirs.shape:
        return False
    exact = [0, 2, 3, 4, 5, 6]
    return bool((ours[:, exact] == theirs[:, exact]).all() and np.abs(ours[:, 1] - theirs[:, 1]).max() <= 1e-5)


# conversion ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_logits_are_mmdets(tmp_path: Path, version: int, capsys: pytest.CaptureFixture[str]):
    checkpoint = make_checkpoint(tmp_path / "official.pth", version=version)
    assert guardlit("convert", "mask2former", checkpoint, tmp_path / "made" / "folder") == 0
    assert "config.json and model.safetensors" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "made").iterdir()} == {"folder"}
    network = load_detector(str(tmp_path / "made" / "folder")).eval()
    assert network.config.id2label == dict(enumerate(CLASSES))
    classes, masks = logits(network, torch.from_numpy(tiny.pixels(SEED)))
    expected = EXPECTED[f"mmdet{version}"]["logits"]
    assert distance(classes, expected["classes"]) < 2e-6
    assert distance(masks, expected["masks"]) < 5e-6


OFFICIAL = {
    "EMBED": 96,
    "DEPTHS": (2, 2, 18, 2),
    "HEADS": (3, 6, 12, 24),
    "WINDOW": 7,
    "WIDTH": 256,
    "QUERIES": 100,
    "ATTENTION_HEADS": 8,
    "ENCODER_LAYERS": 6,
    "ENCODER_FFN": 1024,
    "DECODER_LAYERS": 9,
    "DECODER_FFN": 2048,
}


def test_the_official_sizes_are_recognized(monkeypatch: pytest.MonkeyPatch):
    """transformers' defaults are those of the hub's Swin-S model."""
    from transformers import Mask2FormerConfig

    for name, value in OFFICIAL.items():
        monkeypatch.setattr(tiny, name, value)
    state = {name: torch.empty(shape, device="meta") for name, shape in tiny.layout(2).items()}
    assert 68e6 < sum(w.numel() for w in state.values()) < 70e6
    sizes = mask2former.describe(mask2former.in_new_names(state))
    backbone = sizes.pop("backbone_config")
    defaults = Mask2FormerConfig()
    assert sizes.pop("num_labels") == 80
    assert sizes == {name: getattr(defaults, name) for name in sizes}
    expected = {"embed_dim": 96, "num_heads": [3, 6, 12, 24], "window_size": 7, "depths": [2, 2, 18, 2]}
    assert {name: backbone[name] for name in expected} == expected
    assert backbone["mlp_ratio"] == defaults.backbone_config.mlp_ratio


def without_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask2former, "_reordered", lambda weight: weight)


def neighbors_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """(neighbor, channel), but in mmdet's order of neighbors."""
    monkeypatch.setattr(
        mask2former, "_reordered", lambda w: w.reshape(*w.shape[:-1], -1, 4).mT.flatten(-2).contiguous()
    )


@pytest.mark.parametrize("spoil", [without_permutation, neighbors_by_row])
def test_a_wrong_order_of_weights_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
):
    spoil(monkeypatch)
    network = load_detector(str(make_detector(tmp_path / "wrong"))).eval()
    classes, masks = logits(network, torch.from_numpy(tiny.pixels(SEED)))
    expected = EXPECTED["mmdet3"]["logits"]
    assert distance(classes, expected["classes"]) > 1e-2
    assert distance(masks, expected["masks"]) > 1e-2


Weights = dict[str, Tensor]
CLS = "panoptic_head.cls_embed."


def drop(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(name)


def panoptic(weights: Weights) -> None:
    weights |= {CLS + "weight": torch.zeros(134, tiny.WIDTH), CLS + "bias": torch.zeros(134)}


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda w: w.update({"panoptic_head.extra": torch.zeros(1)}), "1 weights are not those of a Mask2Former"),
        (lambda w: w.update({"backbone.layer1.0.conv1.weight": torch.zeros(1)}), "(backbone.layer1.0.conv1.weight)"),
        (drop(CLS + "weight"), "the weights panoptic_head.cls_embed.weight are missing"),
        (drop("panoptic_head.mask_embed.0.bias"), "1 weights missing (model.transformer_module.decoder.mask_predictor"),
        (lambda w: w.update({CLS + "bias": torch.zeros(5)}), "1 weights of wrong shape (class_predictor.bias)"),
        (panoptic, "it knows 133 classes; GenEval needs the 80 of COCO's instances"),
        (lambda w: w.clear(), "relative_position_bias_table are missing; is this the checkpoint"),
        (drop("backbone.norm3.bias"), "1 weights missing (model.pixel_level_module.encoder.hidden_states_norms.stage4"),
        (lambda w: w.update({CLS + "bias": 7}), "it holds no `state_dict` of tensors"),
    ],
)
def test_other_checkpoints_get_one_line_and_leave_nothing(
    tmp_path: Path, spoil: Callable[[Weights], object], expected: str, capsys: pytest.CaptureFixture[str]
):
    path = make_checkpoint(tmp_path / "official.pth")
    content = torch.load(path, weights_only=True)
    spoil(content["state_dict"])
    torch.save(content, path)
    assert guardlit("convert", "mask2former", path, tmp_path / "folder") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("guardlit convert: error: ")
    assert str(path) in error
    assert expected in error
    assert [p.name for p in tmp_path.iterdir()] == ["official.pth"]


class Code:
    """Pickles to a call of `open`, as a malicious file would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path):
    path = make_checkpoint(tmp_path / "official.pth")
    content = torch.load(path, weights_only=True)
    for legacy in (False, True):
        torch.save({**content, "meta": Code(tmp_path / "ran")}, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(GuardlitError, match="code in a file of weights is not run here"):
            load_converted(path, tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["official.pth"]


def load_converted(path: Path, folder: Path) -> None:
    from guardlit.commands.convert import convert_mask2former

    convert_mask2former(path, folder)


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = make_checkpoint(tmp_path / "official.pth")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:1000])
    for arguments, expected in (
        (["mask2former", path, tmp_path / "full"], f"{tmp_path / 'full'} exists already"),
        (["mask2former", path, path / "folder"], "cannot be written"),
        (["mask2former", path], "required: FOLDER (guardlit convert mask2former CHECKPOINT.pth FOLDER)"),
        (["mask2farmer", path, tmp_path / "new"], "invalid choice: 'mask2farmer'"),
        (["mask2former", tmp_path / "none.pth", tmp_path / "new"], "there is no"),
        (["mask2former", tmp_path / "cut.pth", tmp_path / "new"], "cut.pth: not a readable file of weights"),
    ):
        assert guardlit("convert", *arguments) == 2
        lines = capsys.readouterr().err.splitlines()
        assert expected in lines[-1]
    assert {p.name for p in tmp_path.iterdir()} == {"official.pth", "full", "cut.pth"}


# loading -------------------------------------------------------------------------------------------------------------


def edit(change: Callable[[Weights], object]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return rewrite


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (edit(drop("class_predictor.bias")), "1 weights missing (class_predictor.bias)"),
        (edit(lambda w: w.update(extra=torch.zeros(1))), "1 weights unexpected (extra)"),
        (edit(lambda w: w.update({"class_predictor.bias": torch.zeros(3)})), "1 weights of wrong shape"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "swin"}'), "says model_type 'swin'"),
    ],
)
def test_other_folders_get_one_line(folder: Path, tmp_path: Path, spoil: Callable[[Path], object], expected: str):
    copy = shutil.copytree(folder, tmp_path / "copy")
    spoil(copy)
    with pytest.raises(GuardlitError) as caught:
        load_detector(str(copy))
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_no_detection_depends_on_may_be_missing_or_old(folder: Path, tmp_path: Path, network: Any):
    def as_on_the_hub(weights: Weights) -> None:
        for name in [name for name in weights if ".swin.layernorm." in name or name == "criterion.empty_weight"]:
            del weights[name]
        block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self."
        weights[block + "relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)

    copy = shutil.copytree(folder, tmp_path / "copy")
    edit(as_on_the_hub)(copy)
    pixels = torch.from_numpy(tiny.pixels(SEED))
    assert torch.equal(logits(load_detector(str(copy)).eval(), pixels)[1], logits(network, pixels)[1])


# from pixels to instances --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(len(tiny.SIZES)))
def test_detections_are_mmdets(network: Any, index: int):
    """From the picture to labels, scores, boxes and areas, through the published pipeline."""
    image, view = picture(index)
    found = find(*logits(network, prepare(image, view)), view, 0.0)
    expected = EXPECTED["mmdet2"]["pictures"][index]
    assert expected[0][1] > 0.7
    assert agree(rows(found, len(expected)), expected)


def test_a_detector_shown_blue_for_red_is_the_reward_servers(network: Any):
    image, view = picture(0)
    expected = EXPECTED["mmdet2"]["swapped"]
    assert agree(rows(find(*logits(network, prepare(image.flip(1), view)), view, 0.0), len(expected)), expected)
    assert not agree(rows(find(*logits(network, prepare(image, view)), view, 0.0), len(expected)), expected)


def black_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geneval_detector, "_GRAY", 0)


def no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geneval_detector, "_MULTIPLE", 1)


def padding_counts_as_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(View, "of", classmethod(lambda cls, h, w: cls((h, w), (800, 1088), (800, 1088))))


def no_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geneval_detector, "_MEAN", (0, 0, 0))
    monkeypatch.setattr(geneval_detector, "_STD", (255, 255, 255))


def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geneval_detector, "_SHORT", 640)


def ordinary_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
        return torch.nn.functional.interpolate(images.float(), size=size, mode="bilinear").round()

    monkeypatch.setattr(geneval_detector, "resize_bilinear", resize)


@pytest.mark.parametrize(
    "spoil", [black_padding, no_padding, padding_counts_as_image, no_normalization, smaller, ordinary_resize]
)
def test_wrong_processing_fails(
    network: Any, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[pytest.MonkeyPatch], None]
):
    spoil(monkeypatch)
    image, view = picture(0)
    found = rows(find(*logits(network, prepare(image, view)), view, 0.0), 12)
    assert not agree(found, EXPECTED["mmdet2"]["pictures"][0])


def test_postprocessing_is_mmdets():
    view = View((90, 128), (96, 136), (96, 160))
    classes, masks = map(torch.from_numpy, tiny.logits(SEED))
    expected = EXPECTED["mmdet2"]["postprocess"]
    assert expected == EXPECTED["mmdet3"]["postprocess"]
    assert agree(rows(find(classes, masks, view, 0.0), len(expected)), expected)
    above = find(classes, masks, view, 0.5)
    assert rows(above, 100) == [row for row in rows(find(classes, masks, view, 0.0), 100) if row[1] > 0.5]
    assert len(find(classes, masks, view, 0.999).labels) == 0
    for spoiled in ((classes * torch.nan, masks), (classes, masks / 0)):
        with pytest.raises(FloatingPointError):
            find(*spoiled, view, 0.3)


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 768), (1067, 800), (1088, 800)),
        ((120, 160), (800, 1067), (800, 1088)),
        ((300, 900), (444, 1333), (448, 1344)),
    ],
)
def test_sizes(size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]):
    assert View.of(*size) == View(size, resized, padded)


@pytest.mark.parametrize(
    ("old", "new"), [((64, 64), (800, 800)), ((97, 64), (1213, 800)), ((1024, 768), (1067, 800)), ((3, 5), (800, 1333))]
)
def test_the_resize_is_opencvs_to_the_bit(old: tuple[int, int], new: tuple[int, int]):
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    ours = resize_bilinear(torch.from_numpy(image).permute(2, 0, 1)[None], new)[0].permute(1, 2, 0)
    assert np.array_equal(ours.numpy(), cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR))

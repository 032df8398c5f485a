"""What PickScore, HPSv2, ImageReward, CLIPScore and the aesthetic predictor have in common."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.seeded import PROMPTS, pictures
from runs import config, guardlit
from scorer_files import CPU, MAKERS, Malicious, ready, request
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.files import sha256
from guardlit.rewards.network import DTYPES, Placement

NAMES = list(MAKERS)
FILES = {
    "hpsv2": "HPS_v2.1_compressed.pt",
    "imagereward": "ImageReward.pt",
    "pickscore": "model.safetensors",
    "clipscore": "model.safetensors",
    "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
}
IMAGES = pictures([(60, 90)] * 6)
PAIRS = request([*IMAGES, IMAGES[0]], [*PROMPTS, PROMPTS[1]])


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, (_, make) in MAKERS.items()}


@pytest.fixture(scope="module")
def scorers(arguments: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: ready(scorer(**arguments[name])) for name, (scorer, _) in MAKERS.items()}


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_order_do_not_matter(name: str, scorers: dict[str, Any], arguments: dict[str, dict[str, Any]]):
    whole = scorers[name].score(PAIRS)
    assert whole.valid.all()
    assert whole.values.dtype == torch.float32
    close: dict[str, float] = {"rtol": 1e-4, "atol": 2e-6}
    assert whole.values[whole.values != 0].std() > 100 * (close["atol"] + close["rtol"] * whole.values.abs().max())
    small = ready(MAKERS[name][0](**arguments[name], placement=Placement(batch_size=2)))
    torch.testing.assert_close(small.score(PAIRS).values, whole.values, **close)
    order = [3, 6, 0, 5, 1, 4, 2]
    permuted = request([PAIRS.images[i].permute(1, 2, 0).numpy() for i in order], [PAIRS.prompts[i] for i in order])
    torch.testing.assert_close(scorers[name].score(permuted).values, whole.values[order], **close)


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_counts_but_for_the_aesthetic_score(name: str, scorers: dict[str, Any]):
    swapped = request(IMAGES, PROMPTS[::-1])
    straight = request(IMAGES, PROMPTS)
    same = torch.equal(scorers[name].score(swapped).values, scorers[name].score(straight).values)
    assert same == (name == "aesthetic")


@pytest.mark.parametrize("name", NAMES)
def test_no_random_number_is_drawn_and_nothing_is_trained(name: str, arguments: dict[str, dict[str, Any]]):
    before = torch.random.get_rng_state()
    scorer = ready(MAKERS[name][0](**arguments[name]))
    values = scorer.score(PAIRS).values
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not values.requires_grad
    assert not any(module.training for module in scorer.network.modules())
    tensors = [*scorer.network.parameters(), *scorer.network.buffers()]
    assert not any(tensor.requires_grad or tensor.is_meta for tensor in tensors)
    assert torch.equal(scorer.score(PAIRS).values, values)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_lower_precision_is_close(
    name: str, dtype: str, scorers: dict[str, Any], arguments: dict[str, dict[str, Any]]
):
    low = ready(MAKERS[name][0](**arguments[name], placement=Placement(dtype=dtype)))
    result = low.score(PAIRS)
    assert {parameter.dtype for parameter in low.network.parameters()} == {DTYPES[dtype]}
    assert result.values.dtype == torch.float32
    assert result.provenance["dtype"] == dtype
    full = scorers[name].score(PAIRS).values
    error = (result.values - full).abs().max()
    assert 0 < error < 0.2 * full.std()


@pytest.mark.parametrize("name", NAMES)
def test_offloading_changes_no_score(name: str, scorers: dict[str, Any], arguments: dict[str, dict[str, Any]]):
    scorer = ready(MAKERS[name][0](**arguments[name], placement=Placement(offload=True)))
    assert torch.equal(scorer.score(PAIRS).values, scorers[name].score(PAIRS).values)


@pytest.mark.parametrize("name", NAMES)
def test_provenance_names_the_file_by_content(name: str, scorers: dict[str, Any], arguments: dict[str, dict[str, Any]]):
    folder = Path(arguments[name].get("weights", arguments[name].get("model")))
    provenance = scorers[name].provenance
    assert provenance["scorer"] == name
    assert provenance["dtype"] == "fp32"
    key = "head_sha256" if name == "aesthetic" else "weights_sha256"
    assert provenance[key] == sha256(folder / FILES[name])
    assert scorers[name].score(PAIRS).provenance == provenance
    assert all(isinstance(value, str) for value in provenance.values())


# bad files -----------------------------------------------------------------------------------------------------------


def message_of(name: str, arguments: dict[str, Any]) -> str:
    with pytest.raises(GuardlitError) as caught:
        MAKERS[name][0](**arguments).setup(CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    content = torch.load(path)
    edit(content.get("state_dict", content))
    torch.save(content, path)


WEIGHT = {
    "hpsv2": ("ln_final.bias", "ln_final.bias", 32),
    "imagereward": ("blip.visual_encoder.norm.bias", "vision.post_layernorm.bias", 64),
    "aesthetic": ("layers.7.bias", "layers.7.bias", 1),
}


@pytest.mark.parametrize("name", WEIGHT)
def test_the_file_must_hold_all_weights_and_only_those(name: str, tmp_path: Path):
    arguments, file = MAKERS[name][1](tmp_path), tmp_path / FILES[name]
    key, ours, size = WEIGHT[name]
    kept = file.read_bytes()
    for edit, expected in [
        (lambda w: w.pop(key), f"{file}: 1 weights missing ({ours})"),
        (lambda w: w.update(some_head=torch.zeros(1)), f"{file}: 1 weights unexpected (some_head)"),
        (lambda w: w.update({key: torch.zeros(size + 1)}), f"{file}: 1 weights of wrong shape ({ours})"),
    ]:
        file.write_bytes(kept)
        change(file, edit)
        assert message_of(name, arguments).startswith(expected)


@pytest.mark.parametrize("name", WEIGHT)
def test_code_in_a_file_is_refused_with_the_way_out(name: str, tmp_path: Path):
    arguments, file = MAKERS[name][1](tmp_path), tmp_path / FILES[name]
    change(file, lambda w: w.update(args=Malicious(tmp_path / "victim")))
    message = message_of(name, arguments)
    assert message.startswith(f"{file}: its pickle asks for posix.mkdir")
    assert "convert it to safetensors" in message
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("name", WEIGHT)
def test_a_file_converted_to_safetensors_holds_the_same_weights(name: str, tmp_path: Path, scorers: dict[str, Any]):
    from safetensors.torch import save_file

    arguments, file = MAKERS[name][1](tmp_path), tmp_path / FILES[name]
    content = torch.load(file)
    converted = tmp_path / "converted.safetensors"
    save_file({key: value.contiguous() for key, value in content.get("state_dict", content).items()}, converted)
    scorer = ready(MAKERS[name][0](**arguments | {"weights": str(converted)}))
    same, other = scorers[name].network.state_dict(), scorer.network.state_dict()
    assert same.keys() == other.keys()
    assert all(torch.equal(same[key], other[key]) for key in same)
    # where a tensor starts in memory changes the last bit of a product
    torch.testing.assert_close(scorer.score(PAIRS).values, scorers[name].score(PAIRS).values, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", WEIGHT)
@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("/nowhere/at/all", "there is no /nowhere/at/all"),
        ("absent/model", "run `hf download absent/model {file}`"),
    ],
)
def test_a_file_that_is_missing(name: str, weights: str, expected: str, arguments: dict[str, dict[str, Any]]):
    assert expected.format(file=FILES[name]) in message_of(name, arguments[name] | {"weights": weights})


@pytest.mark.parametrize("name", WEIGHT)
def test_what_is_no_file_of_weights(name: str, tmp_path: Path, arguments: dict[str, dict[str, Any]]):
    (tmp_path / FILES[name]).write_bytes(b"<!DOCTYPE html>")
    assert "not a readable file of weights" in message_of(name, arguments[name] | {"weights": str(tmp_path)})
    (tmp_path / FILES[name]).unlink()
    assert f"{tmp_path}: not a readable" in message_of(name, arguments[name] | {"weights": str(tmp_path)})


def test_building_a_scorer_loads_nothing():
    for scorer, _ in MAKERS.values():
        required = {"weights": "/nowhere"} if scorer.__name__ == "Aesthetic" else {}
        assert not hasattr(scorer(**required), "network")


def test_a_run_trains_on_one_and_logs_the_others(
    arguments: dict[str, dict[str, Any]], sd3_folder: Path, tmp_path: Path
):
    given = {name: {"class_path": MAKERS[name][0].__name__, "init_args": arguments[name]} for name in NAMES}
    given["hpsv2"]["init_args"] = given["hpsv2"]["init_args"] | {"placement": {"offload": True, "batch_size": 3}}
    terms = [{"scorer": scorer, "weight": float(name == "hpsv2")} for name, scorer in given.items()]
    scorer = {"class_path": "guardlit.rewards.ImageReward", "init_args": arguments["imagereward"]}
    gold = {"scorers": [scorer], "base": {"imagereward": 1.0}}  # random weights give negative marks
    path = config(
        tmp_path,
        sd3_folder,
        model__reward={"class_path": "Composite", "init_args": {"terms": terms}},
        trainer__max_epochs=1,
        trainer__callbacks=[{"class_path": "guardlit_callbacks.GoldScore", "init_args": gold}],
    )
    assert guardlit("fit", "--config", path) == 0
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    for name in NAMES:
        values = [float(row[f"average_reward/{name}"]) for row in rows if row[f"average_reward/{name}"]]
        assert values, name
        assert all(map(math.isfinite, values)), name
    with next(tmp_path.rglob("gold.csv")).open() as file:
        assert all(math.isfinite(float(row["imagereward"])) for row in csv.DictReader(file))


@pytest.mark.parametrize("name", NAMES)
def test_features_are_of_the_image_alone(name: str, scorers: dict[str, Any]):
    """Each image's own row, whatever the prompt, in float32; they differ between images."""
    assert scorers[name].embeds_images
    features = scorers[name].score(PAIRS).features
    assert features.dtype == torch.float32
    swapped = scorers[name].score(request([*IMAGES, IMAGES[0]], [*PROMPTS, PROMPTS[1]][::-1])).features
    torch.testing.assert_close(swapped, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features[6], features[0], rtol=1e-4, atol=1e-5)
    apart = torch.nn.functional.cosine_similarity(features[0], features[1:6])
    assert float(apart.max()) < 1 - 1e-4

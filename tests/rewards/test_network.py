"""Where scorers' networks live, how they are fed, and what files of weights they take."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scorer_files import Malicious
from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.files import sha256
from guardlit.rewards.files import fill, find_file, folder_sha256, read_tensors, without_weights
from guardlit.rewards.network import NetworkScorer, Placement
from guardlit.types import RewardRequest, RewardResult

CPU, META = torch.device("cpu"), torch.device("meta")


class Dot(NetworkScorer):
    """A layer over an image's mean color, plus the length of its prompt."""

    def __init__(self, **placement: Any) -> None:
        super().__init__(Placement(**placement))
        self.seen: list[Any] = []

    def load(self):
        layer = nn.Linear(3, 1)
        layer.register_buffer("offset", torch.ones(1), persistent=False)
        nn.init.constant_(layer.weight, 0.3)
        nn.init.constant_(layer.bias, 0.1)
        return layer, {"weights": "none"}

    def compute(self, request: RewardRequest) -> RewardResult:
        self.seen.append({tensor.device.type for tensor in (*self.network.parameters(), *self.network.buffers())})
        if self.device == META:
            return self.result(torch.zeros(len(request)))
        texts = self.once_each(request.prompts, self.measure)
        return self.result(texts + self.in_batches(request.images, self.colors))

    def measure(self, texts: list[str]) -> Tensor:
        self.seen.append(texts)
        return torch.tensor([float(len(text)) for text in texts])

    def colors(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        dtype = self.network.weight.dtype
        return self.network(images.float().mean(dim=(2, 3)).to(dtype))[:, 0] + self.network.offset


def asked() -> RewardRequest:
    images = torch.arange(5 * 3 * 4 * 4).reshape(5, 3, 4, 4).to(torch.uint8)
    return RewardRequest(images, ["a", "bbb", "a", "cc", "bbb"], [{}] * 5)


def ready(**placement: Any) -> Dot:
    scorer = Dot(**placement)
    scorer.setup(CPU)
    return scorer


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("gpu", "placement.device 'gpu' of a scorer is not one of same, cpu, cuda, cuda:N"),
        ("meta", "placement.device 'meta' of a scorer is not one of same, cpu, cuda, cuda:N"),
        ("cuda:99", "placement.device 'cuda:99' of a scorer is not here: torch sees"),
    ],
)
def test_a_device_that_is_missing_gives_one_line(device: str, expected: str):
    with pytest.raises(GuardlitError) as caught:
        Dot(device=device).setup(CPU)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_same_is_the_policys_device():
    assert Placement().resolve(META) == META
    assert Placement(device="cpu").resolve(META) == CPU


def test_a_batch_holds_something():
    with pytest.raises(ValueError, match="batch_size of a scorer's placement is 0; it must be at least 1"):
        Placement(batch_size=0)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_scores_do_not_depend_on_the_batch_size(batch_size: int):
    scorer = ready(batch_size=batch_size)
    values = scorer.score(asked()).values
    torch.testing.assert_close(values, ready().score(asked()).values, rtol=1e-6, atol=0)
    sizes = [entry for entry in scorer.seen if isinstance(entry, int)]
    assert sum(sizes) == 5
    assert max(sizes) == min(batch_size, 5)


def test_every_prompt_is_embedded_once():
    scorer = ready(batch_size=2)
    values = scorer.score(asked()).values
    assert [entry for entry in scorer.seen if isinstance(entry, list)] == [["a", "bbb"], ["cc"]]
    colors = scorer.in_batches(asked().images, scorer.colors)
    torch.testing.assert_close(values - colors, torch.tensor([1.0, 3, 1, 2, 3]))


def test_the_network_is_frozen_in_the_precision_asked_for():
    scorer = ready(dtype="bf16")
    assert not scorer.network.training
    assert not any(parameter.requires_grad for parameter in scorer.network.parameters())
    result = scorer.score(asked())
    assert scorer.network.weight.dtype == torch.bfloat16
    assert result.values.dtype == torch.float32
    assert result.provenance == {"scorer": "dot", "weights": "none", "dtype": "bf16"}


def test_offloaded_weights_are_copied_to_the_device_for_a_request():
    scorer = ready(offload=True)
    homes = [tensor.data_ptr() for tensor in (*scorer.network.parameters(), *scorer.network.buffers())]
    expected = ready().score(asked()).values
    scorer.device = META  # another device than the CPU that every machine has; it computes nothing
    scorer.score(asked())
    assert scorer.seen == [{"meta"}]
    tensors = [*scorer.network.parameters(), *scorer.network.buffers()]
    assert [tensor.data_ptr() for tensor in tensors] == homes  # no copy
    scorer.device = CPU
    assert torch.equal(scorer.score(asked()).values, expected)


def test_offloaded_weights_are_restored_after_an_error():
    scorer = ready(offload=True)
    scorer.device = META
    scorer.compute = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        scorer.score(asked())
    assert {parameter.device.type for parameter in scorer.network.parameters()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloading_frees_the_gpu():
    before = torch.cuda.memory_allocated()
    scorer = Dot(offload=True)
    scorer.setup(torch.device("cuda"))
    values = scorer.score(asked()).values
    assert scorer.seen[0] == {"cuda"}
    assert torch.cuda.memory_allocated() == before
    torch.testing.assert_close(values, ready().score(asked()).values)


# files of weights ----------------------------------------------------------------------------------------------------


def test_one_file_is_named_by_its_sha256(clip_folder: Path):
    content = (clip_folder / "model.safetensors").read_bytes()
    assert folder_sha256(str(clip_folder)) == hashlib.sha256(content).hexdigest()


def test_shards_are_named_by_the_sha256_of_theirs(clip_folder: Path, tmp_path: Path):
    weights = load_file(clip_folder / "model.safetensors")
    halves = {"model-1.safetensors": sorted(weights)[::2], "model-2.safetensors": sorted(weights)[1::2]}
    for name, keys in halves.items():
        save_file({key: weights[key] for key in keys}, tmp_path / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, keys in halves.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    digests = [sha256(tmp_path / name) for name in sorted(halves)]
    assert folder_sha256(str(tmp_path)) == hashlib.sha256("".join(digests).encode()).hexdigest()

    shutil.copy(clip_folder / "config.json", tmp_path)
    from guardlit.rewards.clip.scorer import load_clip

    loaded = load_clip(str(tmp_path)).state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_a_folder_without_weights_has_no_name(tmp_path: Path):
    with pytest.raises(GuardlitError, match=r"holds none of model.safetensors, pytorch_model.bin"):
        folder_sha256(str(tmp_path))


@pytest.mark.parametrize("form", ["zip", "older", "safetensors"])
def test_every_form_of_file_is_read(tmp_path: Path, form: str):
    tensors = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.float16)}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "zip")
    read = read_tensors(path)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


def malicious(path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Malicious(path.with_name("victim"))}, path)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (malicious, "its pickle asks for posix.mkdir, and code in a file of weights is not run here; if you trust"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "not a readable file of weights (corrupt, or of another"),
        (lambda path: path.write_bytes(b""), "not a readable file of weights"),
        (lambda path: torch.save(torch.ones(3), path), "it holds a Tensor, not named tensors"),
        (lambda path: path.rename(path.with_suffix(".gone")), "not a readable file of weights"),
    ],
)
def test_a_bad_file_gives_one_line(tmp_path: Path, write: Callable[[Path], object], expected: str):
    path = tmp_path / "w.pt"
    path.touch()
    write(path)
    with pytest.raises(GuardlitError) as caught:
        read_tensors(path)
    assert str(caught.value).startswith((f"{path}: {expected}", f"there is no {path}")) or expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "victim").exists()


def test_a_cut_off_file_gives_one_line(tmp_path: Path):
    path = tmp_path / "w.pt"
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(GuardlitError, match="not a readable file of weights") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_where_a_file_is_found(tmp_path: Path):
    file = tmp_path / "w.pt"
    file.touch()
    assert find_file(str(file), "other.pt", "file") == file
    assert find_file(str(tmp_path), "w.pt", "file") == file
    for name, expected in [
        (str(tmp_path), f"{tmp_path}: not a readable file"),
        ("/nowhere/w.pt", "there is no /nowhere/w.pt; a file is needed here"),
        ("absent/model", "run `hf download absent/model absent.pt` on a machine that is online"),
    ]:
        with pytest.raises(GuardlitError) as caught:
            find_file(name, "absent.pt", "file")
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


def test_networks_without_weights_get_all_of_a_files_and_only_those():
    state = torch.get_rng_state()
    with without_weights():
        net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3, affine=False))
    assert torch.equal(torch.get_rng_state(), state)
    assert net[0].weight.is_meta
    tensors = {"0.weight": torch.ones(3, 2), "0.bias": torch.zeros(3)}
    tensors |= {f"1.{key}": tensor for key, tensor in nn.BatchNorm1d(3, affine=False).state_dict().items()}
    fill(net, tensors, Path("w.pt"))
    assert net[0].weight.data_ptr() == tensors["0.weight"].data_ptr()
    for wrong, expected in [
        ({"0.bias": None}, "w.pt: 1 weights missing (0.bias)"),
        ({"more": torch.ones(1)}, "w.pt: 1 weights unexpected (more)"),
        ({"0.bias": torch.zeros(4)}, "w.pt: 1 weights of wrong shape (0.bias)"),
    ]:
        spoiled = {key: tensor for key, tensor in (tensors | wrong).items() if tensor is not None}
        with pytest.raises(GuardlitError) as caught:
            fill(net, spoiled, Path("w.pt"))
        assert str(caught.value) == f"{expected}; the file must hold exactly the weights of the Sequential"

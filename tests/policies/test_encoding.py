"""Encoding of prompts: on the device, once, split over ranks, within the memory that is free."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from families import FAMILIES
from forked import forked
from runs import config, guardlit, newest
from safetensors.torch import load_file

from guardlit.commands.plan import planned
from guardlit.devices.storage import size_of
from guardlit.planning.estimate import estimate
from guardlit.policies.parts import prompted
from guardlit.policies.parts.prompted import PromptedPolicy


def test_sample_encodes_after_the_model_is_on_its_device(
    sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from lightning.pytorch.strategies import SingleDeviceStrategy

    order, moved, encode = [], SingleDeviceStrategy.model_to_device, PromptedPolicy._encode
    monkeypatch.setattr(SingleDeviceStrategy, "model_to_device", lambda s: (order.append("moved"), moved(s))[1])
    monkeypatch.setattr(PromptedPolicy, "_encode", lambda p, texts: (order.append(texts), encode(p, texts))[1])
    path = config(tmp_path, sd3_folder)
    prompts = ('--prompts=["a cat", "a dog"]', "--n", 1, "--out", tmp_path / "out")
    assert guardlit("sample", "--config", path, *prompts) == 0
    assert [step for step in order if step] == ["moved", ["a cat", "a dog", ""]]
    assert len(list((tmp_path / "out").rglob("00*.png"))) == 2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_plan_counts_the_encoders_in_their_loaded_dtypes(name: str, dtype: str, tiny):
    policy = FAMILIES[name].load(tiny(name), text_encoder_dtype=dtype, cache=None)
    parts = {k: v for k, v in policy._pipeline().components.items() if k.startswith("text_encoder") and v is not None}
    assert policy.footprint().encoders == sum(size_of(part.parameters()) for part in parts.values())
    if dtype == "fp16" and name in ("sd3", "flux"):  # T5 keeps a layer in float32
        assert {p.dtype for p in parts["text_encoder_3" if name == "sd3" else "text_encoder_2"].parameters()} == {
            torch.float16,
            torch.float32,
        }


def test_encoders_on_the_host_are_read_once(sd3_folder: Path, monkeypatch: pytest.MonkeyPatch):
    reads, real = [], transformers.T5EncoderModel.from_pretrained

    def read(*args, **kwargs):
        reads.append(args[0])
        return real(*args, **kwargs)

    monkeypatch.setattr(transformers.T5EncoderModel, "from_pretrained", read)
    tables = {}
    for option in ("free", "host"):
        policy = FAMILIES["sd3"].load(sd3_folder, cache=None, text_encoders=option)
        first = len(reads)
        policy.encode(["a third"])
        policy.encode(["a fourth"])
        assert len(reads) - first == {"free": 2, "host": 0}[option]
        tables[option] = policy.conditioning(["a cat", "a third", "a fourth"])
        assert (policy._encoders is not None) == (option == "host")
    assert all(torch.equal(tables["host"][k], v) for k, v in tables["free"].items())


def test_encode_alone_moves_frozen_weights_to_the_host(sd3_folder: Path, monkeypatch: pytest.MonkeyPatch):
    policy = FAMILIES["sd3"].load(sd3_folder, encode_alone=True, cache=None)
    before = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in policy.named_parameters()}
    away: list[torch.Tensor] = []
    monkeypatch.setattr(PromptedPolicy, "_run_encoders", lambda p, texts: away.extend(q.data for q in p.parameters()))
    monkeypatch.setattr(torch.Tensor, "to", lambda t, where: t.clone())  # as if the CPU were another device
    policy.encode(["new"])
    monkeypatch.undo()
    for (name, (parameter, place, values)), elsewhere in zip(before.items(), away, strict=True):
        stays = ".lora_A.default" in name or ".lora_B.default" in name or parameter is next(policy.parameters())
        assert (elsewhere.data_ptr() == place) == stays, name
        assert torch.equal(parameter, values)
    assert [p for p, *_ in before.values()] == list(policy.parameters())  # the optimizer refers to these


def test_weights_return_after_an_error(sd3_folder: Path):
    policy = FAMILIES["sd3"].load(sd3_folder)
    devices = {p.device for p in policy.parameters()}
    with pytest.raises(RuntimeError, match="broken"), prompted.moved_to_host(policy.transformer):
        raise RuntimeError("broken")
    assert {p.device for p in policy.parameters()} == devices


def test_the_plan_counts_host_memory(sd3_folder: Path, tmp_path: Path):
    path = config(tmp_path, sd3_folder, trainer__accelerator="gpu", model__policy__init_args__resolution=64)
    option = "--model.policy.init_args."
    plain, alone, kept = (
        estimate(planned(["--config", str(path), *more])).memory
        for more in ([], [option + "encode_alone=true"], [option + "text_encoders=host"])
    )
    frozen, encoders = (plain.parts[k] for k in ("frozen weights", "text encoders, while encoding"))
    assert 0 < plain.phases["encoding"] - alone.phases["encoding"] <= frozen  # except for buffers
    assert kept.phases == plain.phases
    assert kept.host - plain.host == encoders


@pytest.mark.parametrize("cache", ["shared", *(pytest.param(c, marks=pytest.mark.slow) for c in ("own", None))])
def test_two_ranks_split_the_encoding_and_get_equal_embeddings(cache: str | None, sd3_folder: Path, tmp_path: Path):
    """Embeddings equal those of one process bit for bit; one of the two ranks encodes each prompt."""
    runs = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        place = None if cache is None else str(folder / "cache")
        settings = {
            "model__policy__class_path": "counted.Counted",
            "model__policy__init_args__cache": place,
            "model__policy__init_args__log": str(folder),
            "model__policy__init_args__own": cache == "own",
            "trainer__max_epochs": 1,
        }
        path = config(folder, sd3_folder, **settings)
        several = ("--trainer.devices", 2, "--trainer.strategy", "ddp") if processes == 2 else ()
        assert set(forked(folder, "fit", "--config", path, *several, processes=processes).wait(200)) == {0}
        runs[processes] = [json.loads(line) for f in sorted(folder.glob("encoded_*")) for line in f.open()]
        if place is None:
            continue
        entries = {f.name: load_file(f) for f in Path(place).rglob("*.safetensors")}
        runs[f"entries {processes}"] = entries
    assert sorted(runs[2]) == sorted(set(runs[1]))
    counts = [sum(1 for _ in f.open()) for f in sorted((tmp_path / "2").glob("encoded_*"))]
    assert len(counts) == 2
    assert min(counts) >= 2
    if cache is not None:
        one, two = runs["entries 1"], runs["entries 2"]
        assert one.keys() == two.keys()
        assert all(torch.equal(two[k][n], t) for k, v in one.items() for n, t in v.items())
    one, two = (torch.load(newest(tmp_path / n), weights_only=True)["state_dict"] for n in "12")
    assert all(torch.allclose(two[k], v, atol=1e-6) for k, v in one.items())


def test_training_works_after_encoding_in_inference_mode(monkeypatch: pytest.MonkeyPatch):
    """With `trainer.inference_mode: true`, as if there were another device."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).requires_grad_(False)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *device: tensor.clone())
    with torch.inference_mode(), prompted.moved_to_host(network):
        pass
    x = torch.ones(1, 2, requires_grad=True)
    network(x).sum().backward()
    assert torch.equal(x.grad, network[1].weight.sum(0, keepdim=True) @ network[0].weight)

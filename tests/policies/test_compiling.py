"""`compile: blocks`: the same numbers, names and checkpoints as uncompiled, and a warning where torch fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES
from forked import forked
from runs import config, guardlit, newest
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.compilers import nop

from guardlit.checkpoints.io import SafeCheckpointIO
from guardlit.errors import GuardlitError
from guardlit.policies import DiffusersPolicy
from guardlit.policies.base import WeightSet
from guardlit.policies.network import compiling

Results = tuple[Tensor, dict[str, Tensor]]
Call = tuple[int, float, WeightSet, bool]
"""Rows, guidance, weight set, gradients."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch):
    """`torch.compile` without its code generation, which takes minutes on a CPU."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()


@torch.no_grad()
def disturb(policy: DiffusersPolicy) -> None:
    for name, parameter in policy.named_parameters():
        if ".lora_" in name:
            generator = torch.Generator().manual_seed(len(name) + (".old." in name))
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def results(policy: DiffusersPolicy, rows: int, guidance: float, weights: WeightSet, grad: bool) -> Results:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, *policy.latent_shape, generator=generator)
    with torch.set_grad_enabled(grad), policy.using(weights):
        v = policy.velocity(x, torch.linspace(0.9, 0.3, rows), policy.conditioning(["a cat"] * rows), guidance)
    if not v.requires_grad:
        return v, {}
    policy.zero_grad()
    v.square().sum().backward()
    return v.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


CALLS: list[Call] = [
    (2, 1.0, "old", False),
    (2, 3.5, "policy", False),
    (1, 1.0, "policy", False),  # a round's last, smaller batch
    (2, 1.0, "policy", True),
    (2, 1.0, "reference", False),
    (2, 1.0, "old", True),
    (2, 1.0, "policy", True),
]


FEW = [CALLS[0], CALLS[3], CALLS[4]]
RECOMPUTED = {"gradient_checkpointing": True, "weights_dtype": "bf16"}


@pytest.mark.parametrize("calls", [FEW, pytest.param(CALLS, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize(("name", "options"), [("sd3", {}), ("flux", RECOMPUTED)], ids=["sd3", "flux, recomputed"])
def test_compiled_blocks_compute_the_same(name: str, options: dict, calls: list[Call], tiny):
    plain = FAMILIES[name].load(tiny(name), **options)
    compiled = FAMILIES[name].load(tiny(name), **options, compile="blocks")
    compiled.load_state_dict(plain.state_dict())
    names = {k for k, _ in plain.named_parameters()}
    assert {k for k, _ in compiled.named_parameters()} == names
    for policy in (plain, compiled):
        disturb(policy)
    outputs = {}
    for call in calls:
        (expected, gradients), (found, mine) = (results(p, *call) for p in (plain, compiled))
        assert torch.equal(found, expected), call
        assert gradients.keys() == mine.keys()
        assert all(torch.equal(mine[k], v) for k, v in gradients.items()), call
        assert bool(gradients) == (call[3] and call[2] == "policy")
        outputs[call] = found
    assert not torch.equal(outputs[CALLS[0]], outputs[CALLS[4]])  # the weight sets differ
    assert not counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 2 * 6  # two kinds of blocks; one of the calls repeats another
    results(compiled, *calls[0])
    assert counters["stats"]["unique_graphs"] == graphs


def test_merged_weights_and_exported_adapters_run_compiled(sd3_folder: Path, tmp_path: Path):
    policy = FAMILIES["sd3"].load(sd3_folder, compile="blocks")
    disturb(policy)
    expected = results(policy, 2, 1.0, "policy", False)[0]
    with policy.merged():
        torch.testing.assert_close(results(policy, 2, 1.0, "policy", False)[0], expected, rtol=1e-4, atol=1e-4)
    policy.export(tmp_path)
    other = FAMILIES["sd3"].load(sd3_folder, compile="blocks")
    assert not torch.equal(results(other, 2, 1.0, "policy", False)[0], expected)
    with other.exported(tmp_path):
        torch.testing.assert_close(results(other, 2, 1.0, "policy", False)[0], expected)


def test_too_many_graphs_warn_and_run_uncompiled(sd3_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "GRAPHS", 1)
    plain, compiled = (FAMILIES["sd3"].load(sd3_folder, compile=mode) for mode in (None, "blocks"))
    compiled.load_state_dict(plain.state_dict())
    limit = torch._dynamo.config.recompile_limit
    with pytest.warns(UserWarning, match="compile=blocks: torch cannot compile, the blocks run uncompiled") as caught:
        found = [results(compiled, rows, 1.0, "policy", False)[0] for rows in (1, 2, 3)]
    assert len([w for w in caught if "compile=blocks" in str(w.message)]) == 1
    assert torch._dynamo.config.recompile_limit == limit
    for rows, velocity in zip((1, 2, 3), found, strict=True):
        assert torch.equal(velocity, results(plain, rows, 1.0, "policy", False)[0])


def broken(graph: object, inputs: object) -> None:
    raise RuntimeError("no C++ compiler\nanywhere")


@pytest.mark.parametrize(
    "backend",
    [broken, aot_autograd(fw_compiler=nop, bw_compiler=broken)],
    ids=["forward", "backward"],
)
def test_a_failing_compiler_warns_in_one_line(backend: object, sd3_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "BACKEND", backend)
    policy = FAMILIES["sd3"].load(sd3_folder, compile="blocks")
    with pytest.warns(UserWarning, match=r"compile=blocks: .* no C\+\+ compiler anywhere"):
        found = results(policy, 2, 1.0, "policy", True)
    assert found[1]


def test_an_error_of_the_model_is_not_a_compiler_error(sd3_folder: Path):
    policy = FAMILIES["sd3"].load(sd3_folder, compile="blocks")
    block = policy.transformer.transformer_blocks[0]
    with pytest.raises(Exception, match=r"shape|size|dimension"):
        block(torch.zeros(1, 3, 7), torch.zeros(1, 2, 5), torch.zeros(1, 32))


def test_a_network_without_blocks_cannot_be_compiled_by_block():
    with pytest.raises(GuardlitError, match="compile=blocks: the network names no repeated blocks; set it to null"):
        compiling.CompiledBlocks([])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "lora": None}], ids=["lora", "full"])
def test_sharded_blocks_compute_the_same_compiled(changes: dict, sd3_folder: Path, tmp_path: Path):
    """On two ranks; the noise floor before the first update is that of the compiled network."""
    settings = {
        "model__policy__class_path": "eagerly.Eagerly",
        "model__rollout": {"num_inference_steps": 3, "guidance_scale": 1.0},
        "data__rollout_batch": 2,
        "data__micro_batch": 2,
        "data__val": None,
        "trainer__max_epochs": 1,
        "trainer__callbacks": [{"class_path": "eagerly.Graphs"}],
    } | {f"model__policy__init_args__{name}": value for name, value in changes.items()}
    states = []
    for mode in (None, "blocks"):
        folder = tmp_path / str(mode)
        folder.mkdir()
        path = config(folder, sd3_folder, **settings, model__policy__init_args__compile=mode)
        run = forked(folder, "fit", "--config", path, "--trainer.devices", 2, "--trainer.strategy", "fsdp")
        assert run.wait() == [0, 0], run.last(0)
        log = run.logs[0].read_text()
        assert "compile=blocks" not in log  # nothing ran uncompiled
        assert ("graphs: 0\n" in log) == (mode is None)
        assert "noise floor of the log ratio by step, before the first update: 0:0.0e+00 1:0.0e+00" in log
        states.append(SafeCheckpointIO().load_checkpoint(newest(folder), map_location="cpu")["state_dict"])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[1][k], v) for k, v in states[0].items())


@pytest.mark.slow
def test_a_run_is_resumed_compiled(sd3_folder: Path, tmp_path: Path):
    changes = {"data__rollout_batch": 3, "trainer__max_epochs": 1}  # batches of 3, 3 and 2
    path = config(tmp_path, sd3_folder, model__policy__init_args__gradient_checkpointing=True, **changes)
    assert guardlit("fit", "--config", path) == 0
    states, first = [], newest(tmp_path)
    for mode in ("null", "blocks"):
        more = ("--trainer.max_epochs", 2, "--model.policy.compile", mode, "--ckpt_path", first)
        assert guardlit("fit", "--config", path, *more, "--trainer.default_root_dir", tmp_path / mode) == 0
        states.append(SafeCheckpointIO().load_checkpoint(newest(tmp_path / mode), map_location="cpu")["state_dict"])
    assert counters["stats"]["unique_graphs"] > 0
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[1][k], v) for k, v in states[0].items())


@pytest.mark.slow
def test_generated_code_differs_by_rounding_only(sd3_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    plain, compiled = (FAMILIES["sd3"].load(sd3_folder, compile=mode) for mode in (None, "blocks"))
    compiled.load_state_dict(plain.state_dict())
    for policy in (plain, compiled):
        disturb(policy)
    for call in ((2, 1.0, "old", False), (2, 1.0, "policy", True)):
        (expected, gradients), (found, mine) = (results(p, *call) for p in (plain, compiled))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-4)

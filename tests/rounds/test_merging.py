"""An adapter merged into the weights while a rollout draws: what it draws, what is left behind, and who decides."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS
from forked import forked
from half_velocities import error, gradient, sd3
from runs import config, differing, guardlit, newest
from torch import Tensor
from velocities import disturb

from guardlit.policies import DiffusersPolicy
from guardlit.policies.weights.adapters import adapted_layers
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.settings import Rollout


@torch.no_grad()
def velocity(policy: DiffusersPolicy) -> Tensor:
    x = NoiseSource(1, 0, policy.latent_shape).draw([0, 1], 0)
    return policy.velocity(x, torch.tensor([0.9, 0.4]), policy.conditioning(PROMPTS), 2.0)


def bases(policy: DiffusersPolicy) -> list[Tensor]:
    return [layer.get_base_layer().weight for layer in adapted_layers(policy.transformer)]


# the weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_merged_weights_give_the_adapters_velocity_and_are_restored_bit_for_bit(name: str, tiny: Callable[[str], Path]):
    policy = FAMILIES[name].load(tiny(name))
    assert policy.mergeable
    base = velocity(policy)
    disturb(policy)
    policy.refresh_old()
    old = velocity(policy)
    disturb(policy)
    now, before = velocity(policy), {n: (p.data_ptr(), p.detach().clone()) for n, p in policy.named_parameters()}
    with policy.merged():
        assert 0 < error(velocity(policy), now) < 1e-5  # other products, the same sum
        assert all(layer.disable_adapters for layer in adapted_layers(policy.transformer))
    with policy.using("old"), policy.merged():
        assert 0 < error(velocity(policy), old) < 1e-5
    with policy.using("reference"), policy.merged():
        assert torch.equal(velocity(policy), base)
    assert min(error(a, b) for a, b in [(base, old), (old, now)]) > 1e-3
    assert torch.equal(velocity(policy), now)
    for name, parameter in policy.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_other_weight_sets_are_used_unmerged_within_a_merge(name: str, inference: bool, tiny: Callable[[str], Path]):
    policy = FAMILIES[name].load(tiny(name))
    base = velocity(policy)
    disturb(policy)
    policy.refresh_old()
    old = velocity(policy)
    disturb(policy)
    before = {n: (p.data_ptr(), p.detach().clone()) for n, p in policy.named_parameters()}
    with torch.inference_mode(inference), policy.merged():
        merged = velocity(policy)
        for weights, expected in (("reference", base), ("old", old), ("policy", merged)):
            with policy.using(weights):
                assert torch.equal(velocity(policy), expected), weights
            assert torch.equal(velocity(policy), merged), weights
        with pytest.raises(KeyboardInterrupt), policy.using("reference"):
            raise KeyboardInterrupt
        assert torch.equal(velocity(policy), merged)
    assert not torch.equal(merged, old)
    for n, parameter in policy.named_parameters():
        assert parameter.data_ptr() == before[n][0]
        assert not parameter.is_inference()
        assert torch.equal(parameter, before[n][1])


def test_the_sum_is_made_in_float32_and_rounded_once(tiny: Callable[[str], Path]):
    policy = sd3(tiny)
    expected = []
    for layer in adapted_layers(policy.transformer):
        up, down = (part["default"].weight for part in (layer.lora_B, layer.lora_A))
        expected.append((layer.get_base_layer().weight.float() + 2 * up @ down).bfloat16())  # alpha / rank is 2
    with policy.merged():
        moved = torch.cat(
            [(w.float() - e.float()).flatten().abs() / e.abs().flatten() for w, e in _pairs(policy, expected)]
        )
    assert float((moved > 0).float().mean()) < 1e-3  # where float32 itself rounds the other way
    assert float(moved.max()) <= 2**-7


def _pairs(policy: DiffusersPolicy, expected: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(bases(policy), expected, strict=True))


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["within", "while merging"])
def test_the_weights_are_restored_after_any_exit(
    stop: type[BaseException], place: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    policy = sd3(tiny)
    drawn, before = velocity(policy), [w.detach().clone() for w in bases(policy)]
    calls, addmm = [0], torch.addmm

    def interrupted(*args: Tensor, **kwargs: float) -> Tensor:
        calls[0] += 1
        if place == "while merging" and calls[0] == 4:
            raise stop
        return addmm(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", interrupted)
    with pytest.raises(stop), policy.merged():
        raise stop
    assert calls[0] >= 4
    assert all(torch.equal(a, b) for a, b in zip(bases(policy), before, strict=True))
    assert torch.equal(velocity(policy), drawn)


def test_training_continues_after_merging_in_inference_mode(tiny: Callable[[str], Path]):
    policy = sd3(tiny, weights_dtype="fp32", gradient_checkpointing=True)
    with torch.inference_mode(), policy.merged():
        velocity(policy)
    assert torch.equal(gradient(policy), gradient(sd3(tiny, weights_dtype="fp32", gradient_checkpointing=True)))


def test_an_exported_adapter_is_merged_too(tiny: Callable[[str], Path], tmp_path: Path):
    policy = sd3(tiny, weights_dtype="fp32")
    drawn = velocity(policy)
    policy.export(tmp_path / "lora")
    disturb(policy)
    with policy.exported(tmp_path / "lora"), policy.merged():
        assert 0 < error(velocity(policy), drawn) < 1e-5


def test_a_layer_that_is_no_plain_one_cannot_be_merged(tiny: Callable[[str], Path]):
    class Quantized(torch.nn.Linear): ...

    policy = sd3(tiny)
    adapted_layers(policy.transformer)[3].get_base_layer().__class__ = Quantized
    assert not policy.mergeable
    assert not FAMILIES["sd3"].load(tiny("sd3"), lora=None).mergeable


# the run --------------------------------------------------------------------------------------------------------------

BF16 = {"model__policy__init_args__weights_dtype": "bf16"}
APART = {"data__micro_batch": 4, "data__rollout_batch": 2}  # so that stored ratios are not exactly 1 in any case
RECOMPUTED = {"model__old_velocity": "recomputed"}


def rollout(merge: object) -> dict[str, object]:
    return {"model__rollout": {"num_inference_steps": 5, "guidance_scale": 1.0, "merge": merge}}


def clip(value: float) -> dict[str, object]:
    return {"model__objective": {"class_path": "GRPOGuard", "init_args": {"clip_range": value}}}


CASES = [
    ("stored", {}, [0, 0], False),
    ("stored, other batches", APART, [0, 0], False),  # in float32 nothing is gained that was worth an inexact ratio
    ("recomputed", RECOMPUTED, [1, 1], False),
    ("off", {**RECOMPUTED, **rollout(False)}, [], False),
    ("on", rollout(True), [1, 1], False),
    ("halves", BF16, [0, 0], False),
    ("halves, other batches, coarse clip", {**BF16, **APART, **clip(0.03)}, [1, 1], True),
    ("halves, other batches, fine clip", {**BF16, **APART, **clip(1e-9)}, [1, 0], True),
]


@pytest.mark.parametrize(("changes", "expected", "measured"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_which_rounds_merge(
    changes: dict[str, object],
    expected: list[int],
    measured: bool,
    sd3_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """Two rounds, at a learning rate that makes the second one's adapter matter."""
    caplog.set_level("INFO")
    fast = {"model__optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}}}
    settings = {"data__val": None, "trainer__max_epochs": 2, **fast, **changes}
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **settings)) == 0
    with newest(tmp_path, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("reward/failed")]
    assert [float(row["rollout/merged"]) for row in rows if row.get("rollout/merged")] == expected
    errors = [float(row["rollout/merge_error"]) for row in rows if row.get("rollout/merge_error")]
    assert len(errors) == (2 if measured else 0)
    if measured:
        assert errors[0] == 0  # the adapter starts as no change at all
        assert 1e-9 < errors[1] < 1e-1
    lines = [r.message for r in caplog.records if "merged into the weights" in r.message]
    assert len(lines) == int(1 in expected)


def test_the_decision_changes_with_the_error_and_is_logged(sd3_folder: Path, tmp_path: Path, caplog):
    """In the first round the adapter does nothing and merging is exact; in the second it is not."""
    caplog.set_level("INFO")
    settings = {**BF16, **APART, **clip(1e-8), "data__val": None, "trainer__max_epochs": 2}
    settings["model__optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.05}}
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **settings)) == 0
    lines = [r.message for r in caplog.records if "is drawn with the adapter" in r.message]
    made = "the weights: merging makes a log ratio of "
    assert lines[0].startswith(f"round 1 is drawn with the adapter merged into {made}0")
    assert lines[1].startswith(f"round 2 is drawn with the adapter apart from {made}")
    assert lines[1].endswith("half of the clip range is 5.0e-09")


def test_true_without_an_adapter_is_one_line(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = config(tmp_path, sd3_folder, model__policy__init_args__lora=None, **rollout(True))
    assert guardlit("fit", "--config", path) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("guardlit fit: error: rollout.merge: true needs an adapter on layers that are not quantized")


def test_nonsense_is_one_line(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **rollout("sometimes"))) == 2
    assert "rollout.merge" in capsys.readouterr().err


def test_a_merged_run_resumes_bit_for_bit(sd3_folder: Path, tmp_path: Path):
    """Rounds 0 and 1 at once, and round 1 after a restart; validation, averages and merging by measurement included."""
    settings = {**BF16, **APART, **clip(0.03), "trainer__max_epochs": 2}
    for name in ("at_once", "resumed"):
        (tmp_path / name).mkdir()
    assert guardlit("fit", "--config", config(tmp_path / "at_once", sd3_folder, **settings)) == 0
    path = config(tmp_path / "resumed", sd3_folder, **settings)
    assert guardlit("fit", "--config", path, "--trainer.max_epochs", 1) == 0
    first = newest(tmp_path / "resumed")
    assert guardlit("fit", "--config", path, "--ckpt_path", first) == 0
    assert newest(tmp_path / "resumed") != first
    assert differing(newest(tmp_path / "at_once"), newest(tmp_path / "resumed")) == []


def test_a_resumed_run_may_merge_otherwise():
    assert str(Rollout(merge=True)) == str(Rollout(merge=False))  # which is the fingerprint's part


@pytest.mark.slow
def test_a_sharded_network_merges_its_shards(sd3_folder: Path, tmp_path: Path):
    """One process, and two with FSDP2: local rows of B times the full A."""
    states = {}
    common = {**rollout(True), "data__micro_batch": 1, "data__rollout_batch": 1, "trainer__max_epochs": 2}
    for name, processes, args in (("one", 1, ()), ("two", 2, ("--trainer.strategy", "fsdp"))):
        (tmp_path / name).mkdir()
        several = ("--trainer.devices", processes) if processes > 1 else ()
        path = config(tmp_path / name, sd3_folder, **common)
        assert set(
            forked(tmp_path / name, "fit", "--config", path, *several, *args, processes=processes).wait(600)
        ) == {0}
        states[name] = torch.load(newest(tmp_path / name), weights_only=True)["state_dict"]
    moved = max(float(v.abs().max()) for k, v in states["one"].items() if "lora_B" in k)
    assert moved > 1e-3
    for name, value in states["one"].items():
        torch.testing.assert_close(states["two"][name], value, rtol=1e-4, atol=1e-5 * moved)

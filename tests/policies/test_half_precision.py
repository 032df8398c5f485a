"""A frozen base in half precision computes without autocast; trained weights stay float32."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from families import FAMILIES, PROMPTS, SIDE, Family
from guardlit_callbacks.distributed.sharded import local, reshard
from half_velocities import error, gradient, sd3, velocity
from runs import config, guardlit
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from velocities import disturb

from guardlit.policies import DiffusersPolicy, LoRA, SD3Policy
from guardlit.policies.weights.adapters import CastLinear, CastOnce
from guardlit.policies.weights.lora import AdapterWeights

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def outputs_of_products(policy: DiffusersPolicy) -> set[torch.dtype]:
    """Output dtypes of linear layers, those of adapters included."""
    seen: set[torch.dtype] = set()
    for module in policy.transformer.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, i, out: seen.add(out.dtype))
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_velocities_and_gradients_are_float32_and_near_those_of_float32(name: str, tiny: Callable[[str], Path]):
    family: Family = FAMILIES[name]
    torch.manual_seed(0)
    full = family.load(tiny(name))
    disturb(full)
    expected = velocity(full), gradient(full)
    # rounding in the last of 8 and of 11 bits, through two blocks; a wrong dtype somewhere is an error, not noise
    for dtype, bound in {"bf16": 0.06, "fp16": 0.008}.items():
        policy = family.load(tiny(name), weights_dtype=dtype)
        policy.load_state_dict(full.state_dict())
        products = outputs_of_products(policy)
        found = velocity(policy), gradient(policy)
        assert products == {HALVES[dtype]}
        assert {found[0].dtype, found[1].dtype} == {torch.float32}
        assert 1e-5 < error(found[0], expected[0]) < bound
        assert 1e-5 < error(found[1], expected[1]) < 2 * bound
        with torch.autocast("cpu", dtype=torch.bfloat16):  # no effect: it is disabled inside
            assert torch.equal(velocity(policy), found[0])


def test_float32_weights_compute_under_autocast(tiny: Callable[[str], Path]):
    policy = sd3(tiny, weights_dtype="fp32")
    assert policy.forward_dtype is None
    plain = velocity(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert 1e-4 < error(velocity(policy), plain) < 0.06


def test_trained_weights_keep_their_names_and_precision(tiny: Callable[[str], Path]):
    half, full = sd3(tiny), sd3(tiny, weights_dtype="fp32")
    assert [n for n, _ in half.named_parameters()] == [n for n, _ in full.named_parameters()]
    velocity(half)
    assert half.state_dict().keys() == full.state_dict().keys()
    assert {p.dtype for n, p in half.named_parameters() if ".lora_" in n} == {torch.float32}
    assert {p.dtype for n, p in half.named_parameters() if ".lora_" not in n} == {torch.bfloat16}


@pytest.fixture
def casts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of casts of adapter weights."""
    count = [0]
    original = CastOnce.__call__

    def call(self: CastOnce, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        before = self._copy
        out = original(self, tensor, dtype)
        count[0] += out is not before
        return out

    monkeypatch.setattr(CastOnce, "__call__", call)
    return count


def test_one_cast_an_update(casts: list[int], tiny: Callable[[str], Path]):
    policy = sd3(tiny)
    weights = 2 * FAMILIES["sd3"].lora_layers
    summed = gradient(policy, calls=3)
    assert casts == [weights]
    assert error(summed, 3 * gradient(policy)) < 1e-6
    with torch.no_grad():
        velocity(policy)
    assert casts == [weights]
    with policy.using("old"):
        velocity(policy)
        velocity(policy)
    assert casts == [2 * weights]
    gradient(policy)
    assert casts == [2 * weights]


def _fused(policy: DiffusersPolicy) -> None:
    gradient(policy)
    torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.1, fused=True).step()


def _average(policy: DiffusersPolicy) -> None:
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.detach().mul_(0.5)


def _exchange(policy: DiffusersPolicy) -> None:
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data * 0.5


def _load(policy: DiffusersPolicy) -> None:
    policy.load_state_dict({n: 0.5 * p for n, p in policy.named_parameters() if p.requires_grad}, strict=False)


@pytest.mark.parametrize("change", [_fused, _average, _exchange, _load])
def test_a_change_of_the_weights_renews_the_cast(
    change: Callable[[DiffusersPolicy], None], tiny: Callable[[str], Path]
):
    policy, twin = sd3(tiny), sd3(tiny)
    before = velocity(policy)
    change(policy)
    twin.load_state_dict(policy.state_dict())  # no casts yet
    assert torch.equal(velocity(policy), velocity(twin))
    assert error(velocity(policy), before) > 1e-3


def test_a_cast_without_gradients_is_not_used_in_training(tiny: Callable[[str], Path]):
    expected = gradient(sd3(tiny))
    for mode in (torch.no_grad, torch.inference_mode):
        policy = sd3(tiny)
        with mode():
            velocity(policy)
        assert torch.equal(gradient(policy), expected)
        assert float(expected.norm()) > 0


def test_gradient_checkpointing_changes_nothing(tiny: Callable[[str], Path]):
    assert torch.equal(gradient(sd3(tiny, gradient_checkpointing=True), calls=2), gradient(sd3(tiny), calls=2))


def test_a_compiled_layer_casts_inside_the_graph():
    torch.manual_seed(0)
    layer = nn.Linear(8, 4, bias=False)
    layer.__class__, layer.once = CastLinear, CastOnce()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 8).bfloat16()
    for _ in range(2):
        assert torch.equal(compiled(x), layer(x))
        with torch.no_grad():
            layer.weight.mul_(2)
    assert copy.deepcopy(layer)(x).dtype == torch.bfloat16


def test_an_exported_adapter_equals_the_policy_in_half_precision(tiny: Callable[[str], Path], tmp_path: Path):
    policy = sd3(tiny)
    drawn = velocity(policy).detach()
    policy.export(tmp_path / "lora")
    disturb(policy)
    with torch.no_grad(), policy.exported(tmp_path / "lora"):
        assert torch.equal(velocity(policy), drawn)
    assert error(velocity(policy), drawn) > 1e-3


def test_the_dtype_is_read_once(tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    policy = sd3(tiny)
    asked: list[int] = []
    monkeypatch.setattr(type(policy.transformer), "dtype", property(lambda self: asked.append(1)))
    velocity(policy)
    assert asked == []


def test_the_adapters_initial_weights_do_not_depend_on_the_device(tiny: Callable[[str], Path]):
    from diffusers import SD3Transformer2DModel

    states = []
    for device in ("cpu", "meta"):  # the default device at loading: Lightning's is the GPU
        transformer = SD3Transformer2DModel.from_pretrained(tiny("sd3"), subfolder="transformer")
        torch.manual_seed(7)
        with torch.device(device):
            AdapterWeights(transformer, LoRA(4, 8), ["attn.to_q"])
        states.append({n: p for n, p in transformer.named_parameters() if "lora_A" in n})
    assert states[0].keys() == states[1].keys() != set()
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value)
        assert float(value.std()) > 0.1


FP16, BF16 = (
    "without a loss scale float16 gradients vanish; take trainer.precision=16-mixed",
    "which computes in bfloat16",
)


@pytest.mark.parametrize(
    ("weights", "precision", "expected"),
    [("fp16", "bf16-mixed", FP16), ("fp16", "32-true", FP16), ("bf16", "16-mixed", BF16)],
)
def test_incompatible_precisions_are_one_line(
    weights: str, precision: str, expected: str, sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    changes = {"model__policy__init_args__weights_dtype": weights, "trainer__precision": precision}
    path = config(tmp_path, sd3_folder, **changes)
    command = "plan" if precision == "16-mixed" else "fit"  # on a CPU Lightning takes bf16-mixed instead
    assert guardlit(command, "--config", path) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"guardlit {command}: error: trainer.precision={precision} with weights_dtype: {weights}")
    assert expected in last


def test_bf16_weights_train_without_autocast(sd3_folder: Path, tmp_path: Path):
    changes = {"model__policy__init_args__weights_dtype": "bf16", "data__val": None, "trainer__max_epochs": 1}
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **changes)) == 0


def test_casts_of_sharded_adapters_are_not_cached(tiny: Callable[[str], Path], tmp_path: Path):
    """FSDP2 refills one buffer in every forward pass; exported weights in between change nothing."""
    sd3(tiny).export(tmp_path / "lora")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        policy = SD3Policy(str(tiny("sd3")), SIDE, LoRA(4, 8), "bf16", max_sequence_length=16, cache=None)
        policy.load(lambda network, blocks: _spread(network, blocks, mesh))
        policy.encode(PROMPTS)
        with torch.no_grad():
            with policy.exported(tmp_path / "lora"):
                velocity(policy)
            before = velocity(policy)
            reshard(policy)
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    local(parameter).add_(0.1)
            assert error(velocity(policy), before) > 1e-3
    finally:
        dist.destroy_process_group()


def _spread(network: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    for part in (*blocks, network):
        fully_shard(part, mesh=mesh)

"""A policy on a GPU: all tensors are there, and the numbers match the CPU's. `--rehearse-gpu` runs it on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, PROMPTS

from guardlit.devices.transfer import Trajectories
from guardlit.objective import GRPOGuard
from guardlit.rounds.experience import Experience
from guardlit.rounds.noise import INITIAL, NoiseSource
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.rollout import sample
from guardlit.rounds.round import Round
from guardlit.sde import FlowSDE
from guardlit.types import Prompt

pytestmark = pytest.mark.gpu
GUIDANCE = 3.5


@contextmanager
def full_float32() -> Iterator[None]:
    """Without TF32, whose products have 11 bits."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(params=list(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pair(name: str, tiny: Callable[[str], Path], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """The same policy on the device and on the CPU, with a changed adapter."""
    on_cpu = FAMILIES[name].load(tiny(name))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in on_cpu.named_parameters():
            if ".lora_B.default" in key:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    on_device = copy.deepcopy(on_cpu).to(device)
    with full_float32():
        yield on_device, on_cpu


def guidance(name: str) -> float:
    return 1.0 if FAMILIES[name].policy.__name__.startswith("Flux2") else GUIDANCE


def drawn(policy: Any, name: str) -> Any:
    coefficients = FlowSDE().coefficients(policy.sigmas(3))
    record = torch.arange(2).expand(len(PROMPTS), -1)
    conditioning = policy.conditioning(PROMPTS)
    noise = NoiseSource(0, 0, policy.latent_shape)
    return sample(policy, coefficients, conditioning, noise, range(len(PROMPTS)), guidance(name), record=record)


def experience(policy: Any, name: str, place: str = "device") -> Experience:
    """A round of two prompts with two images each."""
    plan = RoundPlan(2, 2, 2, 1, 2, train_steps=2)
    round_ = Round(0, [Prompt(text) for text in PROMPTS], [], plan, seed=0)
    trajectory = drawn(policy, name)
    repeated = [getattr(trajectory, key).repeat(2, 1, 1, 1, 1) for key in ("latents", "velocity")]
    return Experience(
        round=round_,
        advantage=torch.tensor([1.0, -1.0, 0.5, -0.5]),
        mask=torch.ones(4, dtype=torch.bool),
        metrics={},
        conditioning=policy.conditioning(PROMPTS),
        coefficients=FlowSDE().coefficients(policy.sigmas(3)),
        trajectories=Trajectories(*repeated, trajectory.latents.device, place),
    )


def tensors(thing: Any) -> Iterator[torch.Tensor]:
    values = thing.values() if isinstance(thing, dict) else vars(thing).values()
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from tensors(value)


def test_every_tensor_of_a_round_is_on_the_device(pair: tuple[Any, Any], name: str, device: torch.device):
    policy, _ = pair
    assert {t.device for t in (*policy.parameters(), *policy.buffers())} == {device}
    trajectory = drawn(policy, name)
    batch = experience(policy, name).take([0, 1], [0, 1])
    images = policy.decode(trajectory.final)
    found = [*tensors(trajectory), *tensors(batch), images]
    assert len(found) > 12
    assert {t.device.type for t in found} == {device.type}


def test_log_ratios_and_gradients_match_float64(pair: tuple[Any, Any], name: str, device: torch.device):
    on_device, on_cpu = pair
    in_float64(on_cpu)
    ours, theirs = (step(policy, name, where) for policy, where in ((on_device, device), (on_cpu, torch.device("cpu"))))
    assert float(theirs[0].abs().min()) > 0
    assert float((ours[0] - theirs[0]).norm() / theirs[0].norm()) < 1e-4
    assert float((ours[1] - theirs[1]).norm() / theirs[1].norm()) < 1e-3


def in_float64(policy: Any) -> None:
    policy.transformer.double()
    policy._dtype = torch.float64  # the policy's copy of the dtype


def step(policy: Any, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Log ratios and the flat gradient of one micro-batch, float64 on the CPU; inputs do not depend on the device."""
    coefficients = FlowSDE().coefficients(policy.sigmas(5))
    steps = torch.tensor([1, 3])
    noise = NoiseSource(0, 0, policy.latent_shape)
    latents, eps = (noise.draw([0, 1], k).to(device) for k in (INITIAL, 0))
    sigma, conditioning = coefficients.sigmas[steps].float().to(device), policy.conditioning(PROMPTS)
    with policy.using("old"):
        old = policy.velocity(latents, sigma, conditioning, guidance(name))
    velocity = policy.velocity(latents, sigma, conditioning, guidance(name))
    table = {"gain": coefficients.velocity, "std": coefficients.std, "dt": coefficients.dt}
    advantage = torch.tensor([1.0, -1.0], device=device)
    factors = {key: values[steps].to(device) for key, values in table.items()}
    out = GRPOGuard(0.5)(velocity, old, eps, advantage=advantage, **factors)
    gradients = torch.autograd.grad(out.loss, [p for p in policy.parameters() if p.requires_grad])
    return out.log_ratio.double().cpu(), torch.cat([g.flatten().double().cpu() for g in gradients])


def test_sampling_gives_the_cpus_latents(pair: tuple[Any, Any], name: str):
    on_device, on_cpu = (drawn(policy, name) for policy in pair)
    torch.testing.assert_close(on_device.final.cpu(), on_cpu.final, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(on_device.velocity.cpu(), on_cpu.velocity, rtol=1e-3, atol=1e-3)


def test_embeddings_are_the_cpus(pair: tuple[Any, Any], name: str, tiny: Callable[[str], Path], device: torch.device):
    _, on_cpu = pair
    fresh = FAMILIES[name].policy(
        str(tiny(name)), 64, cache=None, max_sequence_length=FAMILIES[name].length, lora=on_cpu.lora
    )
    fresh.load()
    fresh.to(device)
    fresh.encode(PROMPTS)
    ours, theirs = fresh.conditioning(PROMPTS), on_cpu.conditioning(PROMPTS)
    assert {t.device.type for t in ours.values()} == {device.type}
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key].cpu(), value, rtol=1e-3, atol=1e-4)


def test_images_match_the_cpus_within_a_gray_level(pair: tuple[Any, Any]):
    on_device, on_cpu = pair
    latents = torch.randn(3, *on_cpu.latent_shape, generator=torch.Generator().manual_seed(0))
    ours, theirs = on_device.decode(latents.to(on_device.device)).cpu(), on_cpu.decode(latents)
    assert ours.dtype == torch.uint8
    assert int((ours.int() - theirs.int()).abs().max()) <= 1


def test_weight_sets_are_swapped_on_the_device(pair: tuple[Any, Any], name: str, device: torch.device):
    policy, _ = pair
    latents = torch.randn(2, *policy.latent_shape, device=device)
    sigma, conditioning = torch.full((2,), 0.5, device=device), policy.conditioning(PROMPTS)

    def velocity(weights: str) -> torch.Tensor:
        with torch.no_grad(), policy.using(weights):
            return policy.velocity(latents, sigma, conditioning, guidance(name))

    trained, old, reference = velocity("policy"), velocity("old"), velocity("reference")
    assert not torch.equal(trained, old)  # the old policy is still the untrained adapter
    torch.testing.assert_close(old, reference, rtol=1e-4, atol=1e-5)
    policy.refresh_old()
    torch.testing.assert_close(velocity("old"), trained, rtol=1e-4, atol=1e-5)


def test_noise_is_the_cpus_bit_for_bit(pair: tuple[Any, Any], name: str):
    """On any device, a transition has the noise of its sample and step."""
    policy, _ = pair
    rows, slots = [3, 0], [1, 0]
    kept = experience(policy, name)
    batch = kept.take(rows, slots)
    samples = [kept.round.samples[row] for row in rows]
    expected = NoiseSource(0, 0, policy.latent_shape).draw(samples, kept.steps_of(rows, slots))
    assert torch.equal(batch.noise.cpu(), expected)


@pytest.mark.parametrize("place", ["device", "host"])
def test_copies_to_the_device_are_complete_when_read(pair: tuple[Any, Any], name: str, place: str):
    """They are asynchronous: a pinned block that is freed too early could be overwritten."""
    policy, _ = pair
    kept = experience(policy, name, place)
    batches = [kept.take([row, 3 - row], [slot, slot]) for _ in range(20) for row in range(4) for slot in range(2)]
    places = [([row, 3 - row], [slot, slot]) for _ in range(20) for row in range(4) for slot in range(2)]
    source = NoiseSource(0, 0, policy.latent_shape)
    for batch, (rows, slots) in zip(batches, places, strict=True):
        samples = [kept.round.samples[row] for row in rows]
        assert torch.equal(batch.noise.cpu(), source.draw(samples, slots))
        assert batch.sample.tolist() == samples
        assert torch.equal(batch.latents.cpu(), kept.latents[rows, slots].cpu())

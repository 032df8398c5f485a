"""The KL penalty's divergences and schedule, against torch's distributions and by hand."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as kl_of

from guardlit.errors import GuardlitError
from guardlit.kl import KL, kl_divergence

GENERATOR = torch.Generator().manual_seed(0)
V, W, X = (torch.randn(4, 3, 5, 5, generator=GENERATOR).double() for _ in range(3))
GAIN, STD, DT = (torch.rand(4, generator=GENERATOR).double() + 0.1 for _ in range(3))


def means() -> tuple[torch.Tensor, torch.Tensor]:
    """Of the next state, under both velocities; the coefficient of the state cancels."""
    return tuple(0.9 * X + GAIN.view(-1, 1, 1, 1) * v for v in (V, W))  # type: ignore[return-value]


def test_exact_is_the_kl_of_the_gaussians_per_element():
    ours, theirs = (Normal(mean, STD.view(-1, 1, 1, 1)) for mean in means())
    expected = kl_of(ours, theirs).flatten(1).mean(1)
    torch.testing.assert_close(kl_divergence("exact", V, W, GAIN, STD, DT), expected)
    torch.testing.assert_close(kl_divergence("flow_grpo", V, W, GAIN, STD, DT), expected * DT)


def test_wasserstein_is_the_distance_of_the_means_whatever_the_noise():
    """For Gaussians of one variance the squared 2-Wasserstein distance is that of the means."""
    ours, theirs = means()
    expected = (ours - theirs).square().flatten(1).mean(1)
    found = kl_divergence("wasserstein", V, W, GAIN, STD, DT)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, kl_divergence("wasserstein", V, W, GAIN, 7 * STD, 3 * DT))
    torch.testing.assert_close(kl_divergence("velocity", V, W, GAIN, STD, DT), (V - W).square().flatten(1).mean(1))


def test_the_last_step_weight_is_that_of_all_later_steps():
    assert KL(1.0, step_weights=(1, 0.5, 0)).schedule(5).tolist() == [1, 0.5, 0, 0, 0]
    assert KL(1.0, step_weights=(2, 3, 4)).schedule(2).tolist() == [2, 3]
    assert KL(1.0).schedule(3).tolist() == [1, 1, 1]
    assert KL(1.0).schedule(3).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"weight": 0}, "kl.weight=0 must be positive"),
        ({"weight": 1, "step_weights": ()}, r"kl.step_weights=\[\] must be one number"),
        ({"weight": 1, "step_weights": (1, -1)}, r"kl.step_weights=\[1, -1\] must be .* at least 0"),
        ({"weight": 1, "renew_every": 0}, "kl.renew_every=0 must be at least 1 round"),
        ({"weight": 1, "renew_above": 0.0}, "kl.renew_above=0.0 must be positive"),
    ],
)
def test_a_wrong_setting_is_one_line(settings: dict, line: str):
    with pytest.raises(GuardlitError, match=f"^{line}"):
        KL(**settings)

"""Validation images: fixed noise, the ODE, and the adapter merged where that is allowed."""

from __future__ import annotations

import pytest
import torch
from small_policy import SmallPolicy

from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.rounds.evaluate import draw_fixed
from guardlit.rounds.settings import Sampling

SAMPLING = Sampling(num_inference_steps=4, guidance_scale=1.0)
PROMPTS = ["a cat", "two dogs"]


def test_an_image_depends_on_its_prompt_and_index_alone():
    policy = SmallPolicy()
    images = draw_fixed(policy, SAMPLING, PROMPTS, [3, 4])
    assert (images.shape, images.dtype) == ((2, 3, 2, 2), torch.uint8)
    assert torch.equal(draw_fixed(policy, SAMPLING, PROMPTS[::-1], [4, 3]), images.flip(0))
    assert not torch.equal(draw_fixed(policy, SAMPLING, PROMPTS, [5, 4])[0], images[0])
    together = draw_fixed(policy, SAMPLING, PROMPTS, [3, 3])  # one index, as `guardlit sample` gives every prompt
    assert torch.equal(together[:1], images[:1])
    assert torch.equal(together[1:], draw_fixed(policy, SAMPLING, PROMPTS[1:], [3]))
    assert not torch.equal(together[0], together[1])
    with torch.no_grad():
        policy.scale.add_(0.5)
    assert not torch.equal(draw_fixed(policy, SAMPLING, PROMPTS, [3, 4]), images)
    assert {use for use in policy.calls if use} == set()  # the trained weights, unmerged


@pytest.mark.parametrize(("merge", "use"), [("auto", ("merged",)), (True, ("merged",)), (False, ())])
def test_an_adapter_is_merged_as_configured(merge: object, use: tuple[str, ...]):
    policy = SmallPolicy(can_merge=True)
    draw_fixed(policy, SAMPLING, PROMPTS, [0, 1], merge)
    assert set(policy.calls) == {use}
    with pytest.raises(GuardlitError, match="needs an adapter"):
        draw_fixed(SmallPolicy(), SAMPLING, PROMPTS, [0, 1], merge=True)


def test_a_broken_velocity_names_the_prompt():
    with pytest.raises(NonFiniteError, match=r"at denoising step 0.*prompt 'two dogs': the weights are broken"):
        draw_fixed(SmallPolicy(broken="two dogs"), SAMPLING, PROMPTS, [0, 1])

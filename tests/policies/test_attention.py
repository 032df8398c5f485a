"""`attention_backend`: diffusers' names, for families that support them and for one that does not."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from families import FAMILIES
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from guardlit.errors import GuardlitError
from guardlit.policies.network import compiling


def velocity(policy, grad: bool = False) -> torch.Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.set_grad_enabled(grad):
        return policy.velocity(x, torch.tensor([0.9, 0.4]), policy.conditioning(["a cat"] * 2), 1.0)


def test_torchs_kernels_are_used_for_layers_without_backends(sd3_folder: Path):
    real, seen = torch.nn.functional.scaled_dot_product_attention, []

    def see(*args, **kwargs):
        seen.append(_cur_sdpa_kernel_backends())
        return real(*args, **kwargs)

    chosen = FAMILIES["sd3"].load(sd3_folder, attention_backend="_native_math", gradient_checkpointing=True)
    plain = FAMILIES["sd3"].load(sd3_folder)
    chosen.load_state_dict(plain.state_dict())
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", see):
        found = velocity(chosen, grad=True)
        forward = len(seen)
        found.sum().backward()
    assert forward == 3  # two joint attentions, and one over the image only
    assert len(seen) == 2 * forward  # recomputed under the same kernel
    assert all(kernels == [SDPBackend.MATH] for kernels in seen)
    torch.testing.assert_close(found.detach(), velocity(plain), rtol=1e-5, atol=1e-5)


def test_diffusers_sets_the_backend_of_layers_that_support_it(tiny):
    policy = FAMILIES["flux"].load(tiny("flux"), attention_backend="_native_math")
    backends = {m.processor._attention_backend.value for m in policy.transformer.modules() if hasattr(m, "processor")}
    assert backends == {"_native_math"}
    plain = FAMILIES["flux"].load(tiny("flux"))
    policy.load_state_dict(plain.state_dict())
    torch.testing.assert_close(velocity(policy), velocity(plain), rtol=1e-5, atol=1e-5)


def test_a_selected_kernel_works_in_compiled_blocks(sd3_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = FAMILIES["sd3"].load(sd3_folder, attention_backend="_native_math")
    compiled = FAMILIES["sd3"].load(sd3_folder, attention_backend="_native_math", compile="blocks")
    compiled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(velocity(compiled), velocity(plain), rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize(
    ("name", "backend", "complaint"),
    [
        ("sd3", "_native_flsh", "is no attention backend; did you mean _native_flash"),
        ("sd3", "sage", "SD3Transformer2DModel supports torch's own kernels only; take one of native, _native_cudnn"),
        ("flux", "flash", "attention_backend=flash cannot be used here: .*flash-attn"),
    ],
)
def test_an_unusable_backend_is_one_line(name: str, backend: str, complaint: str, tiny):
    with pytest.raises(GuardlitError, match=complaint) as told:
        FAMILIES[name].load(tiny(name), attention_backend=backend)
    assert "\n" not in str(told.value)


def test_a_kernel_without_support_on_the_device_is_one_line(sd3_folder: Path):
    policy = FAMILIES["sd3"].load(sd3_folder, attention_backend="_native_cudnn")
    with pytest.raises(GuardlitError, match=r"attention_backend=_native_cudnn: torch has no such kernel for .* on cpu"):
        velocity(policy)

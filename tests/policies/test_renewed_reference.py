"""A reference that is renewed: of adapters and of full weights, next to the base and the old policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS, SIDE
from small_policy import SmallPolicy
from torch import Tensor
from velocities import disturb, velocity

from guardlit.errors import GuardlitError
from guardlit.policies import DiffusersPolicy, LoRA

KINDS = {
    "lora": {},
    "full": {"lora": None, "reference": True},
    "bf16": {"weights_dtype": "bf16"},
    "started": {"lora": "start"},
}


def loaded(folder: Path, renews: bool = True, **options: object) -> DiffusersPolicy:
    family = FAMILIES["sd3"]
    cache = str(folder.with_name("renewed_embeddings"))
    settings = {"lora": LoRA(4, 8), "cache": cache, "max_sequence_length": family.length, **options}
    policy = family.policy(str(folder), SIDE, **settings)
    if renews:
        policy.allow_renewal()
    policy.load()
    policy.encode(PROMPTS)
    return policy


@torch.no_grad()
def under(policy: DiffusersPolicy) -> dict[str, Tensor]:
    """The velocity under each weight set."""
    found = {}
    for name in ("policy", "old", "reference", "base"):
        with policy.using(name):
            found[name] = velocity(policy)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_base_until_it_is_renewed(kind: str, sd3_folder: Path, tmp_path: Path):
    options = dict(KINDS[kind])
    if kind == "started":
        first = loaded(sd3_folder, renews=False)
        disturb(first)
        first.export(tmp_path / "start")
        options = {"lora": LoRA(start=str(tmp_path / "start"))}
    policy = loaded(sd3_folder, **options)
    before = under(policy)
    assert torch.equal(before["reference"], before["base"])
    assert policy.reference_state() == {}
    trained = [n for n, p in policy.named_parameters() if p.requires_grad]
    for _ in range(2):  # a second renewal replaces the first
        disturb(policy)
        now = under(policy)["policy"]
        policy.renew_reference()
        renewed = policy.reference_state()
        disturb(policy)
        after = under(policy)
        assert torch.equal(after["reference"], now)
        assert torch.equal(after["base"], before["base"])
        assert torch.equal(after["old"], before["old"])
        assert not torch.equal(after["policy"], now)
    assert [n for n, p in policy.named_parameters() if p.requires_grad] == trained
    with policy.using("reference"):
        assert not velocity(policy).requires_grad

    policy.load_reference_state({})  # a checkpoint of before the renewal
    assert torch.equal(under(policy)["reference"], before["base"])
    policy.load_reference_state(renewed)
    assert torch.equal(under(policy)["reference"], after["reference"])
    fresh = loaded(sd3_folder, **options)
    fresh.load_reference_state(renewed)
    assert torch.equal(under(fresh)["reference"], after["reference"])
    assert torch.equal(under(fresh)["base"], before["base"])


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_room_for_it_changes_nothing_else(kind: str, sd3_folder: Path):
    """Weights, random numbers and the exported adapter are those of a policy without."""
    found = []
    for renews in (False, True):
        torch.manual_seed(3)
        policy = loaded(sd3_folder, renews, **KINDS[kind])
        state = {name: p for name, p in policy.named_parameters() if ".reference." not in name}
        found.append((state, torch.rand(3)))
    (one, before), (two, after) = found
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert torch.equal(before, after)


@pytest.mark.parametrize("kind", ["lora", "full", "bf16"])
def test_the_footprint_counts_it(kind: str, sd3_folder: Path):
    plain, more = (loaded(sd3_folder, renews, **KINDS[kind]).footprint() for renews in (False, True))
    assert more.copies - plain.copies == plain.trained  # one more set of what trains
    assert (more.trained, more.frozen, more.buffers) == (plain.trained, plain.frozen, plain.buffers)
    assert more.cast == plain.cast * 3 // 2
    policy = FAMILIES["sd3"].policy(str(sd3_folder), SIDE, **{"lora": LoRA(4, 8), "max_sequence_length": 16})
    policy.allow_renewal()
    if kind == "lora":
        skeleton = policy.skeleton().footprint()
        assert (skeleton.trained, skeleton.copies, skeleton.frozen) == (more.trained, more.copies, more.frozen)


def test_what_cannot_renew_says_so(sd3_folder: Path):
    with pytest.raises(GuardlitError, match=r"^SmallPolicy cannot renew its reference: leave model.kl.renew_every"):
        SmallPolicy().allow_renewal()
    with pytest.raises(GuardlitError, match=r"^a policy whose weights are loaded cannot get"):
        loaded(sd3_folder, renews=False).allow_renewal()

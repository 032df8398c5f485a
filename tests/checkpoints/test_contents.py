"""A checkpoint holds what trains, by name, and is refused by another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import guardlit
from torch import nn

from guardlit.checkpoints.contents import check_fingerprint, complete, fingerprint, name_optimizer_states
from guardlit.errors import GuardlitError
from guardlit.rounds.settings import Rollout, Sampling
from guardlit.sde import FlowSDE

RUN = fingerprint({"policy": "P"}, FlowSDE(), Rollout(), Sampling(), {"data.seed": "42", "data.val": "a"})


@pytest.fixture
def network() -> nn.Sequential:
    """A frozen layer and one that trains."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    return layers


def trained(network: nn.Module) -> torch.optim.Optimizer:
    """An optimizer with a state."""
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad])
    for p in network.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    optimizer.step()
    return optimizer


def test_a_checkpoint_holds_what_trains_and_guardlit_s_part(network: nn.Sequential):
    optimizer = trained(network)
    checkpoint = {"state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    complete(checkpoint, dict(network.named_parameters()), [optimizer], {"fingerprint": RUN}, finished_rounds=None)
    assert list(checkpoint["state_dict"]) == ["1.weight", "1.bias"]
    (state,) = checkpoint["optimizer_states"]
    assert list(state["state"]) == state["param_groups"][0]["params"] == ["1.weight", "1.bias"]
    assert check_fingerprint(checkpoint, RUN) == {"fingerprint": RUN}


def test_states_numbered_over_all_parameters_get_the_same_names(network: nn.Sequential):
    """As FSDP's state dict numbers them: the frozen layer has 0 and 1."""
    optimizer = trained(network)
    state = optimizer.state_dict()
    state["state"] = {i + 2: value for i, value in state["state"].items()}
    state["param_groups"][0]["params"] = [2, 3]
    name_optimizer_states({"optimizer_states": [state]}, dict(network.named_parameters()), [optimizer])
    assert list(state["state"]) == state["param_groups"][0]["params"] == ["1.weight", "1.bias"]


def test_a_fingerprint_holds_what_it_is_given_under_the_keys_of_earlier_checkpoints():
    assert list(RUN) == ["policy", "sde", "rollout", "data.seed", "data.val", "evaluation"]
    assert (RUN["policy"], RUN["data.seed"], RUN["data.val"]) == ("P", "42", "a")
    assert RUN["sde"].startswith("FlowSDE{")
    assert RUN["rollout"].startswith("Rollout(")
    assert RUN["evaluation"].startswith("Sampling(")


def test_another_run_is_refused_and_another_validation_warned_of():
    checkpoint = {"guardlit": {"fingerprint": RUN}}
    with pytest.raises(GuardlitError, match=r"^the checkpoint was saved with data.seed = 42; this run has 43$"):
        check_fingerprint(checkpoint, RUN | {"data.seed": "43"})
    with pytest.warns(UserWarning, match=r"data.val = a; this run has b: validation scores before and after"):
        check_fingerprint(checkpoint, RUN | {"data.val": "b"})
    with pytest.raises(GuardlitError, match=r"not written by guardlit"):
        check_fingerprint({}, RUN)


def test_a_run_s_fingerprint_keeps_its_keys(run):
    """A checkpoint of another version whose keys differ would be refused."""
    arithmetic = ("prompts_per_round", "images_per_prompt", "updates_per_round", "inner_epochs", "seed", "train", "val")
    policy = ("policy", "transformer config", "lora", "resolution")
    found = torch.load(run[1][-1], weights_only=True)["guardlit"]["fingerprint"]
    assert list(found) == [*policy, "sde", "rollout", *(f"data.{name}" for name in arithmetic), "evaluation"]


def test_other_prompts_are_refused_and_other_validation_prompts_warned_of(run, tmp_path: Path, capsys):
    path, checkpoints = run
    (tmp_path / "other.txt").write_text((path.parent / "prompts.txt").read_text().replace("red", "blue"))
    again = ("fit", "--config", path, "--trainer.default_root_dir", tmp_path / "runs", "--ckpt_path", checkpoints[0])
    assert guardlit(*again, "--data.train", tmp_path / "other.txt") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "guardlit fit: error: the checkpoint was saved with data.train = 5 prompts of SHA-256 " in line
    assert "; this run has 5 prompts of SHA-256 " in line
    assert guardlit(*again, "--data.train", tmp_path / "missing.txt") == 2
    assert f"no prompt file missing.txt in {tmp_path}" in capsys.readouterr().err.splitlines()[-1]
    with pytest.warns(UserWarning, match=r"data\.val = 2 prompts .*before and after it cannot be compared"):
        assert guardlit(*again, "--data.val_limit", 3, "--trainer.max_steps", 8) == 0

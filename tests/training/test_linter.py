"""Each rule speaks up on a configuration made for it, and is silent on everything that is shipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from runs import config, guardlit

from guardlit import sde
from guardlit.commands.plan import planned
from guardlit.errors import GuardlitError
from guardlit.objective import FlashGRPO, FlowDPPO, GRPOGuard, VelocityNorm
from guardlit.planning.run import PlannedRun
from guardlit.rounds.plan import RoundPlan
from guardlit.training.linter import LintFacts, lint, report

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("gold_*.yaml")))


def _findings(run: PlannedRun) -> dict[str, str]:
    run.module.policy = run.module.policy.skeleton()
    return {f.rule: f.text for f in lint(LintFacts.of(run.module, run.plan, run.precision, on_gpu=False))}


OBJECTIVE = "guardlit.objective."


def _objective(name: str, clip_range: object) -> dict:
    return {"class_path": OBJECTIVE + name, "init_args": {"clip_range": clip_range}}


TEN = {"model__rollout": {"num_inference_steps": 10, "guidance_scale": 1.0}}
CPS = {"class_path": "guardlit.sde.CPS", "init_args": {"noise_level": 0.8}}
DANCE = {"class_path": "guardlit.sde.DanceSDE", "init_args": {"noise_level": 1.0}}
GAIN = {"class_path": OBJECTIVE + "Objective", "init_args": {"clip_range": 1e-4, "weight": "inverse_gain"}}
FULL = {"model__policy__init_args__lora": None, "model__kl": {"weight": 0.01}}
KEPT = {**FULL, "model__policy__init_args__reference": True}
ONE = {"data__updates_per_round": 1, "data__inner_epochs": 1}
BF16 = {"trainer__precision": "bf16-mixed"}
OFF = {"model__objective": _objective("GRPOGuard", None)}
AGAIN = {"model__old_velocity": "recomputed"}

CASES = [
    ("plain", {}, None, ""),
    ("one update", ONE, "clip never acts", "updates_per_round=1"),
    ("one update, calibrated", {**ONE, "model__objective": _objective("GRPOGuard", "auto")}, "clip never acts", "null"),
    ("one update, no clip", {**ONE, **OFF}, None, ""),
    ("a baseline's clip", {"model__objective": _objective("GRPOGuard", 0.2)}, "clip never acts", "0.13 to 0.26"),
    ("a baseline's clip for the baseline", {"model__objective": _objective("FlowGRPO", 0.2)}, None, ""),
    ("no clip, four updates", OFF, "no clip", "3 of 4 updates"),
    ("no clip, two updates", {**OFF, "data__updates_per_round": 2}, None, ""),
    ("bf16", {**BF16, "model__objective": _objective("GRPOGuard", 1e-5)}, "rounding decides", "bf16-mixed"),
    ("bf16, wide clip", {**BF16, "model__objective": _objective("GRPOGuard", 1e-2)}, None, ""),
    ("bf16, recomputed", {**BF16, **AGAIN, "model__objective": _objective("GRPOGuard", 1e-5)}, None, ""),
    ("fp32", {"model__objective": _objective("GRPOGuard", 1e-5)}, None, ""),
    ("Guard under CPS", {**TEN, "model__sde": CPS}, "weight not flat", "under CPS"),
    ("Guard under Dance", {**TEN, "model__sde": DANCE}, "weight not flat", "inverse_gain"),
    ("the exact weight under CPS", {**TEN, "model__sde": CPS, "model__objective": GAIN}, None, ""),
    ("the baseline under CPS", {**TEN, "model__sde": CPS, "model__objective": _objective("FlowGRPO", 1e-2)}, None, ""),
    ("a KL limit beyond reach", {"model__objective": _objective("FlowDPPO", 1.0)}, "clip never acts", "KL limit of 1"),
    ("Flow-DPPO's limit", {"model__objective": _objective("FlowDPPO", 1e-5)}, None, ""),
    ("Flash-GRPO without its window", {"model__objective": _objective("FlashGRPO", 1e-3)}, "no branching", "length: 1"),
    (
        "few transitions a step",
        {"model__objective": _objective("GRPOGuard", "auto_per_step")},
        "few to calibrate",
        "4 tra",
    ),
    ("KL without a base", FULL, "no reference", "policy.reference: true"),
    ("KL with a base", KEPT, None, ""),
    ("KL with LoRA", {"model__kl": {"weight": 0.01}}, None, ""),
]


@pytest.mark.parametrize(("changes", "rule", "words"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_rule_speaks_up_where_it_should(
    changes: dict, rule: str | None, words: str, sd3_folder: Path, tmp_path: Path
):
    found = _findings(planned(["--config", str(config(tmp_path, sd3_folder, **changes))]))
    assert set(found) == ({rule} if rule else set())
    if rule:
        assert words in found[rule]
        assert "\n" not in found[rule]


FACTS = LintFacts(
    objective=GRPOGuard(1e-4),
    plan=RoundPlan(2, 4, 2, 1, 4, train_steps=4),
    trained=range(4),
    sampler="FlowSDE",
    precision="32-true",
    old_velocity="stored",
    penalized=False,
    has_reference=True,
    elements=64,
    coefficients=sde.FlowSDE().coefficients(sde.flow_match_sigmas(5)),
)
FOUR = RoundPlan(2, 4, 4, 1, 4, train_steps=4)
UNDER_CPS = sde.CPS().coefficients(sde.flow_match_sigmas(10))
ON_GPU = {"host_copy": 10**9, "penalized": True}
BY_FACTS = [
    ({}, []),
    ({"plan": RoundPlan(2, 4, 1, 1, 4, train_steps=4)}, ["clip never acts"]),
    ({"objective": GRPOGuard(0.2), "elements": 1024}, ["clip never acts"]),
    ({"objective": GRPOGuard(0.2), "elements": None, "coefficients": None}, []),  # before the policy is loaded
    ({"objective": GRPOGuard(None), "plan": FOUR}, ["no clip"]),
    ({"penalized": True, "has_reference": False}, ["no reference"]),
    ({"measured": True, "has_reference": False}, ["no reference"]),
    ({"measured": True}, []),
    ({"objective": FlowDPPO(1.0), "elements": 64}, ["clip never acts"]),
    ({"objective": FlowDPPO(1e-4), "precision": "bf16-mixed"}, []),
    ({"objective": FlowDPPO(1e-5), "precision": "bf16-mixed"}, ["rounding decides"]),
    ({"objective": VelocityNorm(1e-5), "precision": "bf16-mixed"}, ["rounding decides"]),
    ({"objective": FlashGRPO()}, ["no branching"]),
    ({"objective": FlashGRPO(), "branches_once": True}, []),
    ({"objective": GRPOGuard("auto_per_step")}, ["few to calibrate"]),
    ({"objective": GRPOGuard("auto_per_step"), "plan": RoundPlan(10, 8, 4, 1, 20, train_steps=4)}, []),
    ({"precision": "bf16-mixed", "objective": GRPOGuard(1e-5)}, ["rounding decides"]),
    ({"precision": "bf16-mixed", "objective": GRPOGuard(1e-5), "old_velocity": "auto"}, []),
    ({"sampler": "CPS", "coefficients": UNDER_CPS, "trained": range(9)}, ["weight not flat"]),
    (ON_GPU, ["copies cross the bus"]),
    ({**ON_GPU, "old_velocity": "recomputed"}, ["copies cross the bus"]),
    ({"host_copy": 10**9}, []),
]


@pytest.mark.parametrize(("changes", "rules"), BY_FACTS, ids=range(len(BY_FACTS)))
def test_the_rules_of_facts(changes: dict, rules: list[str]):
    found = lint(replace(FACTS, **changes))
    assert [f.rule for f in found] == rules
    assert [f.fatal for f in found] == [f.rule in ("clip never acts", "no reference") for f in found]


def test_copies_are_counted_once_for_each_cause():
    texts = [lint(replace(FACTS, **ON_GPU, old_velocity=old))[0].text for old in ("stored", "recomputed")]
    assert ["1.0 GB" in texts[0], "2.0 GB" in texts[1]] == [True, True]


def test_a_fatal_finding_is_raised_and_others_are_warned_about():
    with pytest.warns(UserWarning, match="unbounded"):
        report(lint(replace(FACTS, objective=GRPOGuard(None), plan=FOUR)))
    with pytest.raises(GuardlitError, match=r"model\.kl asks for the distance"):
        report(lint(replace(FACTS, penalized=True, has_reference=False)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_it_is_silent_on_what_is_shipped(path: Path, tiny):
    prompts = () if "guardlit://" in path.read_text() else ("--data.train=prompts.txt",)  # not ours to ship
    run = planned(["--config", str(path), *prompts])
    policy = run.module.policy
    if policy.pipeline_class == "StableDiffusion3Pipeline" and "/" in policy.model and "://" not in policy.model:
        policy.model = str(tiny("sd3"))  # the same sampler and latents at another folder
    elif policy.pipeline_class == "FluxPipeline":
        policy.model = str(tiny("flux"))
    assert _findings(run) == {}


def test_a_senseless_run_ends_before_it_draws(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = config(tmp_path, sd3_folder, **FULL)
    assert guardlit("fit", "--config", path) == 2
    assert "model.kl asks for the distance to the base model" in capsys.readouterr().err
    assert guardlit("plan", "--config", path) == 2
    assert "model.kl asks for the distance to the base model" in capsys.readouterr().err


def test_a_run_is_warned(sd3_folder: Path, tmp_path: Path):
    path = config(tmp_path, sd3_folder, **TEN, model__sde=CPS, trainer__max_epochs=1)
    with pytest.warns(UserWarning, match="under CPS the weight 1 / dt leaves gradients"):
        assert guardlit("fit", "--config", path) == 0

"""Objectives compared on one rollout."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from runs import config, guardlit, newest

from guardlit.ablation.analysis import Analysis, RolloutAnalysis, cosine_matrix, with_clips
from guardlit.ablation.options import clips, methods
from guardlit.objective import OBJECTIVES, FlowGRPO, GRPOGuard, TempFlowGRPO
from guardlit.training.module import GRPOModule

NAMES = [objective.__name__ for objective in OBJECTIVES]
UPDATES = 3  # of the round's 4


@pytest.fixture(scope="module")
def captured(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """An analysis by the command line, the module it left behind, and the folder of its files."""
    folder = tmp_path_factory.mktemp("analysis")
    path = config(folder, sd3_folder)
    seen: list[tuple[RolloutAnalysis, GRPOModule]] = []
    original = RolloutAnalysis.on_train_batch_end

    def spy(self, trainer, module, *rest):
        original(self, trainer, module, *rest)
        seen.append((self, module))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RolloutAnalysis, "on_train_batch_end", spy)
        ranges = "FlowGRPO=none,TempFlowGRPO=none,MeanRevised=1e-5,FlowDPPO=auto_per_step"
        assert guardlit("ablate", "--analyze", "--config", path, "--out", folder / "out", "--clip", ranges) == 0
    callback, module = seen[-1]
    assert len(seen) == 2 * 4 * UPDATES / 2  # 8 micro-batches of 4 transitions an update, two updates an inner epoch
    return callback.result, module, folder


def one_by_one(module: GRPOModule, objective) -> tuple[torch.Tensor, torch.Tensor, list]:
    """Loss gradients (S, P), mean velocity gradients (S,) and outputs [step][row], one transition at a time."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    rows, steps = module.experience.latents.shape[:2]
    gradients, sizes, outputs = [], [], []
    for step in range(steps):
        total, size, outs = torch.zeros(sum(p.numel() for p in parameters)), 0.0, []
        for row in range(rows):
            b = module.experience.take([row], [step])
            velocity = module.policy.velocity(b.latents, b.sigma, b.conditioning, 1.0)
            velocity.retain_grad()
            facts = (b.noise, b.advantage, b.gain, b.std, b.dt, b.sample_weight, b.step)
            out = objective(velocity, b.old_velocity, *facts)
            module.zero_grad()
            out.loss.backward()
            total += torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
            size += float(velocity.grad.norm())
            outs.append(out)
        gradients.append(total / rows)
        sizes.append(size / rows)
        outputs.append(outs)
    return torch.stack(gradients), torch.tensor(sizes), outputs


@pytest.mark.parametrize("name", NAMES)
def test_the_analysis_equals_one_transition_at_a_time(captured: tuple[Analysis, GRPOModule, Path], name: str):
    result, module, _ = captured
    row = NAMES.index(name)
    objective = result.objectives[name]
    gradients, sizes, outputs = one_by_one(module, objective)
    measured = {k: v[row] for k, v in result.measures.items()}
    torch.testing.assert_close(measured["parameter_gradient"].float(), gradients.norm(dim=1), rtol=1e-3, atol=0)
    torch.testing.assert_close(measured["velocity_gradient"].float(), sizes, rtol=1e-3, atol=0)
    torch.testing.assert_close(result.gradient_norms[row].float(), gradients.mean(0).norm(), rtol=1e-3, atol=0)
    log_ratio = torch.stack([torch.cat([o.log_ratio for o in outs]) for outs in outputs]).double()
    scale = float(log_ratio.abs().max())
    torch.testing.assert_close(measured["log_ratio_mean"], log_ratio.mean(1), rtol=0, atol=1e-4 * scale)
    torch.testing.assert_close(measured["log_ratio_std"], log_ratio.std(1, correction=0), rtol=0, atol=1e-4 * scale)
    clipped = torch.stack([torch.cat([o.clipped for o in outs]) for outs in outputs])
    assert torch.equal(measured["clipped_above"], (clipped & (log_ratio > 0)).double().mean(1))
    assert torch.equal(measured["clipped_below"], (clipped & (log_ratio < 0)).double().mean(1))
    assert scale > 1e-6  # off-policy, so that all of this is about something


def test_cosines(captured: tuple[Analysis, GRPOModule, Path]):
    result, module, _ = captured
    for matrix in (result.cosines, *result.step_cosines):
        torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=0, equal_nan=True)
        alive = matrix.diag()[~matrix.diag().isnan()]  # where every transition of a step is cut there is no direction
        torch.testing.assert_close(alive, torch.ones_like(alive), rtol=0, atol=1e-5)
    assert not result.cosines.isnan().any()
    flow, guard = NAMES.index("FlowGRPO"), NAMES.index("GRPOGuard")
    a, b = (one_by_one(module, result.objectives[n])[0].mean(0) for n in ("FlowGRPO", "GRPOGuard"))
    expected = torch.nn.functional.cosine_similarity(a, b, dim=0)
    torch.testing.assert_close(result.cosines[flow, guard].float(), expected, rtol=1e-3, atol=1e-4)


def test_a_step_weight_alone_turns_no_gradient_at_a_step(captured: tuple[Analysis, GRPOModule, Path]):
    result, _, _ = captured
    flow, temp = NAMES.index("FlowGRPO"), NAMES.index("TempFlowGRPO")  # neither clips here
    steps = result.step_cosines[:, flow, temp]
    torch.testing.assert_close(steps, torch.ones_like(steps), rtol=0, atol=1e-5)
    assert result.cosines[flow, temp] < 1 - 1e-4


def test_a_clip_that_is_too_narrow_cuts_and_the_files_say_so(captured: tuple[Analysis, GRPOModule, Path]):
    result, _, folder = captured
    row = NAMES.index("MeanRevised")
    assert float((result.measures["clipped_above"] + result.measures["clipped_below"])[row].mean()) > 0.5
    rows = list(csv.DictReader((folder / "out/analysis.csv").open()))
    assert [(r["objective"], r["step"]) for r in rows] == [(n, str(s)) for n in NAMES for s in range(4)]
    assert [float(r["clipped_above"]) for r in rows[4 * row : 4 * row + 4]] == result.measures["clipped_above"][
        row
    ].tolist()
    document = json.loads((folder / "out/analysis.json").read_text())
    assert document["objectives"]["FlowGRPO"]["clip_range"] is None
    assert document["objectives"]["RatioNorm"]["clip_range"] == [4e-6, 4e-6]
    assert document["objectives"]["GRPOGuard"]["clip_range"] == [1e-4, 1e-4]  # the configuration's own
    assert document["provenance"]["updates"] == UPDATES
    assert document["cosines"] == result.cosines.tolist()
    assert (folder / "out/analysis.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "runs").exists()  # nothing else is written


def test_an_analysis_can_start_from_the_last_checkpoint_of_a_finished_run(sd3_folder: Path, tmp_path: Path, capsys):
    path = config(tmp_path, sd3_folder, trainer__max_epochs=1)
    assert guardlit("fit", "--config", path) == 0
    options = ("--ckpt_path", newest(tmp_path / "runs"), "--objectives", "GRPOGuard,FlowGRPO", "--updates", 1)
    assert guardlit("ablate", "--analyze", "--config", path, "--out", tmp_path / "out", *options) == 0
    document = json.loads((tmp_path / "out/analysis.json").read_text())
    assert (document["provenance"]["round"], document["provenance"]["updates"]) == (2, 1)
    assert list(document["objectives"]) == ["GRPOGuard", "FlowGRPO"]
    assert "cosine between the parameter gradients" in capsys.readouterr().out


def test_too_many_updates_are_refused(sd3_folder: Path, tmp_path: Path, capsys):
    path = config(tmp_path, sd3_folder)
    assert guardlit("ablate", "--analyze", "--config", path, "--updates", 5) == 2
    assert "error: --updates 5: a round has 4" in capsys.readouterr().err


def test_cosine_with_a_zero_gradient_is_nan():
    cosines = cosine_matrix(torch.tensor([[3.0, 4.0], [0.0, 0.0], [4.0, -3.0]]))
    assert cosines[0, 1].isnan()
    assert cosines[0, 2] == pytest.approx(0, abs=1e-7)
    assert cosines[0, 0] == pytest.approx(1)


def test_an_analysis_calibrates_what_is_left_to_calibration(captured: tuple[Analysis, GRPOModule, Path]):
    result, _, folder = captured
    for name, even in (("VelocityNorm", False), ("FlowDPPO", True)):
        row = NAMES.index(name)
        outside = (result.measures["clipped_above"] + result.measures["clipped_below"])[row]
        counts = result.transitions[0]  # a few an update: the share is a multiple of one over them
        assert float(outside.mean()) == pytest.approx(0.2, abs=1 / counts + 1e-9)
        if even:
            assert outside.tolist() == pytest.approx([0.2] * 4, abs=1 / counts + 1e-9)
        document = json.loads((folder / "out/analysis.json").read_text())["objectives"][name]
        assert (document["step_limits"] is not None) == even
        assert (document["clip_range"] is None) == even


def test_clip_ranges_of_all_objectives():
    found = clips("FlowGRPO=1e-3,all=auto,GRPOGuard=auto_per_step")
    everything = dict.fromkeys([*NAMES, *methods()], "auto")
    assert found == {**everything, "FlowGRPO": 1e-3, "GRPOGuard": "auto_per_step"}


def test_a_configurations_own_objective_keeps_its_settings():
    configured = GRPOGuard(clip_range=(1e-3, 2e-3), clip_unit="sum")
    chosen = with_clips(configured, {"FlowGRPO": 1e-3})
    assert list(chosen) == NAMES
    assert chosen["GRPOGuard"] is configured
    assert chosen["FlowGRPO"].clip_range == (1e-3, 1e-3)
    assert chosen["TempFlowGRPO"].clip_range == TempFlowGRPO().clip_range
    assert type(with_clips(configured, {}, ["FlowGRPO"])["FlowGRPO"]) is FlowGRPO


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objectives", "FlowGPRO"], "unknown objective 'FlowGPRO': did you mean FlowGRPO?"),
        (
            ["--objectives", "REINFORCE"],
            f"unknown objective 'REINFORCE': it is one of {', '.join([*NAMES, *methods()])}",
        ),
        (["--seeds", "1,two"], "--seeds 1,two: 'two' is not a whole number from 0 to 4294967295"),
        (["--seeds", "-1"], "--seeds -1: '-1' is not a whole number from 0 to 4294967295"),
        (
            ["--clip", "FlowGRPO"],
            "--clip FlowGRPO: expected NAME=RANGE, such as FlowGRPO=1e-3, FlowGRPO=none, FlowGRPO=auto or "
            "FlowGRPO=auto_per_step",
        ),
        (
            ["--analyze", "--objectives", "GRPOGuard,methods/pcpo"],
            "--analyze compares objectives on one rollout, and methods/pcpo changes more: train with it",
        ),
        (["--clip", "FlowGRPO=2"], "--clip FlowGRPO=2.0: a clip range lies between 0 and 1"),
        (["--lr", "FlowGRPO"], "--lr FlowGRPO: expected NAME=RATE, such as FlowGRPO=1e-3"),
        (["--lr", "FlowGPRO=1e-3"], "unknown objective 'FlowGPRO': did you mean FlowGRPO?"),
        (["--lr", "FlowGRPO=0"], "--lr FlowGRPO=0.0: a learning rate is positive and finite"),
        (
            ["--lr", "FlowGRPO=1e-3", "--analyze"],
            "--lr belongs to trainings; --analyze makes its updates with the configured optimizer",
        ),
        (["--jobs", "0"], "--jobs 0: expected a whole number of at least 1"),
        (["--jobs", "two"], "--jobs two: expected a whole number of at least 1"),
        (["--updates", "2"], "--updates belongs to --analyze; a training takes data.updates_per_round"),
        (["--model.objective", "GRPOGuard"], "--model.objective is what --objectives and --clip is for"),
        (["--trainer.default_root_dir=x"], "--trainer.default_root_dir is what --out is for"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert guardlit("ablate", *arguments) == 2
    assert capsys.readouterr() == ("", f"guardlit ablate: error: {message}\n")

"""Windows: which steps are trained and which draw noise, on paper and in whole runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import config, differing, guardlit, newest
from torch import Tensor
from watching import seen_outputs

from guardlit.data.loader import ExperienceLoader
from guardlit.errors import GuardlitError
from guardlit.objective import TempFlowGRPO
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.rollout import sample
from guardlit.rounds.round import Round
from guardlit.rounds.settings import Rollout
from guardlit.rounds.windows import RandomSubset, RandomWindow, SlidingWindow, Window
from guardlit.sde import CPS, DanceSDE, FlowSDE, flow_match_sigmas
from guardlit.types import Prompt

WINDOWS = [
    RandomSubset(0.6),
    RandomWindow(2),
    RandomWindow(3, low=1, high=5, per="round"),
    RandomWindow(1),
    SlidingWindow(4, every=2, overlap=1),
    SlidingWindow(3, every=1, overlap=0, roll_back=False),
]


def a_round(window: Window | None, index: int = 0, rank: int = 0, world: int = 1, steps: int = 9) -> Round:
    size = steps if window is None else window.size(steps)
    plan = RoundPlan(6, 4, 2, 1, 1, size, world)
    return Round(index, [Prompt(str(i)) for i in range(6)], [], plan, 3, rank, window, steps)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 200))
def test_every_image_trains_distinct_steps_that_are_available(window: Window, index: int):
    round = a_round(window, index)
    table = round.trained_steps
    assert table.shape == (24, window.size(9))
    assert bool((table.diff(dim=1) > 0).all())  # rising, so distinct
    assert bool((table >= 0).all() and (table < 9).all())
    assert torch.equal(table, a_round(window, index, rank=1, world=2).trained_steps)  # at any world size
    noisy = round.noisy_steps(range(24), 10)
    assert bool(noisy.gather(1, table).all())
    assert int(noisy.sum()) == (240 if window.noise_elsewhere else table.numel())


def test_a_group_shares_its_window_and_a_subset_is_an_image_s_own():
    shared = a_round(RandomWindow(2)).trained_steps.view(6, 4, 2)
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    assert len({tuple(row) for row in shared[:, 0].tolist()}) > 1
    assert len({tuple(row) for row in a_round(RandomWindow(2, per="round")).trained_steps.tolist()}) == 1
    assert len({tuple(row) for row in a_round(RandomSubset(0.6)).trained_steps.tolist()}) > 4


def test_random_windows_reach_every_position_equally_often():
    starts = Counter(
        int(a_round(RandomWindow(2, low=1, high=6), index).trained_steps[4 * group, 0])
        for index in range(200)
        for group in range(6)
    )
    assert set(starts) == {1, 2, 3, 4}
    assert all(abs(count / 1200 - 1 / 4) < 0.05 for count in starts.values())


def test_the_sliding_window_is_that_of_mixgrpo():
    """Positions of 4 steps that overlap by 1 on 10 steps: 0, 3, 6; each stays for 25 rounds, then it begins again."""
    window = SlidingWindow(4, every=25, overlap=1)
    firsts = [window.steps(10, 0, round, 0, 0)[0] for round in (0, 24, 25, 49, 50, 74, 75)]
    assert firsts == [0, 0, 3, 3, 6, 6, 0]
    stays = SlidingWindow(4, every=25, overlap=1, roll_back=False)
    assert stays.steps(10, 0, 75, 0, 0) == [6, 7, 8, 9]
    assert SlidingWindow(4, every=1, overlap=0).steps(9, 0, 2, 0, 0) == [5, 6, 7, 8]  # the last one ends at the end


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (RandomWindow(3, low=7), "a window of 3 steps in [7, 9) does not lie within the 9 steps"),
        (RandomWindow(2, high=10), "a window of 2 steps in [0, 10) does not lie within the 9 steps"),
        (SlidingWindow(4, overlap=4), "needs 0 <= overlap < length <= 9"),
        (SlidingWindow(10), "a sliding window of 10 steps"),
        (RandomSubset(0.1), "fraction=0.1 of 9 steps of a RandomSubset leaves none to train"),
    ],
)
def test_windows_that_do_not_fit_are_named(window: Window, message: str):
    with pytest.raises(GuardlitError, match=r"^rollout\.window: ") as error:
        Rollout(window=window)
    assert message in str(error.value)


class Linear:
    """A policy whose velocity is a fixed map of the state; it counts the rows of its calls."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def velocity(self, x: Tensor, t: Tensor, conditioning: dict[str, Tensor], guidance_scale: float) -> Tensor:
        self.rows.append(len(x))
        return 0.7 * x + conditioning["c"].view(-1, 1, 1, 1) - t.view(-1, 1, 1, 1)


SHAPE = (2, 3, 3)
NOISE = NoiseSource(5, 0, SHAPE)
CONDITIONING = {"c": torch.tensor([0.1, 0.1, 0.2, 0.2])}


@pytest.mark.parametrize("sde", [FlowSDE(0.7), DanceSDE(0.3), CPS(0.8)], ids=lambda s: type(s).__name__)
def test_mixed_windows_equal_a_scalar_loop_in_float64(sde):
    """Each image's own steps take the sampler's coefficients and noise, the others Euler's; recorded as they come."""
    c = sde.coefficients(flow_match_sigmas(6))
    record = torch.tensor([[0, 1], [2, 3], [1, 4], [3, 4]])
    noisy = torch.zeros(4, 6, dtype=torch.bool).scatter(1, record, True)
    drawn = sample(Linear(), c, CONDITIONING, NOISE, range(4), 1.0, record, noisy)
    for row in range(4):
        x = NOISE.draw([row], -1)[0].double()
        states, velocities = [], []
        for step in range(6):
            v = 0.7 * x + CONDITIONING["c"][row].double() - c.sigmas[step]
            if step in record[row]:
                states.append(x)
                velocities.append(v)
                x = c.sample[step] * x + c.velocity[step] * v + c.std[step] * NOISE.draw([row], step)[0].double()
            else:
                x = x - c.dt[step] * v
        torch.testing.assert_close(drawn.final[row].double(), x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(drawn.latents[row].double(), torch.stack(states), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(drawn.velocity[row].double(), torch.stack(velocities), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("branch", range(5))
def test_fast_with_one_branch_is_the_flow_sde_at_that_step(branch: int):
    """Brought to the branch by the same ODE, a run with noise everywhere takes the very same step there, to the bit."""
    c = FlowSDE(0.7).coefficients(flow_match_sigmas(6))
    record = torch.tensor([[branch, branch + 1]] * 4)
    only = torch.zeros(4, 6, dtype=torch.bool)
    only[:, branch] = True
    afterwards = only.clone()
    afterwards[:, branch:] = True  # the full Flow SDE from there on
    fast, full = (
        sample(Linear(), c, CONDITIONING, NOISE, range(4), 1.0, record, noisy) for noisy in (only, afterwards)
    )
    assert torch.equal(fast.latents, full.latents)
    assert torch.equal(fast.velocity, full.velocity)
    if branch == 0:
        everywhere = sample(Linear(), c, CONDITIONING, NOISE, range(4), 1.0, record, torch.ones_like(only))
        assert torch.equal(fast.latents, everywhere.latents)
    x, v = fast.latents[:, 0].double(), fast.velocity[:, 0].double()
    step = c.sample[branch] * x + c.velocity[branch] * v + c.std[branch] * NOISE.draw(range(4), branch).double()
    torch.testing.assert_close(fast.latents[:, 1].double(), step, rtol=1e-5, atol=1e-5)
    assert not torch.equal(fast.final, full.final)  # noise after it, or none


def test_images_that_share_their_noise_are_asked_for_once_until_they_part():
    c = FlowSDE(0.7).coefficients(flow_match_sigmas(6))
    record = torch.tensor([[2], [2], [4], [4]])
    noisy = torch.zeros(4, 6, dtype=torch.bool).scatter(1, record, True)
    policy = Linear()
    grouped = sample(policy, c, CONDITIONING, NOISE, range(4), 1.0, record, noisy, origins=[0, 0, 2, 2])
    assert policy.rows == [2, 2, 2, 3, 3, 4]  # the first two part after step 2, the others after step 4
    for a, b in ((0, 1), (2, 3)):
        assert torch.equal(grouped.latents[a], grouped.latents[b])  # at the branch
        assert not torch.equal(grouped.final[a], grouped.final[b])
    alone = [
        sample(Linear(), c, {"c": CONDITIONING["c"][[i]]}, NOISE, [i], 1.0, record[[i]], noisy[[i]], [i // 2 * 2])
        for i in range(4)
    ]
    assert torch.equal(grouped.final, torch.cat([a.final for a in alone]))


# whole runs ---------------------------------------------------------------------------------------------------------


def small(tmp_path: Path, model: Path, name: str, callbacks: list[dict] | None = None, **rollout: object) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    steps = {"num_inference_steps": 5, "guidance_scale": 1.0, "timestep_fraction": 0.99, **rollout}
    sizes = {"data__micro_batch": 2, "data__rollout_batch": 4, "data__val_limit": 1}
    return config(folder, model, model__rollout=steps, trainer__callbacks=callbacks or [], **sizes)


def fit(path: Path, *options: object) -> Path:
    assert guardlit("fit", "--config", path, *options) == 0
    return newest(path.parent / "runs")


def test_a_window_that_is_everything_is_the_full_run(sd3_folder: Path, tmp_path: Path):
    short = ("--trainer.max_epochs", 1)
    plain = fit(small(tmp_path, sd3_folder, "plain", timestep_fraction=0.8), *short)
    everything = {"class_path": "RandomSubset", "init_args": {"fraction": 1.0}}
    subset = fit(small(tmp_path, sd3_folder, "subset", timestep_fraction=0.8, window=everything), *short)
    assert differing(plain, subset) == []
    # the last step draws noise in a full run and follows the ODE outside a window, unless it is trained
    plain = fit(small(tmp_path, sd3_folder, "all", timestep_fraction=1.0), *short)
    window = {"class_path": "RandomWindow", "init_args": {"length": 5}}
    assert (
        differing(plain, fit(small(tmp_path, sd3_folder, "window", timestep_fraction=1.0, window=window), *short)) == []
    )
    part = {"class_path": "RandomWindow", "init_args": {"length": 2}}
    assert differing(plain, fit(small(tmp_path, sd3_folder, "part", timestep_fraction=1.0, window=part), *short)) != []


@pytest.mark.parametrize("objective", ["FlowGRPO", "GRPOGuard", "TempFlowGRPO"])
@pytest.mark.parametrize(
    ("window", "noise"),
    [
        ({"class_path": "RandomWindow", "init_args": {"length": 1}}, "group"),
        ({"class_path": "SlidingWindow", "init_args": {"length": 2, "every": 1}}, "sample"),
        ({"class_path": "RandomSubset", "init_args": {"fraction": 0.6}}, "group"),
    ],
    ids=lambda value: value["class_path"] if isinstance(value, dict) else value,
)
def test_the_ratio_is_exactly_1_before_the_first_update(
    sd3_folder, tmp_path, monkeypatch, window: dict, noise: str, objective: str
):

    outputs = seen_outputs(monkeypatch)
    path = small(tmp_path, sd3_folder, "run", window=window, initial_noise=noise)
    fit(path, "--trainer.max_epochs", 1, "--model.objective", objective, "--model.old_velocity", "recomputed")
    first = len(outputs) // 4
    assert not any(bool(o["log_ratio"].any()) for o in outputs[:first])
    assert all(bool(o["log_ratio"].any()) for o in outputs[first:])


@pytest.mark.parametrize("high", [None, 2])
def test_a_run_binds_its_objective_to_the_trainable_steps(sd3_folder: Path, tmp_path: Path, monkeypatch, high):
    """TempFlow-GRPO's weights are 1 on average over them, though each image trains a few only."""
    bound: list[tuple[Tensor, Tensor]] = []
    original = TempFlowGRPO.bind

    def bind(self: TempFlowGRPO, gain: Tensor, std: Tensor, dt: Tensor) -> None:
        original(self, gain, std, dt)
        bound.append((std, self.step_weight(gain, std, dt)))

    monkeypatch.setattr(TempFlowGRPO, "bind", bind)
    window = {"class_path": "RandomWindow", "init_args": {"length": 1, "high": high}}
    path = small(tmp_path, sd3_folder, "run", window=window)
    fit(path, "--trainer.max_epochs", 1, "--model.objective", "TempFlowGRPO")
    ((std, weight),) = bound  # once a run
    assert len(std) == (high or 4)  # of 5 steps
    torch.testing.assert_close(weight, std / std.mean())


def test_a_resumed_run_with_windows_is_the_undisturbed_one(sd3_folder: Path, tmp_path: Path):
    window = {"class_path": "RandomWindow", "init_args": {"length": 2}}
    keep = {"save_top_k": -1, "filename": "update_{step}", "every_n_train_steps": 1, "auto_insert_metric_name": False}
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": keep}]
    path = small(tmp_path, sd3_folder, "run", callbacks, window=window, initial_noise="group")
    fit(path)
    saved = {p.stem: p for p in path.parent.rglob("update_*.ckpt")}
    for stop in ("update_5", "update_8"):  # within the second round, and after it
        runs = tmp_path / stop
        assert guardlit("fit", "--config", path, "--ckpt_path", saved[stop], "--trainer.default_root_dir", runs) == 0
        assert differing(saved["update_12"], newest(runs, "update_12.ckpt")) == []


def test_the_loader_hands_out_the_steps_of_the_window(sd3_folder: Path, tmp_path: Path, monkeypatch):
    seen: list[tuple[Round, list[int], list[int]]] = []
    original = ExperienceLoader._micro_batches

    def watch(self: ExperienceLoader):
        for batch in original(self):
            seen.append((self._runner.experience.round, batch.sample.tolist(), batch.step.tolist()))
            yield batch

    monkeypatch.setattr(ExperienceLoader, "_micro_batches", watch)
    window = {"class_path": "RandomWindow", "init_args": {"length": 2}}
    fit(small(tmp_path, sd3_folder, "run", window=window), "--trainer.max_epochs", 1)
    round = seen[0][0]
    pairs = Counter(p for _, samples, steps in seen for p in zip(samples, steps, strict=True))
    expected = {(i, step) for i in range(8) for step in round.trained_steps[i].tolist()}
    assert pairs == dict.fromkeys(expected, 2)  # two inner epochs


@pytest.mark.parametrize(
    ("sde", "fraction", "noise"), [("DanceSDE", 0.99, 0), ("DanceSDE", 1, 1), ("FlowSDE", 0.99, 1)]
)
def test_a_dance_rollout_ends_at_the_estimate_of_x_0(
    sd3_folder: Path, tmp_path: Path, monkeypatch, sde: str, fraction: float, noise: bool
):
    """As DanceGRPO's `pred_original`; Flow-GRPO's last step draws its noise."""
    ends: list[tuple[Tensor, Tensor]] = []

    def draw(*args: object, **options: object) -> object:
        trajectory = sample(*args, **{**options, "record": torch.tensor([[4]] * 4)})
        sigmas = args[1].sigmas.float()
        ends.append((trajectory.final, trajectory.latents[:, 0] - sigmas[4] * trajectory.velocity[:, 0]))
        return sample(*args, **options)

    monkeypatch.setattr("guardlit.rounds.collector.sample", draw)
    path = small(tmp_path, sd3_folder, "run", timestep_fraction=fraction)
    fit(path, "--trainer.max_epochs", 1, "--model.sde", sde)
    assert len(ends) == 2
    assert all(torch.allclose(end, estimate, atol=1e-5) != noise for end, estimate in ends)

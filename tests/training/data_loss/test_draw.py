"""Which pairs, timesteps and noise an update has: the same however it is dealt to ranks and micro-batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from guardlit.errors import GuardlitError
from guardlit.rounds.plan import RoundPlan
from guardlit.training.data_loss.draw import DataDraw, DataRows, at_steps, logit_normal
from guardlit.training.data_loss.settings import DataLoss, DataPlan

DRAW = DataDraw(seed=7, available=10, pairs=6, updates=2)


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 36), (1, 4), (1, 1), (2, 18), (2, 3), (3, 12), (3, 2), (6, 6)])
def test_an_update_has_the_same_rows_however_it_is_cut(world: int, micro_batch: int):
    plan = DataPlan(pairs=6, transitions=36 // world, updates=2, world_size=world)
    batches = 36 // world // micro_batch
    for update in range(2):
        dealt = []
        for k in range(batches):
            by_rank = [plan.rows(update * batches + k, micro_batch, rank) for rank in range(world)]
            assert {u for u, _ in by_rank} == {update}
            assert len({len(rows) for _, rows in by_rank}) == 1  # a sharded network needs that
            assert len(by_rank[0][1]) <= plan.most(micro_batch)
            dealt += [row for rows in zip(*(rows for _, rows in by_rank), strict=True) for row in rows]
        assert dealt == list(range(6))
    assert max(len(plan.rows(k, micro_batch)[1]) for k in range(batches)) == plan.most(micro_batch)


def test_sums_over_micro_batches_accumulate_to_the_mean():
    plan = DataPlan(pairs=6, transitions=16, updates=1, world_size=2)
    values = np.random.default_rng(0).normal(size=6)
    parts = [[plan.factor(4) * sum(values[i] for i in plan.rows(k, 4, rank)[1]) for k in range(4)] for rank in (0, 1)]
    assert np.mean(parts) == pytest.approx(values.mean())  # what Lightning's accumulation and DDP make of them


def test_by_default_there_is_a_pair_for_each_image():
    round = RoundPlan(4, 4, 2, 1, micro_batch=2, train_steps=3, world_size=2)
    assert DataPlan.of(DataLoss(0.1), round) == DataPlan(pairs=8, transitions=12, updates=2, world_size=2)
    assert DataPlan.of(DataLoss(0.1, pairs_per_update=2), round).local == 1
    with pytest.raises(GuardlitError, match="pairs_per_update=3 is not divisible by the world size 2"):
        DataPlan.of(DataLoss(0.1, pairs_per_update=3), round)


def test_all_pairs_come_up_equally_often():
    found = [i for round in range(5) for update in range(2) for i in DRAW.indices(round, update, range(6))]
    assert set(Counter(found).values()) == {6}  # 60 rows of 10 pairs
    assert found[:10] != found[10:20]
    assert DRAW.indices(1, 1, [4, 2]) == [DRAW.indices(1, 1, range(6))[i] for i in (4, 2)]


def test_quantiles_are_spread_over_an_update_and_change_with_it():
    first, second = DRAW.quantiles(0, 0, range(6)), DRAW.quantiles(0, 1, range(6))
    for q in (first, second, DRAW.quantiles(3, 0, range(6))):
        assert sorted((q * 6).long().tolist()) == list(range(6))
    assert not torch.equal(first, second)
    assert torch.equal(DRAW.quantiles(0, 0, [5, 1]), first[[5, 1]])
    each = torch.stack([DRAW.quantiles(r, 0, range(6)) for r in range(400)])
    assert (each.mean(0) - 0.5).abs().max() < 0.07  # a row is uniform by itself: 4.5 standard errors
    assert (each.var(0) - 1 / 12).abs().max() < 0.02


def test_noise_belongs_to_a_row():
    noise = DRAW.noise(2, 1, [0, 3, 5], (4, 2, 2))
    assert (noise.shape, noise.dtype) == ((3, 4, 2, 2), torch.float32)
    assert torch.equal(DRAW.noise(2, 1, [3], (4, 2, 2)), noise[1:2])
    assert not torch.equal(DRAW.noise(2, 0, [3], (4, 2, 2)), noise[1:2])


def test_timesteps():
    sigmas = torch.tensor([1.0, 0.9, 0.5], dtype=torch.float64)
    quantiles = torch.tensor([0.0, 0.3, 0.34, 0.66, 0.67, 0.999], dtype=torch.float64)
    assert at_steps(quantiles, sigmas).tolist() == [1.0, 1.0, 0.9, 0.9, 0.5, 0.5]
    times = logit_normal((torch.arange(10**5, dtype=torch.float64) + 0.5) / 10**5)
    logits = np.log(times.numpy() / (1 - times.numpy()))
    assert (logits.mean(), logits.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-3))
    assert logit_normal(torch.zeros(1, dtype=torch.float64)) > 0  # noise at sigma 0 would teach nothing


def test_the_loss_of_a_row():
    random = np.random.default_rng(3)
    latents, noise, velocity = random.normal(size=(3, 2, 4, 2, 2))
    sigma = np.array([0.25, 0.75])
    rows = DataRows(*(torch.tensor(x) for x in (latents, noise, sigma)), {})
    for i in range(2):
        assert np.allclose(rows.noisy[i], (1 - sigma[i]) * latents[i] + sigma[i] * noise[i], rtol=1e-15)
        expected = sum(
            (v - (e - x)) ** 2 for v, e, x in zip(*(a[i].ravel() for a in (velocity, noise, latents)), strict=True)
        )
        assert float(rows.losses(torch.tensor(velocity))[i]) == pytest.approx(expected / 16, rel=1e-14)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_a_weight_must_be_positive(weight: float):
    with pytest.raises(GuardlitError, match=f"model.data_loss.weight={weight} must be positive and finite"):
        DataLoss(weight)


def test_without_images_there_is_no_data_loss():
    with pytest.raises(GuardlitError, match=r"model\.data_loss\.images is not set: name a folder of images"):
        _ = DataLoss(0.1).source
    with pytest.raises(GuardlitError, match="pairs_per_update=0 must be at least 1"):
        DataLoss(0.1, pairs_per_update=0)

import numpy as np
import pytest
import torch
from gardo import gardo, nearest

from guardlit.advantage import GroupAdvantage, diversity_factors, group_relative, nearest_distances


def _loop(rewards: torch.Tensor, groups: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
    """The published formula, group by group, in numpy float64."""
    values, ids = rewards.double().numpy(), groups.numpy()
    out = np.zeros_like(values)
    for g in np.unique(ids):
        rows = ids == g
        out[rows] = (values[rows] - values[rows].mean()) / ((values if whole else values[rows]).std() + 1e-4)
    return torch.from_numpy(out)


def _round(n_groups: int = 6, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(n_groups).repeat_interleave(size)[torch.randperm(n_groups * size, generator=generator)]
    return torch.randn(n_groups * size, generator=generator) + groups, groups


@pytest.mark.parametrize("std", ["group", "global"])
def test_group_relative_equals_the_loop(std):
    rewards, groups = _round()
    expected = _loop(rewards, groups, whole=std == "global")
    torch.testing.assert_close(group_relative(rewards, groups, std=std).double(), expected, rtol=1e-6, atol=1e-7)


def test_group_ids_may_be_any_integers_in_any_order():
    rewards, groups = _round()
    assert torch.equal(group_relative(rewards, groups), group_relative(rewards, 1000 - 7 * groups))


def test_a_constant_group_gets_zero_and_leaves_the_others_alone():
    rewards, groups = _round()
    others = group_relative(rewards, groups)
    rewards[groups == 2] = 0.1  # 0.1 has no exact float: its deviation rounds to something above zero
    result = group_relative(rewards, groups)
    assert not result[groups == 2].any()
    assert torch.equal(result[groups != 2], others[groups != 2])


def test_a_failed_reward_is_as_if_it_had_never_been():
    rewards, groups = _round()
    failed = rewards.clone()
    failed[[3, 20]] = torch.nan
    keep = torch.isfinite(failed)
    for std in ("group", "global"):
        result = group_relative(failed, groups, std=std)
        assert not result[~keep].any()
        torch.testing.assert_close(result[keep], group_relative(rewards[keep], groups[keep], std=std))


def test_clip_bounds_the_advantage():
    rewards = torch.zeros(64)
    rewards[0] = 1
    groups = torch.zeros(64, dtype=torch.long)
    assert float(group_relative(rewards, groups).max()) > 5
    assert float(group_relative(rewards, groups, clip=5.0).max()) == 5


def test_masked_samples_are_named():
    rewards, groups = _round()
    rewards[groups == 1] = 2.0
    rewards[0] = torch.nan
    out = GroupAdvantage()({"reward": rewards}, groups)
    assert torch.equal(out.mask, (groups != 1) & torch.isfinite(rewards))
    assert out.zero_std_share == pytest.approx(1 / 6)
    assert not out.values[~out.mask].any()


def test_a_group_with_one_valid_reward_is_masked():
    rewards = torch.tensor([1.0, torch.nan, 2.0, 3.0])
    out = GroupAdvantage()({"reward": rewards}, torch.tensor([0, 0, 1, 1]))
    assert out.mask.tolist() == [False, False, True, True]


def test_all_groups_masked_gives_zeros():
    out = GroupAdvantage(std="global", aggregation="gdpo")({"reward": torch.ones(4)}, torch.tensor([0, 0, 1, 1]))
    assert not out.values.any()
    assert out.zero_std_share == 1


def test_several_rewards():
    a, groups = _round()
    b = 100 * torch.randn(len(a), generator=torch.Generator().manual_seed(1))
    weights = {"a": 0.25, "b": 2.0, "watched": 0.0}
    rewards = {"a": a, "b": b, "watched": torch.full_like(a, torch.nan)}

    summed = GroupAdvantage(clip=None)(rewards, groups, weights).values
    torch.testing.assert_close(summed.double(), _loop(0.25 * a + 2 * b, groups), rtol=1e-4, atol=1e-5)

    each = 0.25 * _loop(a, groups) + 2 * _loop(b, groups)
    normalized = GroupAdvantage(clip=None, aggregation="normalized")(rewards, groups, weights).values
    torch.testing.assert_close(normalized.double(), each, rtol=1e-5, atol=1e-6)

    gdpo = GroupAdvantage(clip=None, aggregation="gdpo")(rewards, groups, weights).values
    torch.testing.assert_close(
        gdpo.double(), (each - each.mean()) / (each.std(correction=0) + 1e-4), rtol=1e-5, atol=1e-5
    )
    scaled = GroupAdvantage(clip=None, aggregation="gdpo")({**rewards, "b": 7 * b}, groups, weights).values
    torch.testing.assert_close(scaled, gdpo, rtol=1e-3, atol=1e-3)  # eps / std is what is left of the unit


def test_a_reward_that_is_flat_in_a_group_does_not_mask_the_other():
    a = torch.tensor([1.0, 1.0, 2.0, 3.0])
    b = torch.tensor([5.0, 6.0, 7.0, 7.0])
    out = GroupAdvantage(aggregation="normalized")({"a": a, "b": b}, torch.tensor([0, 0, 1, 1]))
    assert bool(out.mask.all())
    assert bool(out.values.abs().gt(0.9).all())


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(N,\)"):
        group_relative(torch.zeros(3), torch.zeros(2))


# diversity -----------------------------------------------------------------------------------------------------------


def _features(count: int) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1)) + 1


GARDO = GroupAdvantage(std="none", clip=None, diversity="dino")


def test_positive_advantages_are_multiplied_by_the_diversity():
    rewards, groups = _round()
    features = _features(len(rewards))
    rewards[[3, 20]] = torch.nan
    features[[7, 20]] = torch.nan
    found = GARDO({"r": rewards}, groups, features=features)
    ids, values = groups.numpy(), rewards.double().numpy()
    expected = gardo(values, features.double().numpy(), ids)
    torch.testing.assert_close(found.values.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    lost = np.where(np.isfinite(values)[:, None], features.double().numpy(), np.nan)
    assert found.diversity == pytest.approx(np.nanmean(nearest(lost, ids)), rel=1e-9)
    assert found.mask.tolist() == np.isfinite(values).tolist()


def test_diversity_does_not_depend_on_the_order():
    rewards, groups = _round()
    features, order = _features(len(rewards)), torch.randperm(len(rewards), generator=torch.Generator().manual_seed(2))
    whole = GARDO({"r": rewards}, groups, features=features)
    shuffled = GARDO({"r": rewards[order]}, groups[order], features=features[order])
    torch.testing.assert_close(shuffled.values, whole.values[order], rtol=1e-6, atol=1e-7)


def test_the_factor_comes_after_the_deviation_and_before_the_clip():
    rewards, groups = _round()
    features = _features(len(rewards))
    plain = GroupAdvantage(clip=None)({"r": rewards}, groups).values
    factors = diversity_factors(nearest_distances(features, groups), groups)
    expected = torch.where(plain > 0, plain.double() * factors, plain.double())
    for clip in (None, 0.7):
        found = GroupAdvantage(clip=clip, diversity="dino")({"r": rewards}, groups, features=features).values
        bounded = expected if clip is None else expected.clamp(-clip, clip)
        torch.testing.assert_close(found.double(), bounded, rtol=1e-6, atol=1e-7)
    assert float(factors.max()) > 1.5
    assert bool((plain.abs() > 0.7).any())


def test_equal_images_and_groups_of_one_have_the_factor_1():
    features = _features(9)
    features[:4] = features[0]  # 1 - cos of equal rows may round to something above 0
    features[6] = 0  # no direction
    groups = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3, 3])
    distances = nearest_distances(features, groups)
    assert distances[:4].tolist() == [0] * 4
    assert distances[4:7].isnan().all()
    assert diversity_factors(distances, groups)[:7].tolist() == [1] * 7
    assert diversity_factors(distances, groups)[7:].tolist() == pytest.approx([1, 1])


def test_diversity_needs_features():
    rewards, groups = _round()
    with pytest.raises(ValueError, match=r"advantage.diversity=dino: found no features"):
        GARDO({"r": rewards}, groups)
    assert GroupAdvantage()({"r": rewards}, groups, features=_features(len(rewards))).diversity is None

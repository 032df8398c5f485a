import torch

from guardlit.rounds.noise import INITIAL, NoiseSource, mix


def test_noise_depends_on_its_place_alone():
    source = NoiseSource(7, 3, (4, 8, 8))
    batched = source.draw([5, 2, 9], 1)
    torch.manual_seed(123)
    alone = NoiseSource(7, 3, (4, 8, 8)).draw([2], 1)
    assert torch.equal(batched[1], alone[0])
    mixed = source.draw([5, 2], [0, 1])
    assert torch.equal(mixed[1], alone[0])


def test_another_seed_round_image_or_step_draws_other_noise():
    def one(seed: int, round: int, sample: int, step: int) -> torch.Tensor:
        return NoiseSource(seed, round, (64,)).draw([sample], step)

    base = one(1, 2, 3, 4)
    for place in [
        (2, 2, 3, 4),
        (1, 3, 3, 4),
        (1, 2, 4, 4),
        (1, 2, 3, 5),
        (1, 2, 3, INITIAL),
        (2, 1, 3, 4),
        (1, 2, 4, 3),
    ]:
        assert not torch.equal(base, one(*place))


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    NoiseSource(1, 2, (16,)).draw([0, 1], 3)
    assert torch.equal(before, torch.get_rng_state())


def test_it_is_standard_normal_and_independent():
    x = NoiseSource(0, 0, (64, 64)).draw(range(64), 0)
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01
    correlation = torch.corrcoef(x.flatten(1)) - torch.eye(64)
    assert float(correlation.abs().max()) < 5 / 64


def test_seeds_fill_63_bits():
    seeds = [mix(i) for i in range(1000)]
    assert len(set(seeds)) == 1000
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63

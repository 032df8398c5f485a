import math

import pytest
import torch
from guardlit_callbacks import DriftSentinels
from guardlit_callbacks.drift_sentinels import (
    SENTINELS,
    dark_share,
    edge_density,
    gray_entropy,
    group_diversity,
    saturation,
    spectral_peak,
)
from guardlit_callbacks.tools.lightning import MisconfigurationException

UNIFORM = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
NOISE = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def half_black(size=32):
    image = torch.full((1, 3, size, size), 255, dtype=torch.uint8)
    image[..., : size // 2] = 0
    return image


@pytest.mark.parametrize("name", SENTINELS)
def test_shape_and_independence_of_the_batch(name):
    together = SENTINELS[name](NOISE)
    assert together.shape == (4,)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together[2:3], SENTINELS[name](NOISE[2:3]))


def test_all_sentinels_of_a_uniform_image_are_zero():
    assert edge_density(UNIFORM).item() == 0
    assert gray_entropy(UNIFORM).item() == 0
    assert spectral_peak(UNIFORM).item() == pytest.approx(0, abs=1e-6)
    assert saturation(UNIFORM).item() == 0
    assert dark_share(UNIFORM).item() == 0
    assert dark_share(UNIFORM // 2).item() == 1


def test_half_black_image():
    assert edge_density(half_black()).item() == pytest.approx(1 / 31)
    assert dark_share(half_black()).item() == 0.5
    assert gray_entropy(half_black()).item() == pytest.approx(1.0)
    assert gray_entropy(torch.arange(256).expand(1, 3, 4, 256).to(torch.uint8)).item() == pytest.approx(8.0)


def test_saturation_of_pure_and_mixed_colors():
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, :, 0, 0] = torch.tensor([200, 0, 0])  # 1
    image[0, :, 0, 1] = torch.tensor([200, 100, 200])  # 0.5
    assert saturation(image).item() == pytest.approx(1.5 / 4)


@pytest.mark.parametrize("period", [4, 8])
def test_spectral_peak_finds_a_faint_grid_and_only_a_grid(period):
    faint = (NOISE.float() * 0.3 + 100).to(torch.uint8)
    grid = faint.clone()
    grid[..., ::period] += 30
    grid[..., ::period, :] += 30
    assert (spectral_peak(faint) < 15).all()
    assert (spectral_peak(grid) > spectral_peak(faint) + 6).all()


def test_group_diversity_by_hand():
    images = torch.zeros(5, 3, 16, 16, dtype=torch.uint8)
    images[1] = 51  # 0.2 of the range
    images[2] = 102
    diversity = group_diversity(images, ["a", "a", "a", "b", "b"])
    torch.testing.assert_close(diversity, torch.tensor([0.3, 0.2, 0.3, 0.0, 0.0]))
    assert math.isnan(group_diversity(images[:1], ["a"]).item())


def sampler(small_module):
    class Sampler(small_module):
        def validation_step(self, x, batch_idx):
            images = torch.stack([half_black()[0] // (1 + self.global_step // 8), UNIFORM[0]])
            return {"images": images, "prompts": ["one", "one"]}

    return Sampler


KEYS = ["edge_density", "dark_share", "grey_entropy", "spectral_peak", "saturation", "diversity"]


def test_logged_keys_values_and_baseline(small_module, loader, make_trainer, recorder):
    trainer = make_trainer(DriftSentinels(), logger=recorder, max_epochs=2)
    module = sampler(small_module)()
    trainer.validate(module, loader(2), verbose=False)
    trainer.fit(module, loader(), loader(2))
    expected = sorted(f"drift/{key}" for key in KEYS) + [f"drift/{key}_ratio" for key in KEYS if key != "saturation"]
    assert recorder.keys("drift/") == sorted(expected)
    assert [v for _, v in recorder.values("drift/dark_share")] == pytest.approx([0.25, 0.25, 0.25])
    edges = [v for _, v in recorder.values("drift/edge_density")]
    assert edges == pytest.approx([0.5 / 31] * 3)
    diversity = [v for _, v in recorder.values("drift/diversity")]
    # two batches make one group of four, in which every image has one twin at no distance
    hand = [2 / 3 * math.sqrt((a**2 + b**2) / 2) / 255 for a, b in ((77, 178), (77, 50), (77, 8))]
    assert diversity == pytest.approx(hand, rel=1e-5)
    ratios = [v for _, v in recorder.values("drift/diversity_ratio")]
    assert ratios == pytest.approx([d / hand[0] for d in hand], rel=1e-5)


def test_baseline_is_resumed(small_module, loader, make_trainer, recorder, tmp_path):
    first = make_trainer(DriftSentinels())
    module = sampler(small_module)()
    first.validate(module, loader(1), verbose=False)
    first.fit(module, loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    resumed = make_trainer(DriftSentinels(), logger=recorder, max_epochs=2)
    resumed.fit(module, loader(), loader(1), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    (_, ratio), *_ = recorder.values("drift/diversity_ratio")
    assert ratio == pytest.approx(math.sqrt(77**2 + 8**2) / math.sqrt(77**2 + 178**2), rel=1e-5)


@pytest.mark.parametrize(("steps", "validations"), [(1, 1), (-1, 2)])
def test_only_a_full_sanity_check_counts(small_module, loader, make_trainer, recorder, steps, validations):
    trainer = make_trainer(DriftSentinels(), logger=recorder, num_sanity_val_steps=steps)
    trainer.fit(sampler(small_module)(), loader(), loader(2))
    assert len(recorder.values("drift/edge_density")) == validations
    assert recorder.values("drift/diversity_ratio")[0][1] == 1.0


def test_late_baseline_warns(small_module, loader, make_trainer):
    with pytest.warns(UserWarning, match="baseline is step 8"):
        make_trainer(DriftSentinels(groups=None)).fit(sampler(small_module)(), loader(), loader(1))


def test_two_ranks_log_what_one_does(small_module, make_trainer, two_processes, tmp_path):
    class Noisy(small_module):
        def validation_step(self, x, batch_idx):
            rows = x[:, 0].long()
            return {"images": NOISE[rows], "prompts": (rows // 2).tolist()}

    data = torch.arange(4.0)[:, None].expand(-1, 4)

    def validate(rank, world):
        strategy = "ddp" if world > 1 else "auto"
        trainer = make_trainer(DriftSentinels(), devices=world, strategy=strategy)
        trainer.validate(Noisy(), torch.utils.data.DataLoader(data, batch_size=2 // world), verbose=False)
        values = {key: value.item() for key, value in trainer.callback_metrics.items()}
        torch.save(values, tmp_path / f"{world}_{rank}.pt")

    two_processes(validate, 2)
    validate(0, 1)
    one = torch.load(tmp_path / "1_0.pt")
    assert set(one) == {f"drift/{key}{suffix}" for key in KEYS for suffix in ("", "_ratio")}
    for rank in (0, 1):
        assert torch.load(tmp_path / f"2_{rank}.pt") == pytest.approx(one, rel=1e-6)


def test_a_wrong_number_of_labels_is_refused(small_module, loader, make_trainer):
    class Short(small_module):
        def validation_step(self, x, batch_idx):
            return {"images": UNIFORM, "prompts": ["a", "b"]}

    with pytest.raises(MisconfigurationException, match="2 labels under 'prompts' for 1 images"):
        make_trainer(DriftSentinels()).validate(Short(), loader(1), verbose=False)
    with pytest.raises(MisconfigurationException, match=r"no output 'group'.*DriftSentinels\(groups=\.\.\.\)"):
        make_trainer(DriftSentinels(groups="group")).validate(Short(), loader(1), verbose=False)

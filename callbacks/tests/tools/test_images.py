"""One rule for the images of every callback: uint8, or floats in a range that is named."""

import pytest
import torch
from guardlit_callbacks import DriftSentinels, GoldScore, SampleGrid
from guardlit_callbacks.tools.images import read_images
from guardlit_callbacks.tools.lightning import MisconfigurationException

UNIT, SIGNED = (0.0, 1.0), (-1.0, 1.0)


class Mean:
    """Mean of the pixels, 0 to 255."""

    def setup(self, device):
        pass

    def score(self, request):
        assert request.images.dtype == torch.uint8
        return request.images.float().mean((1, 2, 3))


class Reader:
    """Stands for a callback."""


def read(images, value_range=UNIT):
    return read_images({"images": images}, "images", Reader(), value_range)


def images(low, high):
    return torch.linspace(low, high, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_floats_of_either_range_are_the_same_uint8(dtype):
    whole = torch.arange(256, dtype=torch.uint8).repeat(6).reshape(2, 3, 16, 16)
    assert torch.equal(read(whole), whole)
    unit = whole.double() / 255
    rounded = 1 if dtype == torch.bfloat16 else 0  # 8 bits of precision
    assert (read(unit.to(dtype)).int() - whole.int()).abs().max() <= rounded
    assert (read((2 * unit - 1).to(dtype), SIGNED).int() - whole.int()).abs().max() <= rounded


def test_values_that_rounding_carried_out_of_the_range_are_kept():
    assert read(images(-0.0005, 1.0005)).flatten()[[0, -1]].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("wrong", "value_range", "line"),
    [
        (images(-1, 1), UNIT, r"values from -1 to 1; .* floats in \[0, 1\]: set Reader\(value_range=\(-1, 1\)\)"),
        (images(0, 255), UNIT, r"values from 0 to 255; .*: convert or clamp them in the step"),
        (images(-1.2, 1), SIGNED, r"values from -1.2 to 1; .* floats in \[-1, 1\]: convert or clamp"),
        (images(0, 1) / 0, UNIT, "values from nan to nan"),
        (images(0, 255).long(), UNIT, r"is \(2, 3, 16, 16\) int64; images must be \(B, 3, height, width\), uint8 or"),
        (images(0, 1) > 0.5, UNIT, "is .* bool; images must be"),
        (images(0, 1)[0], UNIT, r"is \(3, 16, 16\) float32; images must be"),
        (images(0, 1).permute(0, 2, 3, 1), UNIT, r"is \(2, 16, 16, 3\) float32; images must be"),
        (images(0, 1).numpy(), UNIT, "is a ndarray, not a tensor"),
    ],
)
def test_anything_else_is_refused(wrong, value_range, line):
    with pytest.raises(MisconfigurationException, match=line) as error:
        read(wrong, value_range)
    assert "\n" not in str(error.value)


def callbacks(**options):
    return [SampleGrid(**options), DriftSentinels(**options), GoldScore({"mean": Mean()}, **options)]


@pytest.mark.parametrize("value_range", [(0, 255), (1, 0), (-1, 0)])
def test_other_ranges_are_refused_at_once(value_range):
    for kind in (SampleGrid, DriftSentinels, lambda **o: GoldScore({"mean": Mean()}, **o)):
        with pytest.raises(ValueError, match=r"value_range must be \[0, 1\] or \[-1, 1\], got "):
            kind(value_range=value_range)


def outputs(images):
    return {"images": images, "prompts": ["a", "b"], "reward": torch.zeros(2)}


def test_every_callback_takes_what_it_is_told_and_refuses_the_rest():
    for callback in callbacks():
        with pytest.raises(MisconfigurationException, match=r"set \w+\(value_range=\(-1, 1\)\)"):
            callback.collect(outputs(images(-1, 1)))
        assert callback.collect(outputs(images(0, 1)))
    for callback in callbacks(value_range=(-1, 1)):
        assert callback.collect(outputs(images(-1, 1)))


def test_a_range_shows_the_same_images():
    grid, drift, gold = callbacks()
    signed_grid, signed_drift, signed_gold = callbacks(value_range=(-1, 1))
    unit, signed = outputs(images(0, 1)), outputs(images(-1, 1))
    for (one, *_), (other, *_) in zip(grid.collect(unit), signed_grid.collect(signed), strict=True):
        assert (one == other).all()
    assert torch.equal(drift.collect(unit)[0].values, signed_drift.collect(signed)[0].values)
    assert [s["mean"] for s in gold.collect(unit)] == [s["mean"] for s in signed_gold.collect(signed)]


def test_a_range_comes_from_yaml():
    parser = pytest.importorskip("jsonargparse").ArgumentParser()
    parser.add_class_arguments(SampleGrid, "grid")
    grid = parser.instantiate(parser.parse_args(["--grid.value_range", "[-1, 1]"])).grid
    assert grid.value_range == SIGNED

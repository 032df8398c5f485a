from importlib import import_module

import numpy as np
import pytest
import torch
from guardlit_callbacks import SampleGrid
from guardlit_callbacks.figures.pictures import Frame, captioned_grid, film_strip, wrap
from guardlit_callbacks.tools.lightning import MisconfigurationException
from PIL import Image


def sampler(small_module):
    """A module whose validation image i is of the uniform color 10 i + step."""

    class Sampler(small_module):
        def validation_step(self, x, batch_idx):
            first = int(x[0, 0]) if self.by_content else 2 * batch_idx
            colors = torch.tensor([10 * (first + self.stride * i) + self.global_step for i in range(len(x))])
            images = colors.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
            return {
                "images": images,
                "prompts": [f"prompt {int(c) // 10}" for c in colors],
                "reward": colors / 100,
            }

        by_content, stride = False, 1

    return Sampler


def test_grid_and_strip_are_written_and_logged(small_module, loader, make_trainer, lightning_root, tmp_path):
    writer = import_module(f"{lightning_root}.loggers").TensorBoardLogger(tmp_path, default_hp_metric=False)
    grid = SampleGrid(max_images=5, columns=3, size=32)
    trainer = make_trainer(grid, logger=writer, max_epochs=3)
    trainer.fit(sampler(small_module)(), loader(), loader(4))
    folder = tmp_path / "lightning_logs" / "version_0" / "samples"
    assert sorted(p.name for p in folder.iterdir()) == [
        "film_strip.png",
        "step_000008.png",
        "step_000016.png",
        "step_000024.png",
    ]
    picture = np.asarray(Image.open(folder / "step_000016.png"))
    assert [picture[12, 12 + 40 * i].tolist() for i in range(3)] == [[c] * 3 for c in (16, 26, 36)]
    strip = np.asarray(Image.open(folder / "film_strip.png"))
    # under two lines of prompts, rows of 32 pixels with a line of scores below; the third of 0, 10, 20 at each step
    assert [strip[44 + 12 + 58 * i, -12].tolist() for i in range(3)] == [[c] * 3 for c in (28, 36, 44)]
    assert all((strip[top : top + 18, -40:] < 128).any() for top in (4, 44 + 33, 44 + 58 + 33, 44 + 116 + 33))

    accumulator = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(
        writer.log_dir, size_guidance={"images": 0}
    )
    accumulator.Reload()
    assert [event.step for event in accumulator.Images("samples/grid")] == [8, 16, 24]
    assert [event.step for event in accumulator.Images("samples/film_strip")] == [24]


def test_every_n_validations_and_no_scores(small_module, loader, make_trainer, tmp_path):
    grid = SampleGrid(scores=None, every_n_validations=2, size=32)
    make_trainer(grid, max_epochs=4).fit(sampler(small_module)(), loader(), loader(1))
    assert sorted(p.name for p in tmp_path.rglob("samples/step_*")) == [
        f"step_{step:06d}.png" for step in (8, 24, 32)
    ]  # and the last


def test_a_full_sanity_check_is_step_0(small_module, loader, make_trainer, tmp_path):
    trainer = make_trainer(SampleGrid(size=32), num_sanity_val_steps=-1)
    trainer.fit(sampler(small_module)(), loader(), loader(1))
    assert sorted(p.name for p in tmp_path.rglob("samples/step_*")) == ["step_000000.png", "step_000008.png"]


def test_strip_keeps_first_and_last_at_an_even_stride():
    grid = SampleGrid(strip_rows=4)
    steps = []
    for count in range(14):
        grid._validations = count
        grid._remember(count, [np.zeros((4, 4, 3), np.uint8)], [""])
        steps.append([row.step for row in grid._strip])
    assert steps[3] == [0, 1, 2, 3]
    assert steps[4] == [0, 2, 4]
    assert steps[7] == [0, 4, 7]
    assert steps[13] == [0, 8, 13]
    assert all(row[0] == 0 and row[-1] == count and len(row) <= 4 for count, row in enumerate(steps))


def test_the_strip_is_resumed(small_module, loader, make_trainer, tmp_path):
    def train(epochs, folder, source=None):
        trainer = make_trainer(SampleGrid(size=16), max_epochs=epochs, default_root_dir=tmp_path / folder)
        trainer.fit(sampler(small_module)(), loader(), loader(1), ckpt_path=source, weights_only=source and True)
        trainer.save_checkpoint(tmp_path / f"{folder}.ckpt")
        return np.asarray(Image.open(tmp_path / folder / "lightning_logs/version_0/samples/film_strip.png"))

    full = train(4, "full")
    train(2, "half")
    assert np.array_equal(train(4, "resumed", tmp_path / "half.ckpt"), full)


def test_two_ranks_make_the_image_of_one(small_module, make_trainer, two_processes, tmp_path):
    class ByContent(sampler(small_module)):
        by_content = True

    data = torch.arange(6.0)[:, None].expand(-1, 4)

    def validate(rank, world):
        module = ByContent()
        module.stride = world
        batches = torch.utils.data.DataLoader(data, batch_size=2 // world)
        trainer = make_trainer(
            SampleGrid(size=32), devices=world, strategy="ddp" if world > 1 else "auto",
            default_root_dir=tmp_path / str(world),
        )  # fmt: skip
        trainer.validate(module, batches, verbose=False)

    two_processes(validate, 2)
    validate(0, 1)
    one, two = (np.asarray(Image.open(tmp_path / w / "lightning_logs/version_0/samples/step_000000.png")) for w in "12")
    assert np.array_equal(one, two)
    assert one[12, 12 + 40].tolist() == [10, 10, 10]


def test_missing_key_names_what_is_there_and_the_argument(small_module, loader, make_trainer):
    with pytest.raises(
        MisconfigurationException,
        match=r"SampleGrid: no output 'score': .* only 'images', 'prompts', 'reward'; .*SampleGrid\(scores=\.\.\.\)",
    ):
        make_trainer(SampleGrid(scores="score")).validate(sampler(small_module)(), loader(1), verbose=False)


def test_an_output_that_is_not_a_dictionary_is_refused(small_module, loader, make_trainer):
    with pytest.raises(MisconfigurationException, match="the step returned NoneType, not a dictionary"):
        make_trainer(SampleGrid()).validate(small_module(), loader(1), verbose=False)


def test_wrong_shapes_and_numbers_are_refused(small_module, loader, make_trainer):
    with pytest.raises(ValueError, match="SampleGrid: columns must be at least 1, got 0"):
        SampleGrid(columns=0)

    class Gray(small_module):
        def validation_step(self, x, batch_idx):
            return {"images": torch.zeros(2, 1, 8, 8), "prompts": ["a", "b"], "reward": torch.zeros(2)}

    class Short(small_module):
        def validation_step(self, x, batch_idx):
            return {"images": torch.zeros(2, 3, 8, 8), "prompts": ["a"], "reward": torch.zeros(2)}

    with pytest.raises(MisconfigurationException, match=r"is \(2, 1, 8, 8\) float32; images must be \(B, 3, h"):
        make_trainer(SampleGrid()).validate(Gray(), loader(1), verbose=False)
    with pytest.raises(MisconfigurationException, match="'prompts' is a list of 1; it must be a list of 2, one text"):
        make_trainer(SampleGrid()).validate(Short(), loader(1), verbose=False)


def test_captions_are_written_and_cut():
    tile = np.full((8, 8, 3), 128, np.uint8)
    blank = captioned_grid([tile], [""], [""], columns=4, size=64)
    written = captioned_grid([tile], ["a dog"], ["reward 1"], columns=4, size=64)
    assert blank.shape == written.shape
    assert (blank[75:] == 255).all()
    assert (written[75:] < 128).any()
    lines = wrap("word " * 100, 64)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert wrap("a dog", 200) == ["a dog"]
    bare = film_strip([Frame("step 0", [tile], [""])], [""], 64)
    full = film_strip([Frame("step 0", [tile], ["1.5"])], ["a dog"], 64)
    assert full.shape == (bare.shape[0] + 18, bare.shape[1], 3)  # a line for the score
    assert (bare[:20] == 255).all()
    assert (full[:20] < 128).any()
    assert np.array_equal(bare[26:90, -72:-8], full[26:90, -72:-8])
    assert (full[26:90, -72:-8] == 128).all()
    assert (full[91:] < 128).any()

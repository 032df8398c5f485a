import io
import math
from importlib import import_module

import numpy as np
import pytest
import torch
from guardlit_callbacks import RatioDistribution
from guardlit_callbacks.ratio_distribution import ratio_statistics
from guardlit_callbacks.tools.lightning import MisconfigurationException
from toy_flow import CLIP, GAIN, STD, STEPS, Rounds, Spy, ToyFlow, transitions

KINDS = {"raw": "raw_log_ratio", "normalized": "norm_log_ratio"}


def all_kinds(**options):
    return RatioDistribution(**{**KINDS, "draw_every": 0, "per_step": True, **options})


def load(folder, number):
    (path,) = folder.rglob(f"ratio/round_{number:05d}.npz")
    return dict(np.load(path))


def test_every_number_equals_a_float64_loop(make_trainer, recorder):
    spy, batches = Spy(), transitions()
    make_trainer(all_kinds(), spy, max_epochs=2, logger=recorder).fit(ToyFlow(), Rounds(batches))
    logged = {key: dict(recorder.values(key)) for key in recorder.keys("ratio/")}
    assert {step for values in logged.values() for step in values} == {6, 12}  # at the end of either round

    for last_step, first in ((6, 0), (12, len(batches))):
        columns = spy.columns(first, first + len(batches))
        checked = 0
        for suffix, sign in {"": None, "_positive": 1, "_negative": -1}.items():
            for t in range(STEPS):
                chosen = (columns["step"] == t) & ((np.sign(columns["advantage"]) == sign) if sign else True)
                for kind, key in {"log_ratio": "log_ratio", "normalized": KINDS["normalized"]}.items():
                    x = columns[key][chosen].tolist()
                    mean = math.fsum(x) / len(x)
                    std = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / len(x))
                    skew = math.fsum(((v - mean) / std) ** 3 for v in x) / len(x)
                    for name, value in {"mean": mean, "std": std, "skew": skew}.items():
                        key = f"ratio/{kind}/{name}{suffix}/t{t:02d}"
                        assert logged[key][last_step] == pytest.approx(value, rel=1e-5, abs=1e-9), key
                        checked += 1
                out = columns["clipped"][chosen].astype(bool)
                for side, beyond in {"above": columns["log_ratio"] > 0, "below": columns["log_ratio"] < 0}.items():
                    share = np.mean(out & beyond[chosen])
                    key = f"ratio/clip_fraction_{side}{suffix}/t{t:02d}"
                    assert logged[key][last_step] == pytest.approx(share, rel=1e-6)
                    checked += 1
        shares = columns["clipped"].mean()
        assert logged["ratio/clip_fraction"][last_step] == pytest.approx(shares)
        both = [logged[f"ratio/clip_fraction_{side}"][last_step] for side in ("above", "below")]
        assert sum(both) == pytest.approx(shares)
        assert 0 < shares < 1
        by_step = [columns["clipped"][columns["step"] == t].mean() for t in range(STEPS)]
        assert by_step[0] == 0 < by_step[1] < by_step[2]
        assert logged["ratio/clip_fraction/max_over_min"][last_step] == math.inf
        assert checked + 2 + 4 == len(logged)  # and two max_shift: the raw log ratio is the objective's


def test_the_evenness_of_the_clip_is_of_all_steps():
    step = np.repeat([0, 1, 2], 4)
    clipped = np.array([1, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0], dtype=bool)
    rows = {"step": step, "advantage": np.ones(12), "log_ratio": np.linspace(-1, 1, 12)}
    assert ratio_statistics({**rows, "clipped": clipped})["ratio/clip_fraction/max_over_min"] == 3.0
    assert np.isnan(ratio_statistics({**rows, "clipped": ~(clipped | True)})["ratio/clip_fraction/max_over_min"])


def test_a_policy_moved_by_hand_gives_the_closed_form(make_trainer, recorder):
    class Moved(ToyFlow):
        def on_train_batch_start(self, batch, batch_idx):
            self.old.copy_(self.velocity.detach() - torch.tensor([0.0, 0.1, 0.2]))

    batches = transitions(updates=20)
    make_trainer(all_kinds(), logger=recorder).fit(Moved(lr=0.0), Rounds(batches))
    for t, moved in enumerate([0.0, 0.1, 0.2]):
        noise = torch.cat([b["noise"] for b in batches[t::STEPS]])
        drift = GAIN[t] * moved
        mean = -(drift**2) / (2 * STD[t] ** 2) + drift / STD[t] * noise.mean()
        assert recorder.values(f"ratio/log_ratio/mean/t{t:02d}")[0][1] == pytest.approx(
            float(mean), rel=1e-5, abs=1e-12
        )
        std = recorder.values(f"ratio/normalized/std/t{t:02d}")[0][1]
        assert std == pytest.approx(float(drift * noise.std(correction=0)), rel=1e-5, abs=1e-8)
    # -drift / 2 std and the noise's own mean: the largest shift is a step's mean over its std
    raw = "ratio/log_ratio"  # equal to `raw`, which is not logged twice
    shifts = [
        abs(recorder.values(f"{raw}/mean/t{t:02d}")[0][1]) / recorder.values(f"{raw}/std/t{t:02d}")[0][1]
        for t in (1, 2)
    ]
    assert recorder.values(f"{raw}/max_shift")[0][1] == pytest.approx(max(shifts), rel=1e-5)


def test_arrays_histograms_and_figure(make_trainer, tmp_path):
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = import_module(RatioDistribution.__mro__[2].__module__.removesuffix(".callbacks.callback") + ".loggers")
    logger, spy = root.TensorBoardLogger(tmp_path, name="", version=""), Spy()
    make_trainer(all_kinds(draw_every=2), spy, logger=logger, max_epochs=4).fit(ToyFlow(), Rounds(transitions()))
    arrays, columns = load(tmp_path, 1), spy.columns(0, 6)
    assert set(arrays) == {"step", "log_ratio", "advantage", "raw", "normalized", "clipped"}
    assert arrays["step"].dtype == np.int64
    assert arrays["clipped"].dtype == bool
    order = np.lexsort((columns["log_ratio"], columns["step"]))
    for name, key in {
        "step": "step",
        "log_ratio": "log_ratio",
        "normalized": "norm_log_ratio",
        "clipped": "clipped",
    }.items():
        assert np.array_equal(arrays[name], columns[key][order]), name
    assert np.array_equal(arrays["clipped"], np.abs(np.expm1(arrays["log_ratio"])) > CLIP)

    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0, "images": 0, "scalars": 0})
    events.Reload()
    found = events.Histograms("ratio/log_ratio/histogram/t02")
    histograms = [(event.step, event.histogram_value.num) for event in found]
    assert histograms == [(6, 16), (12, 16), (18, 16), (24, 16)]  # every round
    assert [event.step for event in events.Images("ratio/figure")] == [6, 18, 24]  # every other, and the last
    shown = Image.open(io.BytesIO(events.Images("ratio/figure")[0].encoded_image_string))
    assert min(shown.size) > 200
    assert len(np.unique(np.asarray(shown.convert("L")))) > 20  # something is drawn
    drawn = sorted(path.name for path in (tmp_path / "ratio").glob("*.png"))
    assert drawn == ["round_00001.png", "round_00003.png", "round_00004.png"]
    assert (tmp_path / "ratio" / "round_00001.png").stat().st_size > 10_000


def test_the_round_in_which_a_run_is_stopped_is_drawn(make_trainer, tmp_path):
    class Stopped(ToyFlow):
        def on_train_batch_end(self, *_):
            self.trainer.should_stop = self.trainer.global_step == 18

    make_trainer(all_kinds(draw_every=10), max_epochs=9).fit(Stopped(), Rounds(transitions()))
    drawn = sorted(path.name for path in tmp_path.rglob("ratio/*.png"))
    assert drawn == ["round_00001.png", "round_00003.png"]


def test_float_timesteps_count_from_the_noisiest(make_trainer, tmp_path):
    callback = RatioDistribution(step="timestep", clipped=None, draw_every=0)
    make_trainer(callback).fit(ToyFlow(), Rounds(transitions()))
    arrays = load(tmp_path, 1)
    assert {(t, round(s, 6)) for t, s in zip(arrays["step"], arrays["timestep"], strict=True)} == {
        (0, 1.0),
        (1, round(2 / 3, 6)),
        (2, round(1 / 3, 6)),
    }
    assert "clipped" not in arrays


def test_samples_of_weight_zero_do_not_count(make_trainer, tmp_path):
    spy = Spy()
    make_trainer(all_kinds(sample_weight="sample_weight"), spy, default_root_dir=tmp_path).fit(
        ToyFlow(), Rounds(transitions())
    )
    columns = spy.columns()
    kept = columns["log_ratio"][columns["sample_weight"] > 0]
    assert 0 < len(kept) < len(columns["log_ratio"])
    assert np.array_equal(np.sort(load(tmp_path, 1)["log_ratio"]), np.sort(kept))


def test_accumulation_counts_every_micro_batch(make_trainer, tmp_path):
    make_trainer(all_kinds(), accumulate_grad_batches=3, default_root_dir=tmp_path).fit(
        ToyFlow(), Rounds(transitions())
    )
    assert np.bincount(load(tmp_path, 1)["step"]).tolist() == [16, 16, 16]


@pytest.mark.parametrize("at", [1, 4, 6, 7])
def test_a_round_resumed_in_its_middle_is_complete(make_trainer, tmp_path, at):
    checkpoints = import_module(RatioDistribution.__mro__[2].__module__.rsplit(".", 1)[0])

    def run(folder, ckpt=None, every=None):
        save = checkpoints.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        callbacks = [all_kinds(), *([save] if every else [])]
        trainer = make_trainer(*callbacks, max_epochs=2, enable_checkpointing=bool(every), default_root_dir=folder)
        trainer.fit(ToyFlow(), Rounds(transitions()), ckpt_path=ckpt, weights_only=True if ckpt else None)

    run(tmp_path / "full", every=1)
    run(tmp_path / "resumed", ckpt=tmp_path / "full" / f"step={at}.ckpt")
    for number in (1, 2) if at <= 6 else (2,):
        full, resumed = load(tmp_path / "full", number), load(tmp_path / "resumed", number)
        assert full.keys() == resumed.keys()
        assert all(np.array_equal(full[name], resumed[name]) for name in full)


def _fit(rank, make_trainer, folder, devices, ckpt):
    options = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    make_trainer(all_kinds(), max_epochs=2, default_root_dir=folder, **options).fit(
        ToyFlow(), Rounds(transitions()), ckpt_path=ckpt, weights_only=True if ckpt else None
    )


def test_two_ranks_write_what_one_writes(make_trainer, two_processes, tmp_path):
    _fit(0, make_trainer, tmp_path / "one", 1, None)
    two_processes(_fit, make_trainer, tmp_path / "two", 2, None)
    for number in (1, 2):
        one, two = load(tmp_path / "one", number), load(tmp_path / "two", number)
        assert np.array_equal(one["step"], two["step"])
        for name in ("log_ratio", "raw", "normalized", "advantage"):
            np.testing.assert_allclose(one[name], two[name], rtol=1e-9, atol=1e-12)


def _fit_and_save(rank, make_trainer, folder):
    checkpoints = import_module(RatioDistribution.__mro__[2].__module__.rsplit(".", 1)[0])
    save = checkpoints.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer = make_trainer(
        all_kinds(), save, strategy="ddp", devices=2, default_root_dir=folder, enable_checkpointing=True
    )
    trainer.fit(ToyFlow(), Rounds(transitions()))


def test_a_checkpoint_of_two_ranks_resumes_on_one_and_on_two(make_trainer, two_processes, tmp_path):
    two_processes(_fit_and_save, make_trainer, tmp_path / "full")
    _fit(0, make_trainer, tmp_path / "one", 1, tmp_path / "full" / "step=4.ckpt")
    two_processes(_fit, make_trainer, tmp_path / "two", 2, tmp_path / "full" / "step=4.ckpt")
    full = load(tmp_path / "full", 1)
    for name in full:
        np.testing.assert_allclose(load(tmp_path / "one", 1)[name], full[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(load(tmp_path / "two", 1)[name], full[name], rtol=1e-9, atol=1e-12)


def test_a_missing_key_is_one_clear_line(make_trainer):
    with pytest.raises(MisconfigurationException) as error:
        make_trainer(RatioDistribution()).fit(ToyFlow(drop=("advantage",)), Rounds(transitions()))
    line = str(error.value)
    assert "\n" not in line
    assert all(part in line for part in ("'advantage'", "'log_ratio'", "RatioDistribution(advantage=...)"))


def test_a_matrix_is_refused(make_trainer):
    class Wrong(ToyFlow):
        def training_step(self, batch, batch_idx):
            outputs = super().training_step(batch, batch_idx)
            return {**outputs, "log_ratio": outputs["log_ratio"][:, None]}

    with pytest.raises(MisconfigurationException, match=r"'log_ratio' has shape \(8, 1\)"):
        make_trainer(RatioDistribution()).fit(Wrong(), Rounds(transitions()))

import math

import numpy as np
import pytest
import torch
from guardlit_callbacks import GradientSpikes
from guardlit_callbacks.tools.lightning import Callback, LightningModule, MisconfigurationException

SERIES = np.random.default_rng(0).lognormal(0.0, 0.1, 40)
SERIES[[11, 24, 30]] *= [8.0, 30.0, 5.5]
SERIES[35:] *= 20.0  # a level that stays


class Scripted(LightningModule):
    """The k-th gradient has the k-th norm of a list, spread over two micro-batches of two samples and over ranks."""

    def __init__(self, norms=SERIES):
        super().__init__()
        self.norms = norms
        self.weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def training_step(self, batch, batch_idx):
        norm = self.norms[self.global_step]
        direction = torch.ones(4, dtype=torch.float64) / 2
        sizes = torch.tensor([1.0, 2.0 + batch_idx % 2 + self.global_rank]) * norm
        samples = torch.tensor([0, 1]) + 2 * (batch_idx % 2) + 10 * self.global_rank
        return {
            "loss": norm * (self.weight @ direction),
            "velocity_grad_norm": sizes,
            "step": torch.tensor([3, 4]),
            "sample": samples,
        }

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches():
    return torch.utils.data.DataLoader(torch.zeros(4 * len(SERIES), 1), batch_size=1)


def expected(norms, window, patience, ratio, sigmas):
    """Ratios by step and the steps that are spikes, by numpy."""
    ratios, spikes = {}, []
    for k, norm in enumerate(norms):
        before = norms[:k][np.isfinite(norms[:k])][-window:]
        if not np.isfinite(norm):
            spikes.append(k)
            if len(before) >= patience:
                ratios[k] = np.inf
        elif len(before) >= patience:
            middle = np.median(before)
            ratios[k] = norm / middle
            sigma = 1.4826 * np.median(np.abs(before - middle))
            if norm >= ratio * middle and norm - middle > sigmas * sigma:
                spikes.append(k)
    return ratios, spikes


def run(make_trainer, callback, norms=SERIES, ckpt=None, extra=(), **options):
    options = {"max_epochs": -1, "max_steps": len(norms), "accumulate_grad_batches": 2, **options}
    trainer = make_trainer(callback, *extra, **options)
    weights_only = {"weights_only": True} if ckpt else {}
    trainer.fit(Scripted(norms), batches(), ckpt_path=ckpt, **weights_only)
    return trainer


@pytest.mark.filterwarnings("ignore:gradient spike")
@pytest.mark.parametrize(
    ("window", "patience", "ratio", "sigmas"), [(10, 5, 5.0, 6.0), (15, 15, 7.0, 6.0), (10, 5, 2.0, 200.0)]
)
def test_ratios_and_spikes_are_those_of_numpy(make_trainer, recorder, window, patience, ratio, sigmas):
    norms = SERIES.copy()
    norms[[17, 18]] = np.nan, np.inf
    run(make_trainer, GradientSpikes(ratio, sigmas, window, patience), norms, logger=recorder, gradient_clip_val=0.01)
    ratios, spikes = expected(norms, window, patience, ratio, sigmas)
    assert 2 < len(spikes) < 13
    assert dict(recorder.values("gradient/spike_ratio")) == pytest.approx(ratios, rel=1e-5)
    counts = [sum(s <= k for s in spikes) for k in range(len(norms))]
    assert recorder.values("gradient/spikes") == list(enumerate(counts))


def test_the_warning_names_the_norm_its_baseline_and_the_sample(make_trainer):
    callback = GradientSpikes(window=10, patience=10, names=("step", "sample"))
    with pytest.warns(UserWarning, match="gradient spike") as warned:
        run(make_trainer, callback)
    (line,) = (str(w.message) for w in warned if "gradient spike at step 25" in str(w.message))
    before = SERIES[14:24]
    middle = np.median(before)
    sigma = 1.4826 * np.median(np.abs(before - middle))
    assert line == (
        f"gradient spike at step 25: norm {SERIES[24]:.4g} is {SERIES[24] / middle:.3g} times that of the last 10 "
        f"(median {middle:.4g}, robust standard deviation {sigma:.2g}); the largest velocity_grad_norm, "
        f"{3 * SERIES[24]:.4g}, is at step 4, sample 3"
    )


@pytest.mark.filterwarnings("ignore:gradient spike")
def test_a_skipped_update_does_not_enter_the_window(make_trainer, recorder):
    class Skip(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            pl_module.zero_grad()

    callback = GradientSpikes(patience=2)
    trainer = make_trainer(Skip(), callback, logger=recorder, max_steps=4, max_epochs=-1)
    trainer.fit(Scripted(), batches())
    assert recorder.values("gradient/spikes") == []
    assert callback.state_dict()["norms"] == []


@pytest.mark.filterwarnings("ignore:gradient spike")
@pytest.mark.parametrize("batch", [41, 42])  # in the middle of an accumulation, and after one
def test_a_resumed_run_warns_as_an_uninterrupted_one(make_trainer, recorder, tmp_path, batch):
    class Save(Callback):
        def on_train_batch_end(self, trainer, *args):
            if args[3] == batch - 1:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def made():
        return GradientSpikes(window=10, patience=5, names=("sample",))

    full, resumed = made(), made()
    run(make_trainer, full, extra=[Save()])
    checkpoint = torch.load(tmp_path / "middle.ckpt", weights_only=True)
    state = next(s for name, s in checkpoint["callbacks"].items() if "GradientSpikes" in name)
    largest = state["largest"] and [state["largest"][0], state["largest"][1]["sample"]]
    assert largest == (pytest.approx([SERIES[20] * 2.0, 1.0], rel=1e-6) if batch == 41 else None)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    if batch == 42:  # this module keeps no gradients of an accumulation
        run(make_trainer, resumed, ckpt=tmp_path / "middle.ckpt")
        assert resumed.state_dict() == full.state_dict()
        assert full.spikes > 0


def test_a_gradient_after_none_at_all_is_infinitely_larger(make_trainer):
    callback = GradientSpikes(patience=2, size=None)
    with pytest.warns(UserWarning, match="gradient spike at step 4: norm 1 is inf times that of the last 3"):
        run(make_trainer, callback, np.array([0.0, 0.0, 0.0, 1.0]))
    assert math.isinf(callback.last_ratio)


@pytest.mark.parametrize("settings", [{"ratio": 1.0}, {"sigmas": 0.0}, {"patience": 1}, {"window": 5, "patience": 6}])
def test_arguments_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"GradientSpikes: .*{next(iter(settings))}="):
        GradientSpikes(**settings)


def test_a_missing_key_is_one_clear_line(make_trainer):
    with pytest.raises(MisconfigurationException, match=r"no output 'row'.*GradientSpikes\(names=\.\.\.\)"):
        run(make_trainer, GradientSpikes(names=("row",)))


def _fit(rank, make_trainer, recorder):
    logged = type(recorder)()
    callback = GradientSpikes(window=10, patience=5, names=("sample",))
    with pytest.warns(UserWarning, match="gradient spike") if rank == 0 else _nothing() as warned:
        run(make_trainer, callback, strategy="ddp", devices=2, logger=logged)
    ratios, spikes = expected(SERIES, 10, 5, 5.0, 6.0)
    assert callback.spikes == len(spikes)
    if rank == 0:
        assert dict(logged.values("gradient/spike_ratio")) == pytest.approx(ratios, rel=1e-5)
        (line,) = (str(w.message) for w in warned if "step 25" in str(w.message))
        assert line.endswith(f"the largest velocity_grad_norm, {4 * SERIES[24]:.4g}, is at sample 13")  # of rank 1


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_two_ranks_find_the_largest_sample_of_both(make_trainer, recorder, two_processes):
    two_processes(_fit, make_trainer, recorder)

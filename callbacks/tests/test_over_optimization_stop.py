import json

import pytest
import torch
from guardlit_callbacks import OverOptimizationStop
from guardlit_callbacks.tools.lightning import LightningModule, MisconfigurationException

HACKED = [  # proxy, gold, lower end; one evaluation after each step
    (0.50, 1.00, 0.97),
    (0.60, 1.05, 1.02),  # the best
    (0.70, 1.02, 0.99),  # within the noise: sqrt(.03^2 + .03^2) = .042
    (0.80, 1.00, 0.97),
    (0.90, 0.95, 0.92),
    (0.95, 0.90, 0.87),
    (0.96, 0.85, 0.82),
    (0.97, 0.80, 0.77),
]


class Scripted(LightningModule):
    """Logs the evaluations it is given, one after each optimizer step."""

    def __init__(self, evaluations, drop=()):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.evaluations, self.drop = evaluations, drop

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        values = dict(
            zip(("gold/proxy", "gold/average", "gold/average_low"), self.evaluations[self.global_step - 1], strict=True)
        )
        self.log_dict({key: value for key, value in values.items() if key not in self.drop}, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)]


def one_batch():
    return torch.utils.data.DataLoader(torch.zeros(1, 1))


def run(make_trainer, stop, evaluations=HACKED, module=None, ckpt=None, **options):
    trainer = make_trainer(stop, **{"max_epochs": len(evaluations), **options})
    trainer.fit(
        module or Scripted(evaluations), one_batch(), one_batch(), ckpt_path=ckpt, weights_only=True if ckpt else None
    )
    return trainer


@pytest.mark.filterwarnings("ignore:over-optimization")
@pytest.mark.parametrize(("patience", "stopped_at"), [(1, 4), (2, 5), (3, 6), (5, 8)])
def test_stops_after_patience_evaluations_beyond_the_noise(make_trainer, patience, stopped_at):
    assert run(make_trainer, OverOptimizationStop(patience=patience)).global_step == stopped_at


def test_it_warns_with_the_reason_and_writes_the_evaluations(make_trainer, recorder, tmp_path):
    line = (
        "over-optimization: from step 2 to 6 gold/proxy rose from 0.6 to 0.95 while gold/average fell from 1.05 to 0.9 "
        "(noise 0.042), 3 evaluations in a row; training stops"
    )
    with pytest.warns(UserWarning, match="over-optimization") as warned:
        run(make_trainer, OverOptimizationStop(), default_root_dir=tmp_path)
    assert [str(w.message) for w in warned if "over-opt" in str(w.message)] == [line]
    evidence = json.loads((tmp_path / "lightning_logs/version_0/over_optimization.json").read_text())
    assert (evidence["reason"], evidence["action"], len(evidence["evaluations"])) == (line, "stop", 6)
    assert evidence["evaluations"][1] == pytest.approx({"step": 2, "proxy": 0.6, "gold": 1.05, "noise": 0.03}, rel=1e-5)


@pytest.mark.filterwarnings("ignore:over-optimization")
def test_counts_are_logged(make_trainer, recorder):
    run(make_trainer, OverOptimizationStop(patience=2, action="warn"), logger=recorder)
    # it acts at steps 5 and 7, and counts again
    assert recorder.values("over_optimization/count") == list(enumerate([0.0, 0, 0, 1, 2, 1, 2, 1], start=1))


@pytest.mark.filterwarnings("ignore:over-optimization")
def test_lower_lr_also_holds_under_a_scheduler(make_trainer):
    trainer = run(make_trainer, OverOptimizationStop(patience=2, action="lower_lr", lr_factor=0.5))
    assert trainer.global_step == len(HACKED)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**2)


@pytest.mark.parametrize(
    ("evaluations", "options"),
    [
        ([(p, 1 + p, 0.9 + p) for p, _, _ in HACKED], {}),  # both rise
        ([(1 - p, g, low) for p, g, low in HACKED], {}),  # both fall: worse, but not over-optimized
        ([(p, g, g - 0.3) for p, g, _ in HACKED], {}),  # the fall is within the noise
        (HACKED, {"min_proxy_gain": 0.4}),
        (HACKED, {"min_gold_drop": 0.3}),
        ([*HACKED[:5], (0.95, 1.04, 1.01), *HACKED[6:]], {}),  # a recovery starts the count again
    ],
)
def test_other_runs_continue(make_trainer, evaluations, options):
    trainer = run(make_trainer, OverOptimizationStop(patience=3, **options), evaluations)
    assert trainer.global_step == len(evaluations)


@pytest.mark.filterwarnings("ignore:over-optimization")
def test_without_an_interval_min_gold_drop_is_required(make_trainer):
    with pytest.raises(ValueError, match="min_gold_drop"):
        OverOptimizationStop(gold_low=None)
    stop = OverOptimizationStop(gold_low=None, min_gold_drop=0.12, patience=1)
    assert run(make_trainer, stop, module=Scripted(HACKED, drop=("gold/average_low",))).global_step == 6


@pytest.mark.parametrize(
    ("options", "line"),
    [({"patience": 0}, "patience"), ({"action": "shout"}, "'shout'"), ({"lr_factor": 1.5}, "lr_factor")],
)
def test_arguments_out_of_range_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        OverOptimizationStop(**options)


@pytest.mark.filterwarnings("ignore:over-optimization")
def test_a_resumed_run_stops_where_an_uninterrupted_one_does(make_trainer, tmp_path):
    first = run(make_trainer, OverOptimizationStop(), max_epochs=5)
    first.save_checkpoint(tmp_path / "at5.ckpt")
    resumed = run(make_trainer, OverOptimizationStop(), ckpt=tmp_path / "at5.ckpt")
    assert (first.global_step, resumed.global_step) == (5, 6)


def test_a_missing_key_is_one_clear_line(make_trainer):
    with pytest.raises(
        MisconfigurationException, match=r"'gold/proxy' was not logged in validation, only gold/average, "
    ) as error:
        run(make_trainer, OverOptimizationStop(), module=Scripted(HACKED, drop=("gold/proxy",)))
    assert "OverOptimizationStop(proxy=...)" in str(error.value)
    assert "\n" not in str(error.value)


def _fit(rank, make_trainer):
    trainer = run(make_trainer, OverOptimizationStop(), strategy="ddp", devices=2)
    assert trainer.global_step == 6


@pytest.mark.filterwarnings("ignore:over-optimization")
def test_two_ranks_stop_at_the_same_step(make_trainer, two_processes):
    two_processes(_fit, make_trainer)

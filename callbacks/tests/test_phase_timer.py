import pytest
from guardlit_callbacks import PhaseTimer, phase_timer
from guardlit_callbacks.tools.lightning import Callback, MisconfigurationException


class Clock:
    """Time that passes only where the test says."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(phase_timer, "perf_counter", clock)
    return clock


def timed(small_module, clock):
    """Waiting for a batch takes 1 s (rollout 0.75), an update 2 s (reward 0.5), a validation batch 3 s."""

    class Timed(small_module):
        def __init__(self):
            super().__init__()
            self.phase_seconds, self.images_made = {"rollout": 5.0}, 7

        def rounds(self, batches):
            outer = self

            class Loader:
                def __len__(self):
                    return len(batches)

                def __iter__(self):
                    for batch in batches:
                        clock.now += 1.0
                        outer.phase_seconds["rollout"] += 0.75
                        outer.images_made += 10
                        yield batch

            return Loader()

        def training_step(self, x, batch_idx):
            clock.now += 2.0
            self.phase_seconds["reward"] = self.phase_seconds.get("reward", 0.0) + 0.5
            return super().training_step(x, batch_idx)

        def validation_step(self, x, batch_idx):
            clock.now += 3.0

    return Timed()


def test_generic_phases(small_module, loader, make_trainer, recorder, clock):
    module = timed(small_module, clock)
    make_trainer(PhaseTimer(), logger=recorder, max_epochs=2).fit(module, module.rounds(list(loader(4))), loader(2))
    epoch = {"data": 4.0, "update": 8.0, "validation": 6.0}
    assert recorder.keys("time/") == sorted(
        [f"time/{p}_{unit}" for p in epoch for unit in ("seconds", "share")] + ["time/epoch_seconds"]
    )
    for phase, seconds in epoch.items():
        assert [v for _, v in recorder.values(f"time/{phase}_seconds")] == pytest.approx([seconds, seconds])
        assert [v for _, v in recorder.values(f"time/{phase}_share")] == pytest.approx([seconds / 18] * 2)
    assert [v for _, v in recorder.values("time/epoch_seconds")] == pytest.approx([18.0, 18.0])


def test_the_modules_phases_are_reported_separately(small_module, loader, make_trainer, recorder, clock):
    module = timed(small_module, clock)
    timer = PhaseTimer("phase_seconds", "images_made", flops_per_sample=9e10, peak_flops=1e12)
    make_trainer(timer, logger=recorder, max_epochs=2).fit(module, module.rounds(list(loader(4))), loader(2))
    epoch = {"data": 1.0, "rollout": 3.0, "update": 6.0, "reward": 2.0, "validation": 6.0}
    for phase, seconds in epoch.items():
        assert [v for _, v in recorder.values(f"time/{phase}_seconds")] == pytest.approx([seconds, seconds])
    assert [v for _, v in recorder.values("time/samples_per_second")] == pytest.approx([40 / 18] * 2)
    assert [v for _, v in recorder.values("time/mfu")] == pytest.approx([0.2, 0.2])


def test_validation_alone_logs_nothing(small_module, loader, make_trainer, recorder, clock):
    module = timed(small_module, clock)
    make_trainer(PhaseTimer(), logger=recorder).validate(module, loader(1), verbose=False)
    assert recorder.keys() == []


def test_sanity_check_is_not_counted(small_module, loader, make_trainer, recorder, clock):
    module = timed(small_module, clock)
    trainer = make_trainer(PhaseTimer(), logger=recorder, num_sanity_val_steps=2)
    trainer.fit(module, module.rounds(list(loader(1))), loader(2))
    assert recorder.values("time/epoch_seconds")[0][1] == pytest.approx(1 + 2 + 6)


def test_two_ranks_sum_the_throughput(small_module, loader, make_trainer, two_processes, clock, tmp_path):
    class Check(Callback):
        def on_train_end(self, trainer, pl_module):
            metrics = trainer.callback_metrics
            text = f"{metrics['time/samples_per_second']:.4f} {metrics['time/update_seconds']:.4f}"
            (tmp_path / str(trainer.global_rank)).write_text(text)

    def train(rank):
        module = timed(small_module, clock)
        timer = PhaseTimer(samples="images_made")
        trainer = make_trainer(timer, Check(), devices=2, strategy="ddp", use_distributed_sampler=False)
        trainer.fit(module, module.rounds(list(loader(4))))

    two_processes(train)
    rate = 2 * 40 / 12
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == f"{rate:.4f} {8.0:.4f}"


def test_what_is_missing_is_named(small_module, loader, make_trainer):
    with pytest.raises(ValueError, match="give all three"):
        PhaseTimer(flops_per_sample=1e9)
    with pytest.raises(MisconfigurationException, match=r"no attribute 'seconds'; .* PhaseTimer\(phases=\.\.\.\)"):
        make_trainer(PhaseTimer(phases="seconds")).fit(small_module(), loader(1))
    with pytest.raises(MisconfigurationException, match="'global_step' of the module is a int, not a mapping"):
        make_trainer(PhaseTimer(phases="global_step")).fit(small_module(), loader(1))

from types import SimpleNamespace

import pytest
from guardlit_callbacks.bases.validation import ValidationCallback, is_partial, log_validation


class Sums(ValidationCallback[float]):
    """Keeps a value per batch and reports their sum."""

    def __init__(self):
        super().__init__()
        self.sums = []

    def collect(self, outputs):
        return [outputs["value"]]

    def report(self, trainer, pl_module, ranks):
        self.sums.append([sum(rows) for rows in ranks])
        log_validation(trainer, pl_module, {"sum": self.sums[-1][0]})


@pytest.fixture
def validating(small_module):
    class Validating(small_module):
        def validation_step(self, x, batch_idx):
            return {"value": float(batch_idx + 10 * self.global_step)}

    return Validating


def test_a_sanity_check_on_some_batches_is_partial():
    assert is_partial(SimpleNamespace(sanity_checking=True, num_sanity_val_steps=2))
    assert not is_partial(SimpleNamespace(sanity_checking=True, num_sanity_val_steps=float("inf")))
    assert not is_partial(SimpleNamespace(sanity_checking=False, num_sanity_val_steps=2))


@pytest.mark.parametrize("steps", [0, 1, -1])
def test_each_full_validation_is_reported_on_its_own_rows(validating, loader, make_trainer, recorder, steps):
    callback = Sums()
    trainer = make_trainer(callback, num_sanity_val_steps=steps, max_epochs=2, logger=recorder, limit_train_batches=2)
    trainer.fit(validating(), loader(), loader(2))
    expected = [[1.0 + 20 * step] for step in ((0, 2, 4) if steps == -1 else (2, 4))]
    assert callback.sums == expected
    assert [value for _, value in recorder.values("sum")] == [value for (value,) in expected]


def test_callbacks_see_what_a_sanity_check_logs(validating, loader, make_trainer, recorder):
    seen = {}

    class Look(Sums):
        def on_validation_end(self, trainer, pl_module):
            seen.update(trainer.callback_metrics)

    trainer = make_trainer(Look(), num_sanity_val_steps=-1, logger=recorder, max_steps=0)
    trainer.fit(validating(), loader(), loader(2))
    assert seen["sum"] == 1.0


def test_a_validation_without_rows_reports_nothing(small_module, loader, make_trainer):
    class Empty(Sums):
        def collect(self, outputs):
            return []

    callback = Empty()
    make_trainer(callback).validate(small_module(), loader(2), verbose=False)
    assert callback.sums == []

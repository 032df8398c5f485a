"""The KL from the base: closed forms, exact over ranks and resumes, and one line for what cannot be right."""

import csv
import math

import pytest
import torch
from guardlit_callbacks import KLFromBase, gaussian_step_kl
from guardlit_callbacks.tools.lightning import MisconfigurationException
from torch.distributions import Normal, kl_divergence

GAINS, STDS = (-0.5, -0.25, -0.125), (1.0, 0.5, 0.25)
MOVE = 0.5
"""The module below moves by this in each optimizer step, in every latent element."""


def closed_form(updates, factors=(1.0,)):
    """KL of each step by hand, for samples with two latent elements that are moved by a factor each."""
    moves = [updates * MOVE * factor for factor in factors]
    return [[2 * (g * move) ** 2 / (2 * s**2) for g, s in zip(GAINS, STDS, strict=True)] for move in moves]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_kl_of_two_gaussians(dtype):
    difference = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    gain, std = torch.tensor([-0.5, -0.1, 2.0]), torch.tensor([0.25, 1.0, 3.0])
    found = gaussian_step_kl(difference, gain, std)
    wide, scale = gain.double()[:, None, None] * difference.double(), std.double()[:, None, None]
    exact = kl_divergence(Normal(wide, scale), Normal(torch.zeros_like(wide), scale)).sum((1, 2))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(gaussian_step_kl(difference, -0.1, 1.0)[1], exact[1], rtol=1e-6, atol=0)
    assert gaussian_step_kl(torch.zeros(2, 4), 1.0, 0.5).tolist() == [0, 0]


def test_a_sample_needs_elements():
    with pytest.raises(ValueError, match=r"difference must be \(B, \.\.\.\), found \(3,\)"):
        gaussian_step_kl(torch.zeros(3), 1.0, 1.0)


def mover(small_module, **changes):
    """A module whose velocity moves by a known amount; sample `x[0]` moves 1 + x[0] times as far."""

    class Mover(small_module):
        def validation_step(self, x, batch_idx):
            updates = self.global_step
            moved = (updates * MOVE * (1 + x[:, :1])).expand(-1, 2)
            kl = [gaussian_step_kl(moved, gain=g, std=s) for g, s in zip(GAINS, STDS, strict=True)]
            return {"kl_from_base": torch.stack(kl, dim=1), "row": x[:, 0].long(), **changes}

    return Mover()


def rows(n, size=1):
    data = torch.arange(float(n))[:, None].expand(-1, 4)
    return torch.utils.data.DataLoader(data, batch_size=size)


def table(folder):
    """`kl.csv` as numbers, and its header."""
    with (folder / "kl.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        return [{key: float(value) for key, value in row.items()} for row in reader], reader.fieldnames


def test_logged_values_by_hand(small_module, loader, make_trainer, recorder, tmp_path):
    options = {"max_epochs": 2, "num_sanity_val_steps": -1, "logger": recorder}
    callback = KLFromBase(per_step=True)
    make_trainer(callback, **options).fit(mover(small_module), loader(), rows(3, size=2))
    expected = []
    for updates in (0, 8, 16):
        by_sample = closed_form(updates, factors=(1, 2, 3))
        total = sum(map(sum, by_sample)) / 3
        expected.append({"step": updates, "from_base": total, "sqrt_from_base": math.sqrt(total)})
        for t, column in enumerate(zip(*by_sample, strict=True)):
            logged = dict(recorder.values(f"kl/from_base/t{t:02d}"))
            assert logged[updates] == pytest.approx(sum(column) / 3, rel=1e-12)
    assert expected[0]["from_base"] == 0
    for key in ("from_base", "sqrt_from_base"):
        values = [(row["step"], pytest.approx(row[key], rel=1e-12)) for row in expected]
        assert recorder.values(f"kl/{key}") == values
    assert recorder.keys("kl/") == ["kl/from_base", *(f"kl/from_base/t0{t}" for t in range(3)), "kl/sqrt_from_base"]
    found, header = table(next(tmp_path.rglob("kl.csv")).parent)
    assert header == ["step", "from_base", "sqrt_from_base"]
    assert found == callback.history  # bit for bit
    assert found == [{key: pytest.approx(value, rel=1e-12) for key, value in row.items()} for row in expected]


def test_steps_are_logged_only_if_asked_for(small_module, loader, make_trainer, recorder):
    make_trainer(KLFromBase(), logger=recorder).fit(mover(small_module), loader(), rows(1))
    assert recorder.keys("kl/") == ["kl/from_base", "kl/sqrt_from_base"]


def test_it_can_be_monitored_and_validated_alone(small_module, make_trainer):
    trainer = make_trainer(KLFromBase())
    (logged,) = trainer.validate(mover(small_module), rows(1), verbose=False)
    assert logged == {"kl/from_base": 0, "kl/sqrt_from_base": 0}
    assert {"kl/from_base", "kl/sqrt_from_base"} <= trainer.callback_metrics.keys()


def test_a_repeated_sample_counts_once(small_module, loader, make_trainer, recorder):
    repeated = torch.utils.data.DataLoader(torch.tensor([0.0, 2, 0, 2, 2])[:, None].expand(-1, 4), batch_size=2)
    make_trainer(KLFromBase(index="row"), logger=recorder).fit(mover(small_module), loader(), repeated)
    one, three = map(sum, closed_form(8, factors=(1, 3)))
    assert recorder.values("kl/from_base") == [(8, pytest.approx((one + three) / 2, rel=1e-12))]


# ranks and resumes ---------------------------------------------------------------------------------------------------


def _fit(rank, make_trainer, small_module, loader, folder, world, epochs=2, ckpt=None):
    callback = KLFromBase(index="row")
    options = {"strategy": "ddp", "devices": world} if world > 1 else {}
    trainer = make_trainer(
        callback, max_epochs=epochs, num_sanity_val_steps=-1, default_root_dir=folder, limit_train_batches=4, **options
    )
    weights_only = {"weights_only": True} if ckpt else {}
    trainer.fit(mover(small_module), loader(), rows(5), ckpt_path=ckpt, **weights_only)
    trainer.save_checkpoint(folder / "last.ckpt")
    torch.save(callback.history, folder / f"history_{rank}.pt")


def test_two_ranks_and_a_resume_on_another_number_of_ranks_give_the_numbers_of_one(
    small_module, loader, make_trainer, two_processes, tmp_path
):
    """Five samples, of which two ranks get three each: the sampler repeats one."""
    arguments = (make_trainer, small_module, loader)
    _fit(0, *arguments, tmp_path / "one", 1)
    two_processes(_fit, *arguments, tmp_path / "two", 2, 1)
    _fit(0, *arguments, tmp_path / "resumed", 1, 2, tmp_path / "two/last.ckpt")
    two_processes(_fit, *arguments, tmp_path / "wide", 2, 2, tmp_path / "two/last.ckpt")
    one = torch.load(tmp_path / "one/history_0.pt")
    assert [row["step"] for row in one] == [0, 4, 8]
    assert one[-1]["from_base"] == pytest.approx(sum(map(sum, closed_form(8, range(1, 6)))) / 5, rel=1e-12)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"two/history_{rank}.pt") == one[:2]
        assert torch.load(tmp_path / f"wide/history_{rank}.pt") == one
    assert torch.load(tmp_path / "resumed/history_0.pt") == one
    files = [next((tmp_path / name).rglob("kl.csv")).read_bytes() for name in ("one", "resumed", "wide")]
    assert files[0] == files[1] == files[2]


def test_a_resumed_run_drops_the_rows_of_later_steps(small_module, loader, make_trainer, tmp_path):
    callback = KLFromBase()
    callback.load_state_dict({"history": [{"step": s, "from_base": 1.0, "sqrt_from_base": 1.0} for s in (0, 4, 8, 12)]})
    make_trainer(callback).fit(mover(small_module), loader(), rows(1))
    assert [row["step"] for row in callback.history] == [0, 4, 8]
    assert callback.history[-1]["from_base"] == pytest.approx(sum(closed_form(8)[0]))


# what cannot be right ------------------------------------------------------------------------------------------------

MISSING = r"KLFromBase: no output 'kl_from_base': .*has only 'row'; .*KLFromBase\(kl=\.\.\.\)$"
WRONG = [
    ({"kl_from_base": torch.zeros(2)}, r"the output 'kl_from_base' is \(2,\); it must be \(B, T\)"),
    ({"kl_from_base": torch.zeros(2, 0)}, r"the output 'kl_from_base' is \(2, 0\); it must be \(B, T\)"),
    ({"kl_from_base": [0.0]}, "the output 'kl_from_base' is a list, not a tensor"),
    ({"row": torch.zeros(3)}, r"the output 'row' is \(3,\) for 2 images"),
    ({"kl_from_base": torch.tensor([[1.0, 2.0], [1.0, math.nan]])}, "the KL of sample 1 at step 1 is nan; it must be"),
    ({"kl_from_base": torch.tensor([[1.0, 2.0], [math.inf, 2.0]])}, "the KL of sample 1 at step 0 is inf; it must be"),
    ({"kl_from_base": torch.tensor([[1.0, -2.0], [1.0, 2.0]])}, r"the KL of sample 0 at step 1 is -2\.0; it must be"),
]


@pytest.mark.parametrize(("changes", "line"), WRONG, ids=range(len(WRONG)))
def test_wrong_outputs_are_one_line(small_module, make_trainer, recorder, tmp_path, changes, line):
    callback = KLFromBase(index="row", per_step=True)
    trainer = make_trainer(callback, logger=recorder)
    with pytest.raises(MisconfigurationException, match=f"^KLFromBase: {line}") as error:
        trainer.validate(mover(small_module, **changes), rows(2, size=2), verbose=False)
    assert "\n" not in str(error.value)
    assert recorder.keys("kl/") == []  # never a number
    assert callback.history == []
    assert list(tmp_path.rglob("kl.csv")) == []


def test_a_missing_key_is_one_line(small_module, make_trainer):
    class Without(small_module):
        def validation_step(self, x, batch_idx):
            return {"row": x[:, 0]}

    with pytest.raises(MisconfigurationException, match=MISSING):
        make_trainer(KLFromBase()).validate(Without(), rows(1), verbose=False)
    with pytest.raises(MisconfigurationException, match=r"the step returned NoneType, not a dictionary"):
        make_trainer(KLFromBase()).validate(small_module(), rows(1), verbose=False)


def test_batches_of_other_lengths_are_refused(small_module, make_trainer):
    class Uneven(small_module):
        def validation_step(self, x, batch_idx):
            return {"kl_from_base": torch.ones(1, 2 + batch_idx)}

    with pytest.raises(MisconfigurationException, match=r"has \[2, 3\] columns; every batch must have the same steps"):
        make_trainer(KLFromBase()).validate(Uneven(), rows(2), verbose=False)


def test_the_modules_error_at_the_end_of_the_epoch_wins(small_module, make_trainer):
    """A module that finds out why a value is NaN says so itself."""

    class Knows(small_module):
        def validation_step(self, x, batch_idx):
            return {"kl_from_base": torch.tensor([[math.nan]])}

        def on_validation_epoch_end(self):
            raise RuntimeError("the weights are broken")

    with pytest.raises(RuntimeError, match="the weights are broken"):
        make_trainer(KLFromBase()).validate(Knows(), rows(1), verbose=False)


def _refused(rank, make_trainer, small_module, folder):
    class OneBad(small_module):
        def validation_step(self, x, batch_idx):
            return {"kl_from_base": torch.where(x[:, :1] == 1, math.nan, x[:, :1])}

    with pytest.raises(MisconfigurationException, match="the KL of sample 1 at step 0 is nan") as error:
        make_trainer(KLFromBase(), strategy="ddp", devices=2).validate(OneBad(), rows(4), verbose=False)
    (folder / f"line_{rank}.txt").write_text(str(error.value))


def test_a_bad_value_on_one_rank_raises_on_all(small_module, make_trainer, two_processes, tmp_path):
    two_processes(_refused, make_trainer, small_module, tmp_path)
    one, other = ((tmp_path / f"line_{rank}.txt").read_text() for rank in (0, 1))
    assert one == other


@pytest.mark.parametrize(("steps", "validations"), [(1, 1), (-1, 2)])
def test_only_a_full_sanity_check_counts(small_module, loader, make_trainer, recorder, steps, validations):
    trainer = make_trainer(KLFromBase(), logger=recorder, num_sanity_val_steps=steps)
    trainer.fit(mover(small_module), loader(), rows(2))
    assert len(recorder.values("kl/from_base")) == validations

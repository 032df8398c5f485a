import warnings
from importlib import import_module

import numpy as np
import pytest
import torch
from guardlit_callbacks import GradientNorm, SyncDDP
from guardlit_callbacks.gradient_norm import total_norm
from guardlit_callbacks.tools.lightning import LightningModule, MisconfigurationException
from toy_flow import STEPS, Rounds, Spy, ToyFlow, transitions

CHECKPOINTS = import_module(GradientNorm.__mro__[2].__module__.rsplit(".", 1)[0])


def measuring(**options):
    return GradientNorm(**{"parameters_every": 1, "draw_every": 0, "per_step": True, **options})


def load(folder, number=1):
    (path,) = folder.rglob(f"gradient/round_{number:05d}.npz")
    return dict(np.load(path))


class GradientSpy(Spy):
    """Each micro-batch's own gradient, straight from autograd."""

    def __init__(self):
        super().__init__()
        self.gradients = []

    def on_before_backward(self, trainer, pl_module, loss):
        (gradient,) = torch.autograd.grad(loss, pl_module.velocity, retain_graph=True)
        self.gradients.append(gradient * trainer.accumulate_grad_batches)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 6])
def test_norms_per_step_equal_autograds(make_trainer, tmp_path, accumulate):
    spy = GradientSpy()
    make_trainer(spy, measuring(), accumulate_grad_batches=accumulate).fit(ToyFlow(), Rounds(transitions()))
    arrays = load(tmp_path)
    norms = [float(gradient.norm()) for gradient in spy.gradients]
    np.testing.assert_allclose(arrays["parameters"], norms, rtol=1e-6)
    assert arrays["parameter_step"].tolist() == [0, 1, 2, 0, 1, 2]
    per_update = [torch.stack(spy.gradients[i : i + accumulate]).mean(0).norm() for i in range(0, 6, accumulate)]
    np.testing.assert_allclose(arrays["norm_before"], per_update, rtol=1e-6)
    columns = spy.columns()
    order = np.lexsort((columns["velocity_grad_norm"], columns["step"]))
    assert np.array_equal(arrays["velocity"], columns["velocity_grad_norm"][order])


def test_logged_keys_and_values(make_trainer, recorder):
    spy = GradientSpy()
    make_trainer(spy, measuring(parameters_every=2), logger=recorder, max_epochs=2).fit(
        ToyFlow(), Rounds(transitions())
    )
    velocity = [f"gradient/velocity/t{t:02d}" for t in range(STEPS)]
    parameters = [f"gradient/parameters/t{t:02d}" for t in range(STEPS)]
    totals = [f"gradient/{name}" for name in ("clipped", "norm_after_clipping", "norm_before_clipping", "zero_share")]
    ratios = ["gradient/velocity/max_over_min", "gradient/parameters/max_over_min"]
    assert recorder.keys("gradient/") == sorted([*velocity, *parameters, *totals, *ratios])
    assert [step for step, _ in recorder.values(velocity[0])] == [6, 12]
    assert [step for step, _ in recorder.values(parameters[0])] == [6, 12]  # the first round and the last
    columns = spy.columns(0, 6)
    means = [columns["velocity_grad_norm"][columns["step"] == t].mean() for t in range(STEPS)]
    assert [recorder.values(key)[0][1] for key in velocity] == pytest.approx(means, rel=1e-6)
    assert recorder.values(ratios[0])[0][1] == pytest.approx(max(means) / min(means), rel=1e-5)
    assert recorder.values("gradient/zero_share")[0][1] == pytest.approx(2 / 3)  # a step has one of three velocities
    norms = [(spy.gradients[t].norm() + spy.gradients[t + 3].norm()) / 2 for t in range(STEPS)]
    assert [recorder.values(key)[0][1] for key in parameters] == pytest.approx([float(n) for n in norms], rel=1e-6)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_norms_before_and_after_clipping(make_trainer, recorder, algorithm):
    spy, limit = GradientSpy(), 0.2
    options = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}
    make_trainer(spy, measuring(), logger=recorder, **options).fit(ToyFlow(), Rounds(transitions()))
    norms = np.array([float(gradient.norm()) for gradient in spy.gradients])
    assert 0 < (norms > limit).sum() < 6  # each gradient has one element that is not 0: both algorithms do the same
    assert recorder.values("gradient/norm_before_clipping")[0][1] == pytest.approx(norms.mean(), rel=1e-5)
    assert recorder.values("gradient/norm_after_clipping")[0][1] == pytest.approx(
        norms.clip(max=limit).mean(), rel=1e-4
    )
    assert recorder.values("gradient/clipped")[0][1] == pytest.approx((norms > limit).mean())


def test_training_is_not_changed(make_trainer):
    velocities = []
    for callbacks in ([], [measuring()]):
        module = ToyFlow()
        make_trainer(*callbacks, accumulate_grad_batches=2, gradient_clip_val=0.2).fit(module, Rounds(transitions()))
        velocities.append(module.velocity.detach())
    assert torch.equal(*velocities)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_round_resumed_in_its_middle_is_complete(make_trainer, tmp_path, at):
    def run(folder, ckpt=None, every=None):
        save = CHECKPOINTS.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=every, save_top_k=-1)
        options = {"enable_checkpointing": bool(every), "accumulate_grad_batches": 2, "gradient_clip_val": 0.2}
        trainer = make_trainer(
            measuring(), *([save] if every else []), default_root_dir=folder, max_epochs=2, **options
        )
        trainer.fit(ToyFlow(), Rounds(transitions()), ckpt_path=ckpt, weights_only=True if ckpt else None)

    run(tmp_path / "full", every=1)
    run(tmp_path / "resumed", ckpt=tmp_path / "full" / f"step={at}.ckpt")
    for number in (1, 2):
        full, resumed = load(tmp_path / "full", number), load(tmp_path / "resumed", number)
        assert full.keys() == resumed.keys()
        assert all(np.array_equal(full[name], resumed[name]) for name in full)


def _fit(rank, make_trainer, folder, strategy):
    options = {"strategy": strategy(), "devices": 2} if strategy else {}
    trainer = make_trainer(measuring(), accumulate_grad_batches=3, default_root_dir=folder, **options)
    trainer.fit(ToyFlow(), Rounds(transitions()))


def test_two_ranks_write_what_one_writes(make_trainer, two_processes, tmp_path):
    _fit(0, make_trainer, tmp_path / "one", None)
    two_processes(_fit, make_trainer, tmp_path / "two", SyncDDP)
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-6)


def _refused(rank, make_trainer):
    trainer = make_trainer(measuring(), strategy="ddp", devices=2, accumulate_grad_batches=3)
    with pytest.raises(MisconfigurationException, match=r"strategy to guardlit_callbacks\.SyncDDP"):
        trainer.fit(ToyFlow(), Rounds(transitions()))
    trainer = make_trainer(measuring(parameters_every=0), strategy="ddp", devices=2, accumulate_grad_batches=3)
    trainer.fit(ToyFlow(), Rounds(transitions()))


def test_ddp_that_hides_micro_batches_is_refused(make_trainer, two_processes):
    two_processes(_refused, make_trainer)


def test_micro_batches_that_mix_steps_are_refused(make_trainer):
    mixed = transitions()
    mixed[1]["step"][0] = 2
    with pytest.raises(MisconfigurationException, match="micro-batches of one denoising step"):
        make_trainer(measuring()).fit(ToyFlow(), Rounds(mixed))
    make_trainer(measuring(parameters_every=0)).fit(ToyFlow(), Rounds(mixed))


class Sharded(LightningModule):
    """A linear layer, sharded where the strategy shards."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 4)

    def configure_model(self):
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if self.device_mesh is not None and not isinstance(self.layer, FSDPModule):
            fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        mine = slice(self.global_rank, None, self.trainer.world_size)
        x = torch.stack([batch["noise"], batch["advantage"], batch["noise"] ** 2], 1).float()[mine]
        return {"loss": self.layer(x).square().mean(), "step": batch["step"][mine]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit_sharded(rank, make_trainer, folder, sharded):
    strategies = import_module(CHECKPOINTS.__name__.replace("callbacks", "strategies"))
    strategy = strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if sharded else "auto"
    options = {"strategy": strategy, "devices": 2 if sharded else 1, "default_root_dir": folder}
    callback = measuring(velocity=None)
    make_trainer(callback, accumulate_grad_batches=3, **options).fit(Sharded(), Rounds(transitions()))


def test_sharded_parameters_give_their_full_norm(make_trainer, two_processes, tmp_path):
    _fit_sharded(0, make_trainer, tmp_path / "one", False)
    two_processes(_fit_sharded, make_trainer, tmp_path / "two", True)
    one, two = load(tmp_path / "one"), load(tmp_path / "two")
    assert len(one["parameters"]) == 6
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5)


def _sharded_norm(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    full = [torch.arange(6.0).reshape(3, 2), torch.full((4,), 2.0)]
    sharded = distribute_tensor(full[0], mesh, [Shard(0)])
    expected = torch.cat([w.flatten() for w in full]).norm()
    torch.testing.assert_close(total_norm([sharded, None, full[1]]), expected)
    torch.distributed.destroy_process_group()


def test_sharded_and_unsharded_gradients_have_one_norm(two_processes):
    two_processes(_sharded_norm)
    assert total_norm([]) == 0


def test_a_missing_key_is_one_clear_line(make_trainer):
    with pytest.raises(
        MisconfigurationException, match=r"'velocity_grad_norm'.*'log_ratio'.*GradientNorm\(velocity="
    ) as error:
        make_trainer(GradientNorm()).fit(ToyFlow(drop=("velocity_grad_norm",)), Rounds(transitions()))
    assert "\n" not in str(error.value)
    make_trainer(GradientNorm(velocity=None)).fit(ToyFlow(drop=("velocity_grad_norm",)), Rounds(transitions()))


def test_figure(make_trainer, tmp_path):
    make_trainer(
        measuring(draw_every=1),
        logger=import_module(CHECKPOINTS.__name__.replace("callbacks", "loggers")).CSVLogger(
            tmp_path, name="", version=""
        ),
    ).fit(ToyFlow(), Rounds(transitions()))
    assert (tmp_path / "gradient" / "round_00001.png").stat().st_size > 10_000


class Underflow(ToyFlow):
    """A gradient so small that float16 makes exact zeros of a part of it, unless the loss scale lifts it."""

    def __init__(self):
        super().__init__(lr=0.0)
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(32, 32)
        self.drop = ()

    def training_step(self, batch, batch_idx):
        out = super().training_step(batch, batch_idx)
        x = torch.randn(4, 32, generator=torch.Generator().manual_seed(batch_idx))
        out["loss"] = out["loss"].float() * 0 + self.layer(x).float().square().mean() * 1e-9
        return out


@pytest.mark.parametrize(("scale", "warns"), [(2.0**10, True), (2.0**24, False)])
def test_it_warns_once_where_float16_underflows(make_trainer, recorder, scale, warns):
    plugins = import_module(CHECKPOINTS.__name__.replace("callbacks", "plugins"))
    precision = plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
    trainer = make_trainer(GradientNorm(draw_every=0), logger=recorder, max_epochs=3, plugins=[precision])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Underflow(), Rounds(transitions()))
    said = [str(w.message) for w in caught if "float16 underflows" in str(w.message)]
    assert len(said) == warns
    shares = [share for _, share in recorder.values("gradient/zero_share")]
    assert len(shares) == 3
    assert all((share > 0.05) == warns for share in shares)


class Skipping(ToyFlow):
    """Drops the gradients of its second update."""

    def on_before_optimizer_step(self, optimizer):
        if self.trainer.global_step == 1:
            self.zero_grad(set_to_none=True)


def test_a_skipped_update_leaves_no_row(make_trainer, tmp_path):
    make_trainer(measuring(), accumulate_grad_batches=2).fit(Skipping(), Rounds(transitions()))
    arrays = load(tmp_path)
    assert [len(arrays[name]) for name in ("norm_before", "norm_after", "zero_share")] == [2, 2, 2]

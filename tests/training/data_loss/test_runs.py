"""Complete runs with the flow-matching loss on images: its gradient, its logs, its cache, and resuming."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from families import FAMILIES
from image_folders import CAPTIONS, write_images
from runs import EVERY_UPDATE, config, differing, guardlit, newest

from guardlit.commands.plan import planned
from guardlit.data.image_pairs import load_pairs
from guardlit.planning.estimate import estimate
from guardlit.policies import LoRA, SD3Policy
from guardlit.training.data_loss.draw import DataDraw

WEIGHT = 0.5
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}


def run(folder: Path, model: Path, **changes: object) -> Path:
    """The YAML of a run that is held by the images of `folder/images`."""
    images = folder / "images"
    if not images.exists():
        write_images(images)
    loss = {"weight": WEIGHT, "images": str(images), **changes.pop("loss", {})}
    return config(folder, model, model__data_loss=loss, model__reward="brightness.Brightness", **changes)


def logged(folder: Path, key: str) -> dict[int, float]:
    """The values of a key by step."""
    with min(folder.rglob("metrics.csv")).open() as file:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row.get(key)}


def settings_of(path: Path, text: str) -> dict:
    """The settings of a run's Trainer, with those of a YAML text."""
    own = yaml.safe_load(path.read_text())["trainer"]
    del own["callbacks"]  # an empty list, to which the text adds
    return own | yaml.safe_load(text)["trainer"]


@torch.enable_grad()
def oracle(
    path: Path, model: Path, pairs: int, state: dict[str, torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and its gradient by the adapter's B (A is the checkpoint's, B still 0), all in float64.

    Written out for the first update: v(x_t, sigma) of the network without guidance against noise - x_0.
    """
    policy = SD3Policy(str(model), 32, LoRA(4, 8.0), max_sequence_length=16, cache=None)
    policy.load()
    policy.encode(CAPTIONS)
    policy.load_state_dict({k.removeprefix("policy."): v for k, v in state.items() if "lora_A" in k}, strict=False)
    data = load_pairs(str(path.parent / "images"), (32, 32))
    draw = DataDraw(42, len(CAPTIONS), pairs, 1)
    sigmas = policy.sigmas(5)[:4]  # of 5 steps, 4 are trained
    x0 = torch.stack([policy.encode_images(data.pixels(i)[None])[0] for i in draw.indices(0, 0, range(pairs))]).double()
    texts = policy.conditioning([CAPTIONS[i] for i in draw.indices(0, 0, range(pairs))])
    noise = draw.noise(0, 0, range(pairs), x0.shape[1:]).double()
    sigma = sigmas[(draw.quantiles(0, 0, range(pairs)) * 4).floor().long()]
    policy.transformer.double()
    s = sigma[:, None, None, None]
    velocity = policy._predict((1 - s) * x0 + s * noise, sigma, {k: v.double() for k, v in texts.items()})
    loss = ((velocity - (noise - x0)) ** 2).mean()
    trained = {f"policy.{k}": p for k, p in policy.named_parameters() if p.requires_grad and "lora_B" in k}
    return float(loss.detach()), dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@pytest.mark.parametrize("micro_batch", [1, 8, 32])
def test_an_update_descends_the_mean_over_its_pairs(micro_batch: int, sd3_folder: Path, tmp_path: Path):
    """Advantages are made negligible; with 6 pairs, 32 micro-batches have none or one, 4 have one or two, 1 has all."""
    path = run(
        tmp_path,
        sd3_folder,
        loss={"pairs_per_update": 6},
        model__advantage={"eps": 1e12},
        model__optimizer=SGD,
        data__updates_per_round=1,
        data__inner_epochs=1,
        data__micro_batch=micro_batch,
        data__rollout_batch=4,
        data__val=None,
        model__objective={"class_path": "GRPOGuard", "init_args": {"clip_range": None}},
        trainer__max_epochs=1,
        trainer__gradient_clip_val=1e9,
        trainer__callbacks=[],
    )
    assert guardlit("fit", "--config", path) == 0
    state = torch.load(newest(tmp_path), weights_only=True)["state_dict"]
    loss, gradients = oracle(path, sd3_folder, 6, state)
    assert logged(tmp_path, "train/data_loss")[1] == pytest.approx(loss, rel=1e-5)
    assert logged(tmp_path, "train/loss")[1] == pytest.approx(WEIGHT * loss, rel=1e-5)
    largest = max(float(g.abs().max()) for g in gradients.values())
    assert gradients.keys() == {name for name in state if "lora_B" in name}
    for name, gradient in gradients.items():
        torch.testing.assert_close(-state[name].double(), WEIGHT * gradient, rtol=1e-3, atol=1e-4 * WEIGHT * largest)


def test_a_run_resumes_within_a_round_bit_for_bit(sd3_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Also where it is cut elsewhere in its data set, whose latents are then in the cache and are not encoded again."""
    cache = {"model__policy__init_args__cache": str(tmp_path / "cache")}
    path = run(tmp_path, sd3_folder, trainer__callbacks=[EVERY_UPDATE], trainer__max_epochs=2, data__val=None, **cache)
    assert guardlit("fit", "--config", path) == 0
    assert "data loss: 7 images are encoded" in caplog.text
    caplog.clear()
    whole = tmp_path / "runs/version_0"
    for stop in (3, 4):
        resumed = tmp_path / f"resumed_{stop}"
        options = ("--ckpt_path", whole / f"checkpoints/update_{stop}.ckpt", "--trainer.default_root_dir", resumed)
        assert guardlit("fit", "--config", path, *options) == 0
        assert differing(whole / "checkpoints/update_8.ckpt", newest(resumed, "update_8.ckpt")) == []
        for key in ("train/data_loss", "train/data_loss_base", "train/data_loss_rise"):
            before, after = logged(whole, key), logged(resumed, key)
            assert after == {step: value for step, value in before.items() if step > stop}, key
            assert after
    assert "images are encoded" not in caplog.text
    write_images(tmp_path / "images", seed=1, texts=CAPTIONS[:2])  # two other images
    assert guardlit("fit", "--config", path, "--trainer.max_epochs", 1) == 0  # an older run's base is not taken over
    assert "data loss: 2 images are encoded" in caplog.text


def test_the_loss_is_measured_on_fixed_pairs(sd3_folder: Path, tmp_path: Path, recwarn, caplog):
    """A step against the images raises it, which is warned about once."""
    away = {"class_path": "torch.optim.SGD", "init_args": {"lr": 100.0, "maximize": True}}
    settings = {"trainer__callbacks": [], "trainer__gradient_clip_val": 1e9, "model__advantage": {"eps": 1e12}}
    path = run(tmp_path, sd3_folder, model__optimizer=away, data__val=None, **settings)
    assert guardlit("fit", "--config", path) == 0
    base, rises = logged(tmp_path, "train/data_loss_base"), logged(tmp_path, "train/data_loss_rise")
    assert list(rises) == [4, 8, 12]
    assert len(set(base.values())) == 1
    assert 0.1 < rises[4] < rises[8] < rises[12]
    assert len([w for w in recwarn if "the loss on the data has risen by" in str(w.message)]) == 1
    assert f"data loss: {base[4]:.4g} on 4 pairs" in caplog.text
    page = (Path(__file__).parents[3] / "docs/over_optimization.md").read_text()
    (callbacks,) = re.findall(r"```yaml\n(trainer:\n  callbacks\+:[^`]*EarlyStopping[^`]*)```", page, re.DOTALL)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"trainer": settings_of(path, callbacks)}))
    assert guardlit("fit", "--config", path) == 0
    assert list(logged(tmp_path / "runs/version_1", "train/data_loss_rise")) == [4]  # stopped


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_make_the_updates_of_one(strategy: str, sd3_folder: Path, tmp_path: Path):
    """With timesteps as Stable Diffusion 3 was trained, and a micro-batch that divides one rank's pairs unevenly."""
    paths, sgd = {}, {"class_path": "torch.optim.SGD", "init_args": {"lr": 10.0}}
    loss = {"timesteps": "logit_normal", "pairs_per_update": 6}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sizes = {"data__micro_batch": 2, "data__rollout_batch": 2, "data__val": None, "trainer__max_epochs": 1}
        paths[name] = run(tmp_path / name, sd3_folder, loss=loss, model__optimizer=sgd, trainer__callbacks=[], **sizes)
    assert guardlit("fit", "--config", paths["one"]) == 0
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    here = ("--trainer.devices", "2", "--trainer.strategy", strategy)
    ranks = [sys.executable, *command, "-m", "guardlit", "fit", "--config", str(paths["two"]), *here]
    path = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(ranks, env={**os.environ, **path}, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for key in ("train/data_loss", "train/data_loss_base", "train/data_loss_rise"):
        one, two = (logged(tmp_path / name, key) for name in ("one", "two"))
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5), key
    one, two = (torch.load(newest(tmp_path / name), weights_only=True)["state_dict"] for name in ("one", "two"))
    moved = max(float(v.abs().max()) for k, v in one.items() if "lora_B" in k)
    assert moved > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4 * moved)


def test_without_it_a_run_is_as_it_was(sd3_folder: Path, tmp_path: Path):
    """A weight of almost nothing changes nothing but the logs: the draws take no random number of the run."""
    for name, loss in (("with", {"weight": 1e-30}), ("without", None)):
        (tmp_path / name).mkdir()
        path = run(tmp_path / name, sd3_folder, loss=loss or {}, trainer__max_epochs=1, data__val=None)
        if loss is None:
            settings = yaml.safe_load(path.read_text())
            del settings["model"]["data_loss"]
            path.write_text(yaml.safe_dump(settings))
        assert guardlit("fit", "--config", path) == 0
    assert differing(newest(tmp_path / "with"), newest(tmp_path / "without"), ("state_dict", "optimizer_states")) == []


@pytest.mark.parametrize("name", ["flux", "qwen_image", "flux2_klein"])
def test_every_family_trains_on_images(name: str, tiny, tmp_path: Path):
    write_images(tmp_path / "images", side=64)
    family = FAMILIES[name]
    settings = {"class_path": family.policy.__name__, "init_args": {"model": str(tiny(name)), "resolution": 64}}
    settings["init_args"] |= {"lora": {"rank": 4, "alpha": 8.0}, "max_sequence_length": family.length, "cache": None}
    path = run(tmp_path, tiny(name), model__policy=settings, data__val=None, trainer__max_epochs=1)
    assert guardlit("fit", "--config", path) == 0
    losses = logged(tmp_path, "train/data_loss")
    assert len(losses) == 4
    assert all(0.5 < value < 10 for value in losses.values())  # a random network: |noise - x_0|^2 and more


MISTAKES = {
    "no images": ({"images": None}, "model.data_loss.images is not set: name a folder of images"),
    "too small": ({}, "0.png is 16 x 16 pixels, smaller than the run's 32 x 32"),
    "no weight": ({"weight": 0}, "model.data_loss.weight=0.0 must be positive and finite"),
}


@pytest.mark.parametrize("command", ["fit", "plan"])
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_before_a_model_loads(name: str, command: str, sd3_folder: Path, tmp_path: Path, capsys):
    write_images(tmp_path / "images", side=16 if name == "too small" else 32)
    loss, expected = MISTAKES[name]
    path = run(tmp_path, Path("no/model"), loss=loss)
    assert guardlit(command, "--config", path) == 2
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_plan_counts_the_pairs(sd3_folder: Path, tmp_path: Path):
    """4 updates of 4 pairs on 8 images are two passes an image, as two of its 8 trained transitions are."""
    arguments = ["--config", str(run(tmp_path, sd3_folder))]
    with_loss = estimate(planned(arguments))
    without = estimate(planned([*arguments, "--model.data_loss=null"]))
    more = with_loss.compute.training - without.compute.training
    measured = 0.5 * without.compute.forward  # the fixed pairs, once a round
    assert more - measured == pytest.approx(without.compute.training * 2 / 8, rel=1e-6)
    assert (
        with_loss.memory.parts["training forward and backward"] > without.memory.parts["training forward and backward"]
    )
    assert with_loss.latents == 7 * 16 * 4 * 4 * 4
    assert planned(arguments).encoded == planned([*arguments, "--model.data_loss=null"]).encoded + 7


def test_the_base_model_s_own_drawings_are_a_data_set(sd3_folder: Path, tmp_path: Path):
    path = run(tmp_path, sd3_folder, trainer__max_epochs=1, data__val=None)
    out = tmp_path / "drawings"
    assert guardlit("sample", "--config", path, "--prompts", "a red car", "two dogs", "--n", 2, "--out", out) == 0
    assert load_pairs(str(out), (32, 32)).texts == ("a red car", "a red car", "two dogs", "two dogs")
    assert guardlit("fit", "--config", path, "--model.data_loss.images", out) == 0

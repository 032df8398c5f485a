import csv
import json
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest
import torch
from guardlit_callbacks import GoldScore, OverOptimizationStop, bootstrap, composite
from guardlit_callbacks.tools.lightning import Callback, LightningModule, MisconfigurationException
from torchmetrics import Metric

CHECKPOINTS = import_module(Callback.__module__.rsplit(".", 1)[0])
LOGGERS = import_module(CHECKPOINTS.__name__.replace("callbacks", "loggers"))
PROMPTS = ["a red cup", "a blue cup", "two cups", "no cup"]


@dataclass
class Result:
    values: torch.Tensor
    valid: torch.Tensor


class Brightness:
    """Mean of the image's red channel over 255."""

    name = "bright"
    device = None

    def __init__(self, fail_on: str | None = None):
        self.fail_on = fail_on

    def setup(self, device: torch.device) -> None:
        assert self.device is None, "set up twice"
        self.device = device

    def score(self, request):
        assert self.device is not None
        assert len(request) == len(request.metadata)
        values = request.images[:, 0].float().mean((1, 2)) / 255
        return Result(values, torch.tensor([prompt != self.fail_on for prompt in request.prompts]))


class PixelMetric(Metric):
    """A torchmetrics mean over samples: the blue channel, plus the prompt's length."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images, prompts):
        for image, prompt in zip(images, prompts, strict=True):
            self.total += image[2].float().mean() + len(prompt)
            self.seen += 1

    def compute(self):
        return self.total / self.seen


class ImageMetric(PixelMetric):
    """The blue channel alone."""

    def update(self, images):
        self.total += images[:, 2].float().mean((1, 2)).sum()
        self.seen += len(images)


class Painter(LightningModule):
    """Paints each prompt in one color that depends on the step: red fades after step 4, the reward always rises."""

    def __init__(self, peak=4, drop=()):
        super().__init__()
        self.weight, self.peak, self.drop = torch.nn.Parameter(torch.zeros(())), peak, drop

    def red(self, step, i):
        return 100 + 10 * i + 5 * step - (15 * (step - self.peak) if step > self.peak else 0)

    def training_step(self, batch, batch_idx):
        return self.weight * 0.0 + self.weight**2

    def validation_step(self, rows, batch_idx):
        images = torch.zeros(len(rows), 3, 4, 4, dtype=torch.uint8)
        for row, i in enumerate(rows.tolist()):
            images[row, 0], images[row, 2] = self.red(self.global_step, i), 50 + i
        outputs = {
            "images": images,
            "prompts": [PROMPTS[i] for i in rows.tolist()],
            "metadata": [{}] * len(rows),
            "reward": 0.5 + 0.01 * self.global_step + 0.1 * rows,
            "row": rows,
        }
        return {name: value for name, value in outputs.items() if name not in self.drop}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def train_rows():
    return torch.utils.data.DataLoader(torch.zeros(2, 1), batch_size=1)


def prompt_rows(batch_size=3):
    return torch.utils.data.DataLoader(torch.arange(len(PROMPTS)), batch_size=batch_size)


def run(make_trainer, *callbacks, module=None, **options):
    trainer = make_trainer(*callbacks, **{"max_epochs": 4, "num_sanity_val_steps": -1, **options})
    trainer.fit(module or Painter(), train_rows(), prompt_rows())
    return trainer


def bright(step):
    return [Painter().red(step, i) / 255 for i in range(4)]


PIXEL = [50 + i + len(prompt) for i, prompt in enumerate(PROMPTS)]


def test_logged_keys_and_values(make_trainer, recorder):
    gold = GoldScore({"bright": Brightness(), "pixel": PixelMetric()})
    trainer = run(make_trainer, gold, logger=recorder)
    scores = ["gold/average", "gold/average_high", "gold/average_low", "gold/bright", "gold/pixel", "gold/proxy"]
    scores += ["gold/proxy_std"]
    assert recorder.keys("gold/") == scores
    assert [row["step"] for row in gold.history] == [0, 2, 4, 6, 8]
    base = {"bright": np.mean(bright(0)), "pixel": np.mean(PIXEL)}
    order = sorted(range(4), key=PROMPTS.__getitem__)
    for row, (_, logged) in zip(gold.history, recorder.values("gold/average"), strict=True):
        means = {"bright": np.mean(bright(row["step"])), "pixel": np.mean(PIXEL)}
        assert row["average"] == pytest.approx(composite(means, base), rel=1e-6)
        assert logged == pytest.approx(row["average"], rel=1e-6)
        assert row["proxy"] == pytest.approx(0.65 + 0.01 * row["step"], rel=1e-6)
        assert row["proxy_std"] == pytest.approx(np.std([0.0, 0.1, 0.2, 0.3]), rel=1e-5)  # over the four images
        values = {"bright": np.array(bright(row["step"]))[order], "pixel": np.array(PIXEL, float)[order]}
        bases = {"bright": np.array(bright(0))[order], "pixel": np.array(PIXEL, float)[order]}
        interval = bootstrap(values, bases)
        assert (row["average_low"], row["average_high"]) == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert gold.history[0]["average"] == 1.0
    assert gold.history[2]["average"] > 1.0 > gold.history[4]["average"]
    assert float(trainer.callback_metrics["gold/average"]) == pytest.approx(gold.history[-1]["average"])


def test_scores_stand_at_the_number_of_updates_as_the_files_do(make_trainer, recorder):
    gold = GoldScore([Brightness()])
    run(make_trainer, gold, logger=recorder)
    steps = [step for step, _ in recorder.values("gold/average")]
    assert steps == [row["step"] for row in gold.history] == [0, 2, 4, 6, 8]


def test_validate_returns_the_scores(make_trainer):
    trainer = make_trainer(GoldScore([Brightness()]))
    (returned,) = trainer.validate(Painter(), prompt_rows(), verbose=False)
    assert returned["gold/bright"] == pytest.approx(np.mean(bright(0)))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (
            (-0.2, -0.1, -0.4, -0.3),
            r"base score of 'signed' must be a positive number, got -0.25: score / base",
        ),
        ((0.1, -0.05, 0.0, 0.01), r"base score of 'signed' is too close to 0 to divide by"),
    ],
)
def test_a_base_that_nothing_can_be_divided_by_is_refused_in_one_line(make_trainer, scores, message):
    class Signed(Brightness):
        def score(self, request):
            found = dict(zip(PROMPTS, scores, strict=True))
            values = torch.tensor([found[prompt] for prompt in request.prompts])
            return Result(values, torch.ones(len(values), dtype=torch.bool))

    with pytest.raises(MisconfigurationException, match=rf"^GoldScore\(average=\['bright', 'signed'\]\): .*{message}"):
        run(make_trainer, GoldScore({"bright": Brightness(), "signed": Signed()}))
    scorers = {"bright": Brightness(), "signed": Signed()}
    run(make_trainer, GoldScore(scorers, average=["bright"]), max_epochs=1)  # as the message says


def test_a_metric_of_images_alone(make_trainer):
    gold = GoldScore([ImageMetric()])
    run(make_trainer, gold, max_epochs=1)
    assert gold.history[-1]["imagemetric"] == 51.5


def test_files(make_trainer, tmp_path):
    logger = LOGGERS.TensorBoardLogger(tmp_path, name="", version="")
    run(make_trainer, GoldScore([Brightness()]), logger=logger)
    rows = list(csv.DictReader((tmp_path / "gold.csv").open()))
    assert list(rows[0]) == ["step", "bright", "average", "average_low", "average_high", "proxy", "proxy_std"]
    assert [float(row["bright"]) for row in rows] == pytest.approx(
        [np.mean(bright(s)) for s in (0, 2, 4, 6, 8)], rel=1e-6
    )
    arrays = np.load(tmp_path / "gold" / "step_00000008.npz")
    assert arrays["prompt"].tolist() == sorted(PROMPTS)
    by_prompt = dict(zip(PROMPTS, bright(8), strict=True))
    assert arrays["bright"].tolist() == pytest.approx([by_prompt[prompt] for prompt in sorted(PROMPTS)], rel=1e-6)
    assert (tmp_path / "gold.png").stat().st_size > 10_000


def test_model_checkpoint_keeps_the_best_gold(make_trainer, tmp_path):
    save = CHECKPOINTS.ModelCheckpoint(tmp_path, monitor="gold/average", mode="max", filename="{step}")
    run(make_trainer, save, GoldScore([Brightness()]), enable_checkpointing=True)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=4.ckpt"]
    assert float(save.best_model_score) == pytest.approx(np.mean(bright(4)) / np.mean(bright(0)), rel=1e-6)


def test_lower_is_better_and_a_given_base(make_trainer):
    gold = GoldScore({"far": Brightness()}, base={"far": 0.5}, lower_is_better=["far"], proxy=None)
    run(make_trainer, gold, max_epochs=1)
    averages = [0.5 / np.mean(bright(step)) for step in (0, 2)]
    assert [row["average"] for row in gold.history] == pytest.approx(averages, rel=1e-6)
    assert all(row["average_low"] < row["average"] < row["average_high"] for row in gold.history)
    assert "proxy" not in gold.history[0]


def test_without_step_0_the_first_evaluation_is_the_base_and_a_warning_says_so(make_trainer):
    gold = GoldScore([Brightness()])
    with pytest.warns(UserWarning, match="no evaluation at step 0, so scores are relative to the one at step 2"):
        run(make_trainer, gold, num_sanity_val_steps=1)
    assert [row["step"] for row in gold.history] == [2, 4, 6, 8]
    assert gold.history[0]["average"] == 1.0


def test_a_failed_gold_score_raises(make_trainer):
    with pytest.raises(MisconfigurationException, match=r"'bright' failed on 1 of 4 images.*'two cups'.*never dropped"):
        run(make_trainer, GoldScore([Brightness(fail_on="two cups")]))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"average": ["hps"]}, "average 'hps' is not a scorer; there are 'bright'"),
        ({"base": {"hps": 1.0}}, "base 'hps' is not a scorer"),
        ({"base": {}}, "average 'bright' has no value in base"),
        ({"lower_is_better": ["x"]}, "lower_is_better 'x' is not a scorer"),
    ],
)
def test_unknown_names_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        GoldScore([Brightness()], **options)


def test_scorers_need_distinct_names():
    with pytest.raises(ValueError, match="two scorers have the same name"):
        GoldScore([Brightness(), Brightness()])
    with pytest.raises(ValueError, match="scorers is empty"):
        GoldScore([])
    with pytest.raises(ValueError, match="cannot be named 'proxy'"):
        GoldScore({"proxy": Brightness()})


def test_a_missing_key_and_wrong_images_are_one_clear_line(make_trainer):
    with pytest.raises(
        MisconfigurationException, match=r"no output 'reward'.*'images', 'prompts'.*GoldScore\(proxy=\.\.\.\)"
    ):
        run(make_trainer, GoldScore([Brightness()]), module=Painter(drop=("reward",)))
    with pytest.raises(
        MisconfigurationException,
        match=r"'row' is \(3,\) int64; images must be \(B, 3, height, width\), uint8 or f",
    ):
        run(make_trainer, GoldScore([Brightness()], images="row"))


def test_resume_continues_the_history(make_trainer, tmp_path):
    whole, resumed = GoldScore([Brightness()]), GoldScore([Brightness()])
    save = CHECKPOINTS.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_epochs=1)
    run(make_trainer, whole, save, enable_checkpointing=True)
    trainer = make_trainer(resumed, max_epochs=4, num_sanity_val_steps=-1)
    trainer.fit(Painter(), train_rows(), prompt_rows(), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    assert resumed.history == whole.history


def _fit(rank, make_trainer, folder, devices):
    options = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    gold = GoldScore({"bright": Brightness(), "pixel": PixelMetric()}, index="row")
    trainer = make_trainer(
        gold, max_epochs=1, num_sanity_val_steps=-1, default_root_dir=folder, limit_train_batches=1, **options
    )
    trainer.fit(Painter(), train_rows(), prompt_rows(batch_size=3 if devices > 1 else 4))
    if rank == 0:
        (folder / "history.json").write_text(json.dumps(gold.history))


def test_two_ranks_score_what_one_scores(make_trainer, two_processes, tmp_path):
    _fit(0, make_trainer, tmp_path / "one", 1)
    two_processes(_fit, make_trainer, tmp_path / "two", 2)
    assert json.loads((tmp_path / "one" / "history.json").read_text()) == json.loads(
        (tmp_path / "two" / "history.json").read_text()
    )


def _fail(rank, make_trainer):
    trainer = make_trainer(
        GoldScore([Brightness(fail_on=PROMPTS[0])]), strategy="ddp", devices=2, num_sanity_val_steps=-1
    )
    with pytest.raises(MisconfigurationException, match="failed on 1 of 4 images"):
        trainer.fit(Painter(), train_rows(), prompt_rows(2))


def test_a_failure_on_one_rank_raises_on_all(make_trainer, two_processes):
    two_processes(_fail, make_trainer)


class Spread:
    """Mean red of a prompt's images but the image's own: depends on all of them, and on their order's end."""

    name, compares_images = "spread", True

    def __init__(self):
        self.requests = []

    def setup(self, device):
        pass

    def score(self, request):
        self.requests.append(request.prompts)
        red = request.images[:, 0].float().mean((1, 2))
        return ((red.sum() - red) / (len(red) - 1)).tolist()


class Groups(Painter):
    """Four prompts of three images each, image i of prompt i % 4, so that every batch mixes prompts."""

    def validation_step(self, rows, batch_idx):
        outputs = super().validation_step(rows % 4, batch_idx)
        outputs["images"][:, 0] = (10 * rows).to(torch.uint8)[:, None, None]
        return {**outputs, "row": rows}


def group_rows(batch_size):
    return torch.utils.data.DataLoader(torch.arange(12), batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [12, 5, 1])
def test_scorers_that_compare_images_see_all_of_a_prompt_whatever_the_batches(make_trainer, batch_size):
    spread = Spread()
    gold = GoldScore([spread, Brightness()])
    make_trainer(gold).validate(Groups(), group_rows(batch_size), verbose=False)
    assert sorted(spread.requests) == [[prompt] * 3 for prompt in sorted(PROMPTS)]
    assert gold.history[0]["spread"] == pytest.approx(np.mean(np.arange(12) * 10))
    assert gold.history[0]["bright"] == pytest.approx(np.mean(np.arange(12) * 10) / 255)


def test_a_single_image_cannot_be_compared(make_trainer):
    with pytest.raises(MisconfigurationException, match=r"'spread' compares the images of a prompt, .* two or more"):
        make_trainer(GoldScore([Spread()])).validate(Painter(), prompt_rows(), verbose=False)


def _compare(rank, make_trainer, folder, devices):
    options = {"strategy": "ddp", "devices": devices} if devices > 1 else {}
    gold = GoldScore([Spread()], index="row")
    trainer = make_trainer(gold, default_root_dir=folder, **options)
    trainer.validate(Groups(), torch.utils.data.DataLoader(torch.arange(11), batch_size=2), verbose=False)
    if rank == 0:
        (folder / "history.json").write_text(json.dumps(gold.history))


def test_two_ranks_compare_the_images_of_one(make_trainer, two_processes, tmp_path):
    """Eleven images: the sampler repeats one, which must not be compared with itself."""
    _compare(0, make_trainer, tmp_path / "one", 1)
    two_processes(_compare, make_trainer, tmp_path / "two", 2)
    one, two = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert one[0]["spread"] != pytest.approx(np.mean(np.arange(12) * 10))


def test_metadata_are_optional_unless_they_are_named(make_trainer):
    gold = GoldScore([Brightness()])
    make_trainer(gold).validate(Painter(drop=("metadata",)), prompt_rows(), verbose=False)
    assert len(gold.history) == 1
    line = r"no output 'facts': .*GoldScore\(metadata=\.\.\.\), or GoldScore\(metadata=None\) to do without"
    with pytest.raises(MisconfigurationException, match=line):
        make_trainer(GoldScore([Brightness()], metadata="facts")).validate(Painter(), prompt_rows(), verbose=False)


class Collated(Painter):
    """Returns what a default collate function makes of a list of mappings, and one text for all images."""

    def validation_step(self, rows, batch_idx):
        outputs = super().validation_step(rows, batch_idx)
        return {**outputs, "metadata": {"a": [1] * len(rows)}, "text": "a cup", "column": outputs["reward"][:, None]}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "'metadata' is a dict; it must be a list of 3, one mapping per image"),
        ({"prompts": "text", "metadata": None}, "'text' is a str; it must be a list of 3, one text per image"),
        ({"proxy": "column", "metadata": None}, r"'column' is \(3, 1\) for 3 images; it must be \(3,\), one number"),
    ],
)
def test_what_does_not_belong_to_an_image_each_is_refused(make_trainer, options, line):
    with pytest.raises(MisconfigurationException, match=line):
        make_trainer(GoldScore([Brightness()], **options)).validate(Collated(), prompt_rows(), verbose=False)


def test_the_reason_of_a_failure_is_told(make_trainer):
    class Broken(Brightness):
        def score(self, request):
            result = super().score(request)
            result.valid[0], result.reason = False, "the server did not answer"
            return result

    with pytest.raises(MisconfigurationException, match=r"'a red cup' \(the server did not answer\); gold scores are"):
        make_trainer(GoldScore([Broken()])).validate(Painter(), prompt_rows(), verbose=False)


class Connected(Brightness):
    """Holds a connection; closing it may fail."""

    def __init__(self, broken=False, fail_on=None):
        super().__init__(fail_on)
        self.broken, self.closed = broken, 0

    def close(self):
        assert self.device is not None, "closed twice"
        self.device, self.closed = None, self.closed + 1
        if self.broken:
            raise OSError("the line is dead")


@pytest.mark.filterwarnings("ignore:GoldScore. no evaluation at step 0")
def test_scorers_are_closed_once_a_run(make_trainer):
    """One that cannot be closed is named and keeps no other one open; one that has no `close` is set up once."""
    scorers = {"broken": Connected(broken=True), "kept": Connected(), "plain": Brightness()}
    trainer = make_trainer(GoldScore(scorers, metadata=None), max_epochs=1)
    for closed in (1, 2):
        with pytest.warns(UserWarning, match="GoldScore: 'broken' could not be closed: the line is dead"):
            trainer.validate(Painter(), prompt_rows())
        assert [scorers[name].closed for name in ("broken", "kept")] == [closed, closed]


def test_after_an_error_scorers_are_closed_too(make_trainer):
    scorer = Connected(fail_on=PROMPTS[2])
    with pytest.raises(MisconfigurationException, match="gold scores are never dropped"):
        run(make_trainer, GoldScore({"kept": scorer}, metadata=None))
    assert scorer.closed == 1


def test_scorers_come_from_yaml():
    parser = pytest.importorskip("jsonargparse").ArgumentParser()
    parser.add_subclass_arguments(Callback, "callback")
    here = Brightness.__module__
    scorer, metric = {"class_path": f"{here}.Brightness"}, {"class_path": f"{here}.PixelMetric"}
    for scorers in ({"a": scorer, "b": metric}, [scorer, metric]):
        settings = {"class_path": "guardlit_callbacks.GoldScore", "init_args": {"scorers": scorers}}
        gold = parser.instantiate_classes(parser.parse_object({"callback": settings})).callback
        assert [type(s).__name__ for s in gold.scorers.values()] == ["Brightness", "PixelMetric"]


def test_stop_and_gold_together(make_trainer, tmp_path):
    stop = OverOptimizationStop(patience=2)
    module = Painter(peak=2)
    with pytest.warns(UserWarning, match="over-optimization: from step 2 to 6"):
        trainer = run(make_trainer, GoldScore([Brightness()]), stop, module=module, max_epochs=9)
    assert trainer.global_step == 6

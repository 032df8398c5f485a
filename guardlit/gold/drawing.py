"""Drawing: the images of every model with the noise of `guardlit validate`, each drawn once."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
from guardlit_callbacks import TrainableEMA
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from guardlit.errors import GuardlitError
from guardlit.gold.models import Model
from guardlit.gold.pictures import Picture, PictureFolder
from guardlit.training.encoding import EncodeFirst
from guardlit.types import Prompt

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule

RECORD, PROMPTS = "drawn.json", "prompts.jsonl"
FORMAT = 1
"""Version of the images' keys; another one draws all images again."""

Numbered = tuple[int, Prompt]


@dataclass(frozen=True)
class Drawn:
    """Models, prompts and settings of an output folder's images: all that scoring needs.

    Attributes:
        models: rows of the table, the base first.
        prompts: P of them; image i is of prompt i % P, as in validation.
        images_per_prompt: K; P x K images a model.
        sampling: settings that an image depends on, besides the model, prompt and index.
        facts: further provenance.
    """

    models: list[Model]
    prompts: list[Prompt]
    images_per_prompt: int
    sampling: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> list[Numbered]:
        """Number and prompt of every image, all prompts once, then again."""
        return list(enumerate(self.prompts * self.images_per_prompt))

    @property
    def prompts_sha256(self) -> str:
        """Of texts and metadata, in their order."""
        return hashlib.sha256("\n".join(map(_line, self.prompts)).encode()).hexdigest()

    def folder(self, out: Path, model: Model) -> PictureFolder:
        """Folder of a model's images, named by a hash of everything that decides them."""
        identity = {
            "format": FORMAT,
            "weights": (model.kind, model.weights, model.sha256),
            **({"base_steps": model.base_steps} if model.base_steps else {}),
            "sampling": {key: value for key, value in self.sampling.items() if key != "model"},  # its files count
            "prompts": [prompt.text for prompt in self.prompts],
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        return PictureFolder(out / "images" / key[:16])

    def pictures(self, out: Path, model: Model) -> list[Picture]:
        """All images of a model; raises `GuardlitError` where one is missing."""
        folder = self.folder(out, model)
        found = folder.find()
        if missing := [i for i, _ in self.images if i not in found]:
            raise GuardlitError(
                f"{folder.path}: {len(missing)} of {len(self.images)} images of '{model.label}' are missing or "
                f"corrupt, number {missing[0]} first; evaluate without --rescore to draw them"
            )
        return [Picture(*found[i], i, prompt) for i, prompt in self.images]

    def write(self, out: Path) -> None:
        """Write `drawn.json` and `prompts.jsonl`, which `read` reads."""
        document = {
            "models": [asdict(model) | {"folder": self.folder(Path(), model).path.name} for model in self.models],
            "images_per_prompt": self.images_per_prompt,
            "sampling": self.sampling,
            "facts": self.facts,
        }
        (out / PROMPTS).write_text("".join(f"{_line(prompt)}\n" for prompt in self.prompts), encoding="utf-8")
        (out / RECORD).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, out: Path) -> Drawn:
        """Read what an earlier evaluation drew; raises `GuardlitError` if there is none."""
        if not (out / RECORD).is_file():
            raise GuardlitError(f"{out} holds no {RECORD}: --rescore needs an evaluation that drew images there")
        try:
            document = json.loads((out / RECORD).read_text(encoding="utf-8"))
            rows = [json.loads(line) for line in (out / PROMPTS).read_text(encoding="utf-8").splitlines()]
            models = [Model(**{k: v for k, v in row.items() if k != "folder"}) for row in document["models"]]
            prompts = [Prompt(row["prompt"], row["metadata"]) for row in rows]
            return cls(models, prompts, document["images_per_prompt"], document["sampling"], document["facts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GuardlitError(f"{out / RECORD} is corrupt ({error}): evaluate again without --rescore") from error


def _line(prompt: Prompt) -> str:
    row = {"prompt": prompt.text, "metadata": dict(prompt.metadata)}
    return json.dumps(row, sort_keys=True, default=str)  # ASCII: a line is a line


Batches = list[list[Numbered]]


def missing_batches(drawn: Drawn, batch_size: int, out: Path) -> dict[Model, Batches]:
    """Batches of each model that the output folder lacks.

    Batches are those of `guardlit validate` on one rank. They depend neither on the world size nor on where an earlier
    call was interrupted: a missing image is drawn again with the others of its batch.

    Args:
        drawn: models and prompts.
        batch_size: images drawn at once on a rank.
        out: the output folder.
    """
    images, missing = drawn.images, {}
    batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    for model in drawn.models:
        found = drawn.folder(out, model).find()
        missing[model] = [batch for batch in batches if any(i not in found for i, _ in batch)]
    return missing


def draw(trainer: pl.Trainer, module: GRPOModule, drawn: Drawn, missing: Mapping[Model, Batches], out: Path) -> None:
    """Draw batches of each model. Collective: every rank must call it.

    Args:
        trainer: predicts, without its callbacks.
        module: policy and evaluation settings.
        drawn: models and prompts.
        missing: what to draw.
        out: the output folder.

    Raises:
        GuardlitError: weights that do not fit the policy, or a folder that cannot be written.
    """
    module.configure_model()
    for model in drawn.models:
        model.check(module.policy)
    # the base before the first checkpoint, which overwrites what trains
    for model in sorted(drawn.models, key=lambda m: ("base", "exported", "checkpoint").index(m.kind)):
        if missing[model]:
            total = sum(map(len, missing[model]))
            say(trainer, f"drawing {total} of {len(drawn.images)} images of {model.label}")
            _draw_model(trainer, module, model, missing[model], drawn.folder(out, model))
    trainer.strategy.barrier()


def _draw_model(trainer: pl.Trainer, module: GRPOModule, model: Model, batches: Batches, folder: PictureFolder) -> None:
    world, rank = trainer.world_size, trainer.global_rank
    rounds = -(-len(batches) // world)
    # every rank has equally many batches, which sharded weights require: the last one may be drawn twice
    mine = [batches[min(k * world + rank, len(batches) - 1)] for k in range(rounds)]
    loader: DataLoader[Any] = DataLoader(cast("Dataset[Any]", mine), batch_size=None, collate_fn=as_it_is)
    callbacks: list[pl.Callback] = [_Keep(folder, [prompt.text for batch in batches for _, prompt in batch])]
    weights: AbstractContextManager[None] = nullcontext()
    checkpoint = None
    if model.kind == "checkpoint":
        checkpoint = model.path
        callbacks += [TrainableEMA()] if model.weights == "ema" else []
    elif model.kind == "exported":
        weights = module.policy.exported(Path(str(model.path)))
    else:
        weights = module.policy.base()
    with weights, only(trainer, callbacks, model.label), _last_steps(module, model.base_steps):
        trainer.predict(module, loader, return_predictions=False, ckpt_path=checkpoint)


@contextmanager
def _last_steps(module: GRPOModule, base_steps: int) -> Iterator[None]:
    """Let the base model take the last steps, as a row of the table says and not the configuration."""
    before = module.evaluation
    module.evaluation = replace(before, base_steps=base_steps)
    try:
        yield
    finally:
        module.evaluation = before


class _Keep(EncodeFirst):
    """Writes each image after its batch."""

    def __init__(self, folder: PictureFolder, texts: list[str]) -> None:
        super().__init__(texts)
        self._folder = folder

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor,
        batch: list[Numbered],
        *_: Any,
    ) -> None:
        """Write one batch."""
        for (index, _prompt), image in zip(batch, outputs, strict=True):
            self._folder.write(index, image)


# used by drawing and scoring ------------------------------------------------------------------------------------


def say(trainer: pl.Trainer, message: str) -> None:
    """One line of progress."""
    if trainer.is_global_zero:
        print(message, file=sys.stderr, flush=True)


@contextmanager
def only(trainer: pl.Trainer, callbacks: list[pl.Callback], label: str) -> Iterator[None]:
    """Predict without the configuration's callbacks, with a progress bar on a terminal."""
    mine: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [*callbacks, _Kept(), *([_Bar(label)] if sys.stderr.isatty() else [])]  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            for meant in (".*callbacks used to create the checkpoint.*", ".*across ranks is zero.*"):
                warnings.filterwarnings("ignore", message=meant)
            yield
    finally:
        trainer.callbacks = mine  # type: ignore[attr-defined]


class _Kept(pl.Callback):
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt):
            say(trainer, "interrupted; finished images and scores are kept, and the same command resumes")


class _Bar(RichProgressBar):
    def __init__(self, label: str) -> None:
        super().__init__(refresh_rate=1, console_kwargs={"stderr": True})
        self._label = label

    @property
    def predict_description(self) -> str:
        return self._label


def as_it_is(batch: Any) -> Any:
    """Collate function of batches that are complete already."""
    return batch


def as_json(document: Mapping[str, Any]) -> str:
    """Content of a JSON file; NaN raises."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"

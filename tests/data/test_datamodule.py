"""The DataModule without a Trainer: which prompts a round has, what is read for it, and who validates which image."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guardlit.data.datamodule import ENCODE_ALL, ENCODE_ROUNDS, PromptDataModule
from guardlit.data.prompt_set import PromptSet
from guardlit.errors import GuardlitError
from guardlit.types import Prompt

SMALL = {"prompts_per_round": 3, "images_per_prompt": 2, "updates_per_round": 1, "micro_batch": 1}


class Runner:
    """What the DataModule asks of a module."""

    rollout = SimpleNamespace(window=None, available_steps=4, train_steps=2)

    def __init__(self) -> None:
        self.checked: list[str] = []

    def check_prompt(self, prompt: Prompt) -> None:
        self.checked.append(prompt.text)
        if "refused" in prompt.text:
            raise GuardlitError("a prompt that the reward cannot score")


def module_of(folder: Path, count: int, rank: int = 0, world: int = 1, **options: Any) -> PromptDataModule:
    """Set up for `fit` on numbered prompts."""
    (folder / "train.txt").write_text("".join(f"prompt {i}\n" for i in range(count)))
    (folder / "val.txt").write_text("".join(f"validation {i}\n" for i in range(5)))
    settings = {name: value for name, value in {**SMALL, **options}.items() if name != "callbacks"}
    data = PromptDataModule(str(folder / "train.txt"), str(folder / "val.txt"), **settings)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=Runner(),
        world_size=world,
        global_rank=rank,
        accumulate_grad_batches=1,
        callbacks=options.pop("callbacks", []),
        state=SimpleNamespace(fn="fit"),
    )
    data.setup("fit")
    return data


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the prompts that are read."""
    found: list[int] = []
    original = PromptSet.__getitem__

    def watch(self: PromptSet, index: int) -> Prompt:
        found.append(index)
        return original(self, index)

    monkeypatch.setattr(PromptSet, "__getitem__", watch)
    monkeypatch.setattr(PromptSet, "__iter__", lambda self: pytest.fail("all prompts are read"))
    return found


def test_a_round_reads_its_own_prompts_only(tmp_path: Path, reads: list[int]):
    data = module_of(tmp_path, ENCODE_ALL + 1)
    round = data.round(5)
    indices = data.plan.prompt_indices(42, 5, ENCODE_ALL + 1)
    assert reads == indices
    assert [p.text for p in round.prompts] == [f"prompt {i}" for i in indices]
    assert len(round.ahead) == 3 * ENCODE_ROUNDS  # read now
    assert len(reads) == 3 + 3 * ENCODE_ROUNDS
    assert round.ahead[0] == round.prompts[0].text
    assert len(list(round.ahead)) + len(reads) == 3 + 6 * ENCODE_ROUNDS  # and not a second time


def test_a_small_set_is_encoded_at_once(tmp_path: Path):
    data = module_of(tmp_path, 10)
    assert [*data.round(3).ahead] == [f"prompt {i}" for i in range(10)] + [f"validation {i}" for i in range(5)]


def test_rounds_do_not_depend_on_what_came_before(tmp_path: Path):
    first, second = (module_of(tmp_path, 50) for _ in range(2))
    rounds = [[p.text for p in first.round(k).prompts] for k in range(40)]
    assert [[p.text for p in second.round(k).prompts] for k in reversed(range(40))] == rounds[::-1]
    assert len({text for prompts in rounds for text in prompts}) == 50
    # as they have been since the first version
    assert [text.removeprefix("prompt ") for text in rounds[0] + rounds[17]] == ["6", "20", "15", "41", "29", "1"]


def test_every_prompt_is_checked_once_before_the_first_round(tmp_path: Path):
    data = module_of(tmp_path, 1200)
    runner: Any = data.trainer.lightning_module
    assert runner.checked == [f"prompt {i}" for i in range(1200)] + [f"validation {i}" for i in range(5)]
    data.setup("fit")
    assert len(runner.checked) == 1205
    (tmp_path / "bad.txt").write_text("good\nrefused\n")
    other = PromptDataModule(str(tmp_path / "bad.txt"), **SMALL)
    other.trainer = data.trainer
    with pytest.raises(GuardlitError, match="a prompt that the reward cannot score"):
        other.setup("fit")


def test_the_limit_of_training_prompts(tmp_path: Path):
    data = module_of(tmp_path, 50, train_limit=7)
    assert [p.text for p in data.train] == [f"prompt {i}" for i in range(7)]
    with pytest.raises(GuardlitError, match=r"data\.train_limit=0 must be at least 1"):
        module_of(tmp_path, 50, train_limit=0)


def test_the_fingerprint_names_the_prompts(tmp_path: Path):
    one, other = module_of(tmp_path, 50).fingerprint(), module_of(tmp_path, 51).fingerprint()
    assert {key for key in one if one[key] != other[key]} == {"data.train"}
    assert one["data.train"].startswith("50 prompts of SHA-256 ")
    assert one["data.val"].startswith("5 prompts of SHA-256 ")
    assert one["data.val"].endswith(" x 1")


@pytest.mark.parametrize(("world", "images", "batch"), [(1, 1, 2), (2, 3, 4), (4, 1, 1), (4, 2, 3), (5, 3, 2)])
def test_validation_images_are_dealt_to_the_ranks(tmp_path: Path, world: int, images: int, batch: int):
    options = {"val_images_per_prompt": images, "rollout_batch": batch, "prompts_per_round": 2 * world}
    whole = [(i, f"validation {i % 5}") for i in range(5 * images)]
    batches = []
    for rank in range(world):
        loader = module_of(tmp_path, 50, rank, world, **options).val_dataloader()
        mine = [[(number, prompt.text) for number, prompt in part] for part in loader]
        assert [pair for part in mine for pair in part] == whole[rank::world]
        assert [(number, prompt.text) for number, prompt in loader.dataset] == whole[rank::world]
        batches.append([len(part) for part in mine])
    assert {len(part) for part in batches} == {
        min(math.ceil(math.ceil(5 * images / world) / batch), 5 * images // world)
    }
    sizes = [len(chunk) for chunk in torch.arange(len(whole[::world])).tensor_split(len(batches[0]))]
    assert batches[0] == sizes


def test_without_validation_there_are_no_images(tmp_path: Path):
    data = module_of(tmp_path, 50)
    data.val = PromptSet()
    assert data.val_dataloader() == []


READER = SimpleNamespace(reads_micro_batches=True)
SIXTEEN = {"prompts_per_round": 10, "images_per_prompt": 16, "updates_per_round": 4}  # an update: 40 images x 2 steps


@pytest.mark.parametrize(
    ("world", "asked", "callbacks", "taken"),
    [
        (1, 40, [], 40),
        (1, 80, [], 80),
        (1, 80, [READER], 40),  # of one denoising step each
        (2, 40, [], 40),
        (2, 39, [], 20),
        (2, 40, [READER], 20),
        (8, 40, [], 10),  # 5 images x 2 steps
        (8, 40, [READER], 5),
        (8, 3, [], 2),
    ],
)
def test_a_micro_batch_is_the_largest_that_divides(
    tmp_path: Path, world: int, asked: int, callbacks: list[object], taken: int
):
    sizes = {**SIXTEEN, "val_images_per_prompt": 2}
    data = module_of(tmp_path, 50, world=world, micro_batch=asked, callbacks=callbacks, **sizes)
    assert data.plan.micro_batch == data.rollout_batch == taken
    assert data.trainer.accumulate_grad_batches * taken * world == 80
    assert (f"(micro_batch allows {asked})" in data.plan.describe()) is (taken < asked)
    assert data.fingerprint() == module_of(tmp_path, 50, micro_batch=1, **sizes).fingerprint()


def test_an_exact_micro_batch_is_taken_or_refused(tmp_path: Path):
    exact = {**SIXTEEN, "exact_micro_batch": True}
    assert module_of(tmp_path, 50, micro_batch=80, **exact).plan.micro_batch == 80
    with pytest.raises(GuardlitError, match="= 80 is not divisible by micro_batch = 30"):
        module_of(tmp_path, 50, micro_batch=30, **exact)
    with pytest.raises(GuardlitError, match=r"data\.micro_batch=80 .* let it divide the 40 images of an update"):
        module_of(tmp_path, 50, micro_batch=80, callbacks=[READER], **exact)


def test_images_are_sampled_as_asked_whatever_the_micro_batch(tmp_path: Path):
    data = module_of(tmp_path, 50, micro_batch=39, rollout_batch=7, **SIXTEEN)
    assert (data.plan.micro_batch, data.rollout_batch) == (20, 7)


@pytest.mark.parametrize(
    ("done", "exact", "taken"), [(0, False, 40), (80, False, 40), (100, False, 20), (90, False, 10), (100, True, 40)]
)
def test_a_resumed_run_takes_a_micro_batch_that_begins_there(tmp_path: Path, done: int, exact: bool, taken: int):
    data = module_of(tmp_path, 50, micro_batch=40, exact_micro_batch=exact, **SIXTEEN)
    data.load_state_dict({"round": 0, "transitions": done, "micro_batch": 10})
    assert data.plan.micro_batch == taken
    assert data.trainer.accumulate_grad_batches == 80 // taken

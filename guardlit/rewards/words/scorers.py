"""Gold scores of the tiny world of signs; they are independent of the proxy, which reads the text and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from guardlit.rewards.bundled import Bundled, Diversity, frozen, rows_of_prompts
from guardlit.rewards.words.networks import BACKGROUNDS, COLORS, FeatureNet, SignNet, mmd, to_pixels
from guardlit.types import RewardRequest, RewardResult

SCORERS = "guardlit://words_scorers"


def asked_for(prompt: str, kind: str, choices: tuple[str, ...]) -> int:
    """Which of some words a prompt names outside its quotes.

    Args:
        prompt: such as 'a red sign that says "K4" on brick'.
        kind: of the words, for the message.
        choices: the words.

    Raises:
        ValueError: the prompt names none of them, or several.
    """
    words = re.findall(r"[a-z]+", re.sub(r'"[^"]*"|“[^”]*”', " ", prompt.lower()))
    named = {choices.index(word) for word in words if word in choices}
    if len(named) != 1:
        raise ValueError(f"it names {len(named) or 'no'} {kind}s; expected one of {', '.join(choices)}")
    return named.pop()


class _Signs(Bundled):
    """A scorer whose file is in the signs' folder.

    Args:
        path: folder with the scorer's safetensors file, or a `guardlit://` name.
    """

    def __init__(self, path: str = SCORERS) -> None:
        super().__init__(path)


class _Classifier(_Signs):
    """Probability of what the prompt names under a bundled classifier, in [0, 1]; higher is better."""

    file = "signs.safetensors"
    distinguishes = True
    embeds_images = True
    kind: ClassVar[str]
    choices: ClassVar[tuple[str, ...]]

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:
        """Raise `ValueError` unless the prompt names one of the choices."""
        asked_for(prompt, self.kind, self.choices)

    def setup(self, device: torch.device) -> None:
        """Load the classifier; raises `GuardlitError` when the file is missing or holds another network."""
        file, tensors = self._read()
        self._net = frozen(SignNet, tensors, file, device)
        self._device = device

    @torch.no_grad()
    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images: values (B,) are probabilities; `details["success"]` is 1 where nothing else has more.

        The features are what the classifier's last layer reads.
        """
        asked = [asked_for(prompt, self.kind, self.choices) for prompt in request.prompts]
        named = torch.tensor(asked, device=self._device)
        features = self._net.embed(to_pixels(request.images.to(self._device)))
        probabilities = self._net.get_submodule(self.kind)(features).softmax(dim=1)
        values = probabilities.gather(1, named[:, None])[:, 0]
        success = (probabilities.argmax(dim=1) == named).float().cpu()
        return self.result(values, features=features, success=success)


class WordColor(_Classifier):
    """Gold: probability of the sign's color that the prompt names, in [0, 1]."""

    kind, choices = "color", COLORS


class WordBackground(_Classifier):
    """Gold: probability of the background that the prompt names, in [0, 1]."""

    kind, choices = "background", BACKGROUNDS


class WordRealism(_Signs):
    """Gold: kernel distance of a prompt's images to held-out real signs of its color and background; lower is better.

    The maximum mean discrepancy in the features of a network that no other score uses; every image of a prompt has the
    same value. It is biased: a few images have a larger distance than many, so that values compare at equal numbers of
    images per prompt only.
    """

    file = "realism.safetensors"
    compares_images = True

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:
        """Raise `ValueError` unless the prompt names one color and one background."""
        _combination(prompt)

    def setup(self, device: torch.device) -> None:
        """Load the network and the real signs' features; raises `GuardlitError` when the file is another one."""
        file, tensors = self._read()
        self._real = tensors.pop("real").float().to(device)
        self._net = frozen(FeatureNet, tensors, file, device)
        self._device = device

    @torch.no_grad()
    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images: values (B,) are distances, one for all images of a prompt."""
        features = self._net(to_pixels(request.images.to(self._device)))
        values = torch.empty(len(request), device=self._device)
        for first, rows in rows_of_prompts(request, self._device):
            values[rows] = mmd(features[rows], self._real[_combination(request.prompts[first])])
        return self.result(values)


class WordDiversity(Diversity):
    """Gold: mean distance of an image to the other images of its prompt in the request; higher is more diverse.

    Unit: root mean square difference of RGB in [0, 1] at 32 x 32 pixels. The score of a prompt's only image is invalid.
    """

    def pixels(self, images: Tensor) -> Tensor:
        """RGB at 32 x 32 pixels."""
        return to_pixels(images)


def _combination(prompt: str) -> int:
    """The number of a prompt's color and background among the real signs."""
    color, background = asked_for(prompt, "color", COLORS), asked_for(prompt, "background", BACKGROUNDS)
    return color * len(BACKGROUNDS) + background

"""The requests to UnifiedReward, verbatim, and how its answers are read.

The texts are those the models were trained on, and have to be verbatim. They are from
https://github.com/CodeGoat24/UnifiedReward (MIT license):

- `7b-v1.5`: the sglang script; yifan123/flow_grpo asks the same.
- `7b-v1.5-long`: `inference_llava/image_generation/point_score_image_generation.py`; `inference_qwen` has the same text
  without the line `<image>`.
- `2.0`: `inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py`.

Those scripts print the answer and leave its reading to the user. The rules of `Template.read` are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

IMAGE_LINE = "<image>\n"
"""Precedes the text where the chat template of the server does not insert the image, as with LLaVA models."""

_CRITERIA = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
    "based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. Consider the accuracy "
    "of depicted objects, their relationships, and attributes as described in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail preservation, color "
    "accuracy, and overall aesthetic appeal.\n"
)
_TASK = "Your task is provided as follows:\nText Caption: [{prompt}]"
_SHORT = _CRITERIA + "Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\n" + _TASK
_LONG = (
    _CRITERIA + "Extract key elements from the provided text caption, evaluate their presence in the generated image "
    "using the format: 'element (type): value' (where value=0 means not generated, and value=1 means generated), and "
    "assign a score from 1 to 5 after 'Final Score:'.\n" + _TASK
)
_AXES = (
    "You are presented with a generated image and its associated text caption. Your task is to analyze the image "
    "across multiple dimensions in relation to the caption. Specifically:\n"
    "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
    "Output your evaluation using the format below:\n\n"
    "Alignment Score (1-5): X\n"
    "Coherence Score (1-5): Y\n"
    "Style Score (1-5): Z\n\n" + _TASK
)

_LABEL = r"\b{label}[ \t]*(?:\(1-5\))?\**[ \t]*:(?!['\"\u2019\u201d`])\**\s*\**"  # in quotes it is mentioned, not given
_NUMBER = re.compile(
    r"([0-9]+(?:\.[0-9]+)?)(?:[ \t]*/[ \t]*5(?:\.0+)?)?\**"
    r"(?=[.,;!)\]'\"\u2019\u201d]*(?:\s|<[|/]|\Z))"  # nothing sticks to it, as in 45, 4.5.1, 4,5, 4e3, 4%
    r"(?![ \t]*(?:[0-9/%*^x]|[:\u2013-][ \t]*[0-9]|(?:to|or)\b|out[ \t]+of[ \t]+(?!5\b)))",  # 4 / 10, 4 - 5, 4 to 5
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Template:
    """One way to ask.

    Attributes:
        text: with `{prompt}` where the caption goes.
        labels: what stands before the scores in an answer; the value of a sample is the mean of these scores.
        max_tokens: an answer that is longer was cut off, and is no answer.
        image_line: whether the published script opens with `IMAGE_LINE`.
    """

    text: str
    labels: tuple[str, ...]
    max_tokens: int
    image_line: bool

    def ask(self, prompt: str) -> str:
        """The text for one caption."""
        return self.text.replace("{prompt}", prompt)

    def read(self, answer: str) -> tuple[float, ...]:
        """The scores in an answer, one a label, each in [1, 5].

        The last place where a label stands decides. Bold type and "/5" are understood.

        Raises:
            ValueError: a label without a number, or with one that is out of range or part of something longer.
        """
        return tuple(_score(label, answer) for label in self.labels)


def _score(label: str, answer: str) -> float:
    places = list(re.finditer(_LABEL.format(label=re.escape(label)), answer, re.IGNORECASE))
    if not places:
        raise ValueError(f"no '{label}:' in {answer[-80:]!r}")
    rest = answer[places[-1].end() :]
    number = _NUMBER.match(rest)
    if number is None or not 1 <= float(number[1]) <= 5:
        raise ValueError(f"no score from 1 to 5 after '{label}:' in {rest[:40]!r}")
    return float(number[1])


TEMPLATES = {
    "7b-v1.5": Template(_SHORT, ("Final Score",), 512, image_line=True),
    "7b-v1.5-long": Template(_LONG, ("Final Score",), 4096, image_line=True),
    "2.0": Template(_AXES, ("Alignment Score", "Coherence Score", "Style Score"), 4096, image_line=False),
}

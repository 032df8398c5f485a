"""The table of all logged keys, from the docstrings of what logs them: `python -m guardlit.training.logs.keys`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

import guardlit_callbacks

from guardlit.rounds.collector import Collector
from guardlit.rounds.merging import Merging
from guardlit.rounds.metrics import finish_round, update_metrics
from guardlit.training.data_loss.term import DataTerm
from guardlit.training.recovery.rollback import Rollback
from guardlit.training.update.clip_calibration import ClipCalibration
from guardlit.training.update.penalty import Penalty
from guardlit.training.validation import ValidationHooks

EVERY_RUN = "every run"

PLACEHOLDERS = {
    "NAME": r"\w+",
    "COUNTER": r"\w+",
    "PHASE": r"\w+",
    "KIND": "(log_ratio|raw|normalized)",
    "SIDE": "(above|below)",
    "SIGN": "(positive|negative)",
    "TT": r"\d\d",
}
"""Capital words in a documented key, and what they stand for."""

OPENING = """# Logged keys

This page lists every scalar that guardlit and `guardlit_callbacks` log, with its unit and when it is logged. It is made
from the docstrings of the code: `python -m guardlit.training.logs.keys > docs/logged.md`.

The step of a value, the horizontal axis of every chart and figure, is the number of updates (optimizer steps) made so
far: 0 before training, 4 after the first round of four updates. Skipped updates count. `round` is the number of the
round, from 1; Lightning adds `epoch`, which counts the same from 0.

In a key, NAME is a scorer, a statistic or a term; COUNTER one of the scorer's counters; PHASE a phase of
`PhaseTimer`; KIND `log_ratio`, `raw` or `normalized`; SIDE `above` or `below`; SIGN, the advantage's, `positive` or
`negative`; and TT the index of the denoising step in two digits. Keys that end in `tTT` are logged only by a callback
with `per_step: true`: there are hundreds. The arrays behind those of `ratio/` and `gradient/` are always in the run's
folder, and the figures `ratio/figure` and `gradient/figure` show all steps at once.

In another Lightning project, `GradientSpikes` and `PhaseTimer` log at Lightning's own step, which is one less.

## Which transitions are clipped

A transition is clipped if its ratio lies outside the clip range, or with `bound: kl` if its KL
exceeds it; above and below are then the sign of its log ratio. Samples of weight 0, whose reward failed, do not
count. Each fraction has one name:

| key | clipped fraction of the transitions of |
|---|---|
| `train/clip_above`, `train/clip_below` | one update |
| `train/clip_off_policy` | all updates of a round but the first |
| `ratio/clip_fraction` | all updates of a round |

The first update of a round is on-policy: every ratio is 1, and nothing is clipped. So `train/clip_off_policy` is what
`clip_range: auto` aims at (`ClipCalibration`) and what the progress line shows. With four updates a round,
`ratio/clip_fraction` of `RatioDistribution` is three quarters of it. `gradient/clipped` is about something else: the
fraction of updates whose gradient was longer than `gradient_clip_val`.

## All keys
"""


class Key(NamedTuple):
    """A documented key: its text, its unit, when it is logged, and by what."""

    text: str
    unit: str
    when: str
    by: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the logged keys that the text stands for."""
        return re.compile(re.sub("|".join(PLACEHOLDERS), lambda found: PLACEHOLDERS[found[0]], self.text))


def documented() -> list[Key]:
    """Every key in the tables of docstrings, in the order in which TensorBoard shows them."""
    sources: list[tuple[str, object]] = [
        *((EVERY_RUN, thing) for thing in (Collector.collect, Merging.metrics, update_metrics, finish_round)),
        (EVERY_RUN, ValidationHooks.validation_step),
        (EVERY_RUN, Penalty.metrics),
        *((f"`{kind.__name__}`", kind) for kind in (ClipCalibration, DataTerm, Rollback)),
        *((f"`{name}`", getattr(guardlit_callbacks, name)) for name in guardlit_callbacks.__all__),
    ]
    found = [key for by, thing in sources for key in _keys(inspect.getdoc(thing) or "", by)]
    return sorted(found, key=lambda key: key.text.replace("/", " "))


def _keys(text: str, by: str) -> Iterator[Key]:
    """The keys in the tables of a docstring; the sentence above a table, "Logged ...:", says when."""
    for said, table in re.findall(r"Logged ([^:]*):\n\n((?:\|.*\n?)+)", text):
        (when,) = re.findall("update|optimizer step|round|epoch|validation", said)[:1]
        for row in table.splitlines()[2:]:
            keys, unit = (cell.strip() for cell in row.strip().strip("|").split(" | "))
            for key in re.findall(r"`([^`]+)`", keys):
                yield Key(key, unit, {"optimizer step": "update", "epoch": "round"}.get(when, when), by)


def page() -> str:
    """The page `docs/logged.md`."""
    rows = [f"| `{key.text}` | {key.unit} | {key.when} | {key.by} |" for key in documented()]
    return "\n".join([OPENING, "| key | unit | after each | by |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    print(page(), end="")

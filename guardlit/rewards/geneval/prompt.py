"""The metadata of a GenEval prompt, read and checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from guardlit.errors import did_you_mean

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
MOST_OBJECTS = 16
"""Objects kept per class; no prompt can ask for more."""

# COCO's 80 classes in COCO's order, three of them under GenEval's own names: detections are named by their index
CLASSES = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    computer mouse, tv remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush""".replace("\n   ", "").split(", ")
)


@dataclass(frozen=True)
class Clause:
    """Objects that must be there, or must not.

    Attributes:
        name: one of `CLASSES`.
        count: how many.
        color: one of `COLORS` that all of them must have, if any.
        relation: one of `RELATIONS` in which each of them must stand to each of the target's objects, if any.
        target: index of the earlier clause that `relation` is about.
    """

    name: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Wanted:
    """Requirements of one prompt: all of `include`, none of `exclude`."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]


def read_metadata(metadata: Mapping[str, Any]) -> Wanted:
    """Requirements in the metadata of a prompt.

    Args:
        metadata: a line of GenEval's file. Keys other than `tag`, `include` and `exclude` are ignored; null counts as
            absent, as in tables with optional columns.

    Raises:
        ValueError: an entry cannot be scored; one line names it.
    """
    if metadata.get("tag") is None or not metadata.get("include"):
        raise ValueError(
            f"GenEval needs metadata with `tag` and a list `include` of what must be seen; this prompt has "
            f"{', '.join(k for k, v in metadata.items() if v is not None) or 'none'}"
        )
    tag = _one_of(metadata["tag"], TASKS, "tag")
    include = tuple(_include(entry, i) for i, entry in enumerate(_entries(metadata["include"], "include")))
    exclude = tuple(
        _clause(entry, f"exclude[{i}]", {"class", "count"})
        for i, entry in enumerate(_entries(metadata.get("exclude") or [], "exclude"))
    )
    return Wanted(tag, include, exclude)


def _entries(value: object, place: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"GenEval's {place} is {value!r}; it must be a list of objects with `class` and `count`")
    return value


def _include(entry: object, index: int) -> Clause:
    place = f"include[{index}]"
    clause = _clause(entry, place, {"class", "count", "color", "position"})
    if clause.count > MOST_OBJECTS:
        raise ValueError(
            f"GenEval's {place}.count is {clause.count}; at most {MOST_OBJECTS} objects of a class are ever found"
        )
    assert isinstance(entry, Mapping)
    color, position = entry.get("color"), entry.get("position")
    if color is not None:
        color = _one_of(color, COLORS, f"{place}.color")
    if position is None:
        return Clause(clause.name, clause.count, color)
    if not isinstance(position, list | tuple) or len(position) != 2:
        raise ValueError(f"GenEval's {place}.position is {position!r}; it must be [relation, index of a clause]")
    relation = _one_of(position[0], RELATIONS, f"{place}.position[0]")
    target = position[1]
    if not _is_count(target) or not 0 <= target < index:
        earlier = f"0 to {index - 1}" if index else "none, as this clause is the first"
        raise ValueError(f"GenEval's {place}.position[1] is {target!r}; it must index an earlier clause ({earlier})")
    return Clause(clause.name, clause.count, color, relation, target)


def _clause(entry: object, place: str, known: Collection[str]) -> Clause:
    """Class and count of an entry, all of whose keys are known."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"GenEval's {place} is {entry!r}; it must be an object with `class` and `count`")
    for key in entry:
        _one_of(key, sorted(known), f"{place} key")
    count = entry.get("count")
    if not _is_count(count) or count < 1:
        raise ValueError(f"GenEval's {place}.count is {count!r}; it must be an integer of at least 1")
    return Clause(_one_of(entry.get("class"), CLASSES, f"{place}.class"), count)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(value: object, known: Sequence[str], place: str) -> str:
    if isinstance(value, str) and value in known:
        return value
    hint = did_you_mean(value if isinstance(value, str) else "", known, "it is one of")
    raise ValueError(f"GenEval's {place} is {value!r}; {hint}")

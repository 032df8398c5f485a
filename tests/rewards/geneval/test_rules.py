"""GenEval's rules against their published behavior, and the prompts they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import geneval_tiny as tiny

from guardlit.data.prompts import load_prompts
from guardlit.rewards import task_means
from guardlit.rewards.geneval.prompt import CLASSES, TASKS, read_metadata
from guardlit.rewards.geneval.rules import Found, apply_rules, relations

EXPECTED = json.loads((Path(__file__).parents[2] / "support" / "reference" / "geneval.json").read_text())
REAL_PROMPTS = Path(__file__).parents[3].parent / "shared" / "prompts" / "geneval_test.jsonl"

DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
THREE = {
    "tag": "counting",
    "include": [{"class": "dog", "count": 3}],
    "exclude": [{"class": "dog", "count": 4}],
}
PLACED = {
    "tag": "position",
    "include": [{"class": "laptop", "count": 1}, {"class": "cow", "count": 1, "position": ["right of", 0]}],
}
COLORED = {
    "tag": "color_attr",
    "include": [
        {"class": "handbag", "count": 1, "color": "pink"},
        {"class": "scissors", "count": 1, "color": "black"},
    ],
}
TWO_RED = {"tag": "colors", "include": [{"class": "cup", "count": 2, "color": "red"}]}


def things(*lefts: float, color: str | None = None) -> list[Found]:
    return [Found((left, 0, left + 10, 10), color) for left in lefts]


def bag_and_scissors(bag: str, scissors: str) -> dict[str, list[Found]]:
    return {"handbag": things(0, color=bag), "scissors": things(20, color=scissors)}


@pytest.mark.parametrize(
    ("metadata", "found", "official", "strict", "flow_grpo"),
    [
        (DOG, {"dog": things(0)}, True, True, 1.0),
        (DOG, {"dog": things(0, 20)}, True, False, 0.0),
        (DOG, {"dog": things(0, 20, 40)}, True, False, -1.0),
        (DOG, {}, False, False, 0.0),
        (DOG, {"cat": things(0)}, False, False, 0.0),
        (THREE, {"dog": things(0, 20, 40)}, True, True, 1.0),
        (THREE, {"dog": things(0, 20)}, False, False, 2 / 3),
        (THREE, {"dog": things(*range(4))}, False, False, 2 / 3),
        (THREE, {"dog": things(*range(7))}, False, False, -1 / 3),
        (PLACED, {"laptop": things(0), "cow": things(50)}, True, True, 1.0),
        (PLACED, {"laptop": things(50), "cow": things(0)}, False, False, 0.75),  # the wrong side: 1, 1, 0 and 1
        (PLACED, {"cow": things(0)}, False, False, 1 / 3),  # no target
        (PLACED, {"laptop": things(0)}, False, False, 1 / 3),
        (PLACED, {"laptop": things(0, 90), "cow": things(50)}, True, False, 1 / 3),  # strict has no target then
        (COLORED, bag_and_scissors("pink", "black"), True, True, 1.0),
        (COLORED, bag_and_scissors("pink", "white"), False, False, 0.75),
        (COLORED, {"handbag": things(0, color="pink")}, False, False, 0.5),
        (TWO_RED, {"cup": things(0, color="red") + things(20, color="blue")}, False, False, 0.75),
        # of three cups the two most confident decide
        (TWO_RED, {"cup": things(0, 20, color="red") + things(40, color="blue")}, True, False, 0.25),
        (TWO_RED, {"cup": things(0, color="blue") + things(20, 40, color="red")}, False, False, 0.25),
    ],
)
def test_the_table_of_behavior(
    metadata: dict[str, Any], found: dict[str, list[Found]], official: bool, strict: bool, flow_grpo: float
):
    verdict = apply_rules(found, read_metadata(metadata))
    assert (verdict.official, verdict.strict) == (official, strict)
    assert verdict.flow_grpo == pytest.approx(flow_grpo, abs=1e-12)


def test_every_object_must_stand_to_every_target():
    wanted = read_metadata({"tag": "position", "include": [{"class": "cup", "count": 2}, *PLACED["include"][1:]]})
    assert apply_rules({"cup": things(0, 20), "cow": things(60)}, wanted).official
    assert not apply_rules({"cup": things(0, 90), "cow": things(60)}, wanted).official


def test_a_group_in_the_wrong_color_is_no_target():
    metadata = {
        "tag": "position",
        "include": [{"class": "laptop", "count": 1, "color": "red"}, PLACED["include"][1]],
    }
    found = {"laptop": things(0, color="blue"), "cow": things(50)}
    verdict = apply_rules(found, read_metadata(metadata))
    assert (verdict.official, verdict.strict, verdict.flow_grpo) == (False, False, 0.5)  # 1, 0, 1, 0


def test_exclude_is_an_or_and_strict_ignores_it():
    metadata = DOG | {"exclude": [{"class": "cat", "count": 1}, {"class": "cow", "count": 2}]}
    for name, count, allowed in (("cat", 1, False), ("cow", 1, True), ("cow", 2, False)):
        verdict = apply_rules({"dog": things(0), name: things(*range(count))}, read_metadata(metadata))
        assert (verdict.official, verdict.strict, verdict.flow_grpo) == (allowed, True, 1.0)


def test_positions():
    target = (100, 100, 120, 120)

    def at(x: float, y: float) -> set[str]:
        return relations((100 + x, 100 + y, 120 + x, 120 + y), target)

    assert at(50, 0) == {"right of"}
    assert at(-50, 0) == {"left of"}
    assert at(0, 50) == {"below"}  # y grows downwards
    assert at(0, -50) == {"above"}
    assert at(50, 50) == {"right of", "below"}  # a diagonal satisfies two
    assert at(0, 0) == at(4, 0) == set()  # a tenth of both widths does not count
    assert at(8, 0) == set()  # half of the offset is left, and it must be more
    assert at(8.1, 0) == {"right of"}
    assert relations((0, 0, 100, 10), (30, 30, 40, 40)) == {"above"}


def test_all_rules_are_those_of_the_public_reward_server():
    """300 random prompts and images; the reference's answers came from its own functions."""
    verdicts, scores = EXPECTED["rules"]["official_strict"], EXPECTED["rules"]["flow_grpo"]
    cases = list(tiny.cases(300, EXPECTED["seed"]))
    assert {"0", "2", "3"} == set(verdicts)
    assert min(scores) < -1
    for (metadata, found), bits, score in zip(cases, verdicts, scores, strict=True):
        objects = {name: [Found(box, color) for box, color in group] for name, group in found.items()}
        verdict = apply_rules(objects, read_metadata(metadata))
        assert 2 * verdict.official + verdict.strict == int(bits), metadata
        assert np.float32(verdict.flow_grpo) == np.float32(score), metadata


def test_the_classes_are_cocos_by_index():
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    coco = [name for name in categories if name not in ("__background__", "N/A")]
    renamed = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
    assert list(CLASSES) == [renamed.get(name, name) for name in coco]


def test_the_overall_score_is_the_mean_of_the_tasks():
    tags = ["position", "counting", "counting", "counting"]
    means = task_means(tags, [1.0, 0.0, 0.0, 1.0])
    assert list(means) == ["counting", "position", "overall"]
    assert means == {"counting": pytest.approx(1 / 3), "position": 1.0, "overall": pytest.approx(2 / 3)}
    assert list(task_means(TASKS, [1.0] * 6)) == [*TASKS, "overall"]
    assert math.isnan(task_means(tags, [math.nan, 0.0, 0.0, 1.0])["overall"])
    for wrong_tags, values in (([], []), (["position"], [1.0, 2.0]), (["color"], [1.0])):
        with pytest.raises(ValueError, match=r"found"):
            task_means(wrong_tags, values)


def include(*clauses: object) -> dict[str, object]:
    return {"tag": "position", "include": list(clauses)}


CUP = {"class": "cup", "count": 1}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, "this prompt has none"),
        ({"seed": 3}, "needs metadata with `tag` and a list `include` of what must be seen; this prompt has seed"),
        ({"tag": "position"}, "this prompt has tag"),
        ({"tag": "position", "include": []}, "this prompt has tag, include"),
        (include(CUP) | {"tag": "color"}, "tag is 'color'; did you mean colors?"),
        (include(CUP) | {"tag": 7}, "tag is 7; it is one of single_object"),
        ({"tag": "position", "include": "cup"}, "include is 'cup'; it must be a list"),
        (include("cup"), "include[0] is 'cup'; it must be an object"),
        (include({"count": 1}), "include[0].class is None; it is one of person"),
        (include({"class": "cups", "count": 1}), "include[0].class is 'cups'; did you mean cup?"),
        (include({"class": "mouse", "count": 1}), "include[0].class is 'mouse'"),
        (include(CUP, {"class": "cup"}), "include[1].count is None; it must be an integer"),
        (include(CUP | {"count": 0}), "include[0].count is 0"),
        (include(CUP | {"count": True}), "include[0].count is True"),
        (include(CUP | {"count": 2.0}), "include[0].count is 2.0"),
        (include(CUP | {"count": 17}), "include[0].count is 17; at most 16"),
        (include(CUP | {"colors": "red"}), "include[0] key is 'colors'; did you mean color?"),
        (include(CUP | {"color": "greenish"}), "include[0].color is 'greenish'; did you mean green?"),
        (include(CUP | {"color": "cyan"}), "include[0].color is 'cyan'; it is one of red, orange"),
        (include(CUP, CUP | {"position": "above"}), "include[1].position is 'above'; it must be [relation, index"),
        (include(CUP, CUP | {"position": ["over", 0]}), "include[1].position[0] is 'over'"),
        (include(CUP, CUP | {"position": ["above", 1]}), "position[1] is 1; it must index an earlier clause (0 to 0)"),
        (include(CUP, CUP | {"position": ["above", -1]}), "include[1].position[1] is -1"),
        (include(CUP | {"position": ["above", 0]}), "(none, as this clause is the first)"),
        (include(CUP) | {"exclude": [CUP | {"color": "red"}]}, "exclude[0] key is 'color'"),
        (include(CUP) | {"exclude": [{"class": "cup", "count": 0}]}, "exclude[0].count is 0"),
    ],
)
def test_metadata_that_cannot_be_scored_get_one_line(metadata: dict[str, Any], expected: str):
    with pytest.raises(ValueError, match="GenEval") as caught:
        read_metadata(metadata)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_columns_that_are_null_count_as_absent():
    full = {"class": "cup", "count": 1, "color": None, "position": None}
    assert read_metadata({"tag": "colors", "include": [full], "exclude": None, "id": 3}) == read_metadata(
        {"tag": "colors", "include": [CUP]}
    )


@pytest.mark.skipif(not REAL_PROMPTS.is_file(), reason=f"needs {REAL_PROMPTS.name}, which is not part of the project")
def test_every_published_prompt_is_accepted():
    prompts = load_prompts(str(REAL_PROMPTS))
    assert len(prompts) == 2212
    wanted = [read_metadata(prompt.metadata) for prompt in prompts]
    assert {w.tag for w in wanted} == set(TASKS)
    assert {clause.name for w in wanted for clause in w.include} == set(CLASSES)

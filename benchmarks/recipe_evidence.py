"""Records how far each recipe is tested: `python -m benchmarks.recipe_evidence`.

Without options it runs the tests of `tests/configs` that a recipe parses and that it trains one round, slow ones
included, and plans the memory of one GPU. `--run NAME RUN` reads a finished run's folder, and `--run NAME RUN
EVALUATION` also what `guardlit evaluate` wrote about it. The results go to `configs/evidence.json`, from which
`guardlit recipes` and the documentation read the levels. A record holds for the settings that it was made with: once a
recipe changes, its record no longer counts. `--table` prints what docs/recipes.md shows.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import yaml

from guardlit.assets.recipes import folder, names
from guardlit.config.saved import SECTIONS
from guardlit.recipes.evidence import FILE, LEVELS, evidence_of, with_presets
from guardlit.recipes.recipe import PRESET, RUN, Recipe

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "parsed": "tests/configs/test_configs.py::test_it_is_instantiated_and_divides_on_every_gpu",
    "round": "tests/configs/test_runs.py::test_it_trains_one_round_with_the_preset_of_a_gpu",
}
"""The test of a level, which has a case a recipe."""
SMALLEST = {"SD3Policy": "gpu/24gb", "FluxPolicy": "gpu/48gb"}
"""The smallest GPU preset for a model's family."""
FREE = ("seed_everything", "data.seed", "data.val", "trainer")
"""Settings in which a run may differ from its recipe, besides those of GPU presets; but see `KEPT`."""
KEPT = ("trainer.max_epochs", "trainer.gradient_clip_val", "trainer.precision")
Records = dict[str, dict[str, Any]]


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", nargs="+", action="append", metavar="", default=[], help="NAME RUN [EVALUATION]")
    parser.add_argument("--table", action="store_true", help="only print the table of docs/recipes.md")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    records: Records = json.loads(file().read_text()) if file().is_file() else {}
    for run in options.run:
        record_run(records, *run)
    if not options.run:
        record_memory(records)
        record_tests(records)
    kept = {recipe.names[0]: records[recipe.names[0]] for recipe in runs()}
    file().write_text(json.dumps(kept, indent=1) + "\n")


def table() -> str:
    """All runs with what they train and how far they are tested, in Markdown."""
    head = "| recipe | model | proxy | objective | GPU memory | evidence |\n|---|---|---|---|---|---|"
    rows = [
        f"| `{recipe.names[0]}` | {recipe.model} | {recipe.proxy} | {recipe.objective} "
        f"| {evidence.memory_text} | {evidence.level} |"
        for recipe in runs()
        for evidence in [evidence_of(recipe)]
    ]
    return "\n".join([head, *rows])


def levels() -> str:
    """What the levels mean, as a list in Markdown."""
    return "\n".join(f"- **{level}**: {meaning}" for level, meaning in LEVELS.items())


def file() -> Path:
    """What is written."""
    return folder() / FILE


def runs() -> list[Recipe]:
    """All recipes that are runs."""
    return [recipe for name in names() if (recipe := Recipe((name,))).kind == RUN]


def record_tests(records: Records) -> None:
    """Run the tests, and note which recipes pass; one with equal settings under another name counts as tested."""
    command = ["pytest", *TESTS.values(), "-m", "slow or not slow"]
    passed = {level: set[str]() for level in TESTS}
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary, "report.xml")
        subprocess.run([sys.executable, "-m", *command, f"--junitxml={report}"], cwd=ROOT, check=False)
        for case in ElementTree.parse(report).iter("testcase"):
            test, _, name = case.get("name", "").removesuffix("]").partition("[")
            level = next(level for level, path in TESTS.items() if path.endswith(f"::{test}"))
            if not len(case):  # neither failed nor skipped
                passed[level].add(Recipe((name,)).fingerprint)
    for recipe in runs():
        proofs = records.setdefault(recipe.names[0], {"proofs": {}})["proofs"]
        for level, settings in passed.items():
            proofs.pop(level, None)
            if recipe.fingerprint in settings:
                proofs[level] = {"settings": with_presets(recipe), "by": TESTS[level], "on": f"cpu, {_torch()}"}


def record_memory(records: Records) -> None:
    """Plan each run's memory on one GPU, as it is and with the smallest preset."""
    for recipe in runs():
        (name,) = recipe.names
        policy = recipe.settings["model"]["policy"]
        bundled = policy["init_args"]["model"].startswith("guardlit://")
        presets = [""] if bundled else ["", SMALLEST[policy["class_path"]]]
        record = records.setdefault(name, {"proofs": {}})
        record["planned"] = with_presets(recipe)
        record["memory_gb"] = {preset: planned(name, preset) for preset in presets}


def planned(name: str, preset: str) -> float:
    """The most memory at once by `guardlit plan`, in GB; scorers are not counted."""
    from guardlit.commands.plan import planned as plan
    from guardlit.planning.estimate import estimate

    configs = [word for config in (name, preset) if config for word in ("--config", config)]
    run = plan([*configs, "--trainer.accelerator=gpu"])
    return round(estimate(run).memory.peak / 1e9, 1)


def record_run(records: Records, name: str, run: str, evaluation: str | None = None) -> None:
    """Note what a run with a recipe's settings has shown."""
    recipe, place = Recipe((name,)), Path(run)
    config = yaml.safe_load((place / "config.yaml").read_text())
    if different := differences(recipe, config):
        sys.exit(f"{run} is no run of {name}: other {', '.join(different)}")
    facts = json.loads((place / "run.json").read_text())
    rows = list(csv.DictReader((place / "metrics.csv").open()))
    rounds = max((int(float(row["round"])) for row in rows if row.get("round")), default=0)  # those that ended
    complete = rounds >= recipe.settings["trainer"]["max_epochs"]
    device = config["trainer"]["accelerator"]
    proof = {
        "settings": recipe.fingerprint,
        "by": " ".join(facts["command"]),
        "on": f"{device}, torch {facts['versions']['torch']}",
        "rounds": rounds,
        "seed": config["seed_everything"],
        **gold(place),
    }
    shown = {}
    if device in ("gpu", "cuda"):
        shown["gpu"] = proof
    if complete:
        shown["trained"] = proof
    if complete and evaluation and (found := reproduced(name, Path(evaluation))):
        shown["reproduced"] = proof | found
    if not shown:
        sys.exit(f"{run} shows nothing new: {rounds} rounds on {device}")
    records[name]["proofs"] |= shown


def differences(recipe: Recipe, config: Mapping[str, Any]) -> list[str]:
    """Keys in which a run's settings are not those of a recipe, where that matters."""
    from guardlit.commands.lightning_cli import settings_of

    presets = [Recipe((name,)) for name in names() if Recipe((name,)).kind == PRESET]
    free = {*FREE, *(key for preset in presets for key in flat(preset.settings))}
    if "train" not in recipe.settings["data"]:  # the user's own prompts
        free.add("data.train")
    settings = settings_of(["fit", "--data.train=prompts", "--config", recipe.names[0]])
    own, other = (flat({section: given[section] for section in SECTIONS}) for given in (settings, config))
    different = sorted(key for key in own.keys() | other.keys() if own.get(key, ...) != other.get(key, ...))
    found = [key for key in different if key in KEPT or not any(f"{key}.".startswith(f"{part}.") for part in free)]
    callbacks = other.get("trainer.callbacks") or []  # more of them may watch
    return found + ["trainer.callbacks"] * any(c not in callbacks for c in own["trainer.callbacks"] or [])


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def gold(run: Path) -> dict[str, Any]:
    """First and last average of the gold scores, relative to the base, if the run has them."""
    if not (run / "gold.csv").is_file():
        return {}
    values = [float(row["average"]) for row in csv.DictReader((run / "gold.csv").open()) if row.get("average")]
    return {"gold": [round(values[0], 3), round(values[-1], 3)]} if values else {}


def reproduced(name: str, evaluation: Path) -> dict[str, Any] | None:
    """The measured interval of the Average, if the paper's lies in it."""
    paper = dict(_table_1())[name]
    *_, last = (row for row in csv.DictReader((evaluation / "table.csv").open()) if row["metric"] == "average")
    low, high = float(last["low"]), float(last["high"])
    return {"paper": paper, "average": [low, high]} if low <= paper <= high else None


def _table_1() -> Iterator[tuple[str, float]]:
    """Names and averages of the paper's rows, as docs/recipes.md has them."""
    for line in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").split("Table 1, gold scores")[1].splitlines():
        if found := re.match(r"\| `(\w+)` \|.*\| ([\d.]+) \|$", line):
            yield found[1], float(found[2])


def _torch() -> str:
    return f"torch {torch.__version__}"


if __name__ == "__main__":
    main()

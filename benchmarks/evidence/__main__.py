"""The evidence on regulated clipping: `python -m benchmarks.evidence digits`.

Trains every objective of the paper's Table 2, and Flow-GRPO with its published KL penalty, on a world that trains on a
CPU: a short sweep over learning rates and clip ranges, then all at equal settings with three seeds and well past the
peak of gold, then Flow-GRPO and GRPO-Guard under other conditions. The same command skips what is finished and resumes
the rest. Stop it with Ctrl-C or SIGTERM at any time. `objectives` is a second study: the objectives of the line on the
digits, each clipped to the same share by itself, seed by seed.

    python -m benchmarks.evidence digits --dry-run    # the plan and its cost
    python -m benchmarks.evidence digits --short      # two methods, one seed
    python -m benchmarks.evidence digits --publish    # results into docs/evidence
    python -m benchmarks.evidence objectives          # the second study
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.evidence import cost
from benchmarks.evidence.objectives.methods import PLAN
from benchmarks.evidence.objectives.study import Objectives, draw
from benchmarks.evidence.objectives.study import cost as cost_by_seed
from benchmarks.evidence.objectives.study import shortened as shortened_plan
from benchmarks.evidence.study import Study, complete, shortened, trainer
from benchmarks.evidence.worlds import ROOT, WORLDS
from guardlit.errors import GuardlitError


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*WORLDS, PLAN.name]
    parser.add_argument("worlds", nargs="+", choices=names, metavar="WORLD", help=f"of {', '.join(names)}")
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/evidence, or runs/evidence_short)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time (default: 2)")
    parser.add_argument("--short", action="store_true", help="two methods, one seed")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its estimated cost")
    parser.add_argument("--publish", action="store_true", help="train nothing; write what is finished into docs")
    return parser.parse_args()


def main() -> int:
    """Train, or print, or publish."""
    args = arguments()
    out = args.out or Path("runs/evidence_short" if args.short else "runs/evidence")
    failed: dict[str, str] = {}
    train = None if args.publish else trainer(args.jobs, _show)
    for name in args.worlds:
        if args.dry_run:
            print(cost.describe(name, _costs(name, args.short), args.jobs), end="\n\n")
            continue
        study: Study | Objectives
        if name == PLAN.name:
            plan = shortened_plan() if args.short else PLAN
            if train is not None:
                draw(plan, out.absolute() / name)
            study = Objectives(plan, out.absolute() / name, train)
        else:
            study = (shortened if args.short else complete)(WORLDS[name], out.absolute() / name, train)
        failed |= {f"{name}/{place}": why for place, why in study.failed.items()}
        for path in write(study, out.absolute(), public=args.publish):
            print(path)
    if args.publish and not args.dry_run:
        from benchmarks.evidence import page

        page.render_all()
    for folder, why in failed.items():
        print(f"{folder} failed: {why}", file=sys.stderr)
    return int(bool(failed))


def _costs(name: str, short: bool) -> list[cost.Cost]:
    if name == PLAN.name:
        return cost_by_seed(shortened_plan() if short else PLAN)
    return (cost.short if short else cost.full)(WORLDS[name])


def write(study: Study | Objectives, out: Path, public: bool) -> list[Path]:
    """Write results and figures of a study into the folder of its runs, or into docs."""
    from benchmarks.evidence import figures, page, pictures, results
    from benchmarks.evidence.objectives import writing

    folder, images = (page.RESULTS, ROOT / "docs/images") if public else (out, out)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(study, Objectives):
        return writing.write(study, folder, images)
    document = folder / f"{study.world.name}.json"
    document.write_text(results.dump(results.collect(study)), encoding="utf-8")
    return [document, *figures.draw(study, images), *pictures.draw(study, images)]


def _show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuardlitError as error:
        sys.exit(f"python -m benchmarks.evidence: error: {error}")

"""Kill runs, inject faults, resume, and compare: `python -m benchmarks.faults --out runs/faults`.

Every run is the tiny Stable Diffusion 3 of the tests, with a checkpoint after every update and every round; the state
that a disturbed run ends with is compared bit by bit with that of the undisturbed one. Exits with 1 if anything was
not as promised.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import traceback
from datetime import date
from itertools import chain
from pathlib import Path

from benchmarks.faults import console, numbers, ranks, report, resuming, rewards, signals, storage
from benchmarks.faults.kills import campaign
from benchmarks.faults.lab import SETTINGS, Lab
from benchmarks.faults.processes import import_all
from benchmarks.faults.scenario import Fault, Outcome, play

FAULTS = [fault for part in (storage, resuming, ranks, rewards, numbers, signals) for fault in part.FAULTS]


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="at random moments")
    parser.add_argument("--most", type=int, default=5, help="kills of one run")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=list(SETTINGS), help="of the killed runs")
    parser.add_argument("--faults", nargs="*", help="only faults whose names hold one of these texts; none without any")
    parser.add_argument("--no-console", action="store_true", help="no kills of the command itself in a fresh process")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--out", type=Path, default=Path("runs/faults"), help="folder for all runs; emptied first")
    args = parser.parse_args()
    chosen = [f for f in FAULTS if args.faults is None or any(text in f.name for text in args.faults)]
    begun = time.monotonic()
    lab = _lab(args.out)
    lines = lab.folder / "faults.jsonl"
    histories = []
    killed = campaign(lab, [SETTINGS[name] for name in args.settings], args.kills, args.most, args.seed)
    for history in chain(killed, () if args.no_console else console.histories(lab)):
        histories.append(history)
        report.write(lines, "kills", history)
        print(f"{history.setting}: {len(history.kills)} kills, {'equal' if history.equal else history}", flush=True)
    outcomes = []
    for fault in chosen:
        outcome = _played(lab, fault)
        outcomes.append(outcome)
        report.write(lines, "fault", outcome)
        print(f"{fault.name}: {'as promised' if outcome.held else outcome}", flush=True)
    minutes = (time.monotonic() - begun) / 60
    text = f"{report.kills_table(histories)}\n\n{report.faults_table(outcomes)}\n\n{report.machine()}; {date.today()}"
    text += f", {minutes:.0f} minutes\n"
    (lab.folder / "faults.md").write_text(text)
    print(text)
    return 0 if all(h.equal for h in histories) and all(o.held for o in outcomes) else 1


def _lab(out: Path) -> Lab:
    """An empty folder with the tiny model; what is there already must be a campaign's."""
    if out.exists() and any(out.iterdir()) and not (out / "model").is_dir():
        raise SystemExit(f"{out} is not the folder of an earlier campaign; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    import_all()
    return Lab(out)


def _played(lab: Lab, fault: Fault) -> Outcome:
    try:
        return play(lab, fault)
    except Exception as error:  # one that could not be run must not end the campaign
        traceback.print_exc()
        return Outcome(fault.name, broken=[f"not run: {type(error).__name__}: {error}"])


if __name__ == "__main__":
    sys.exit(main())

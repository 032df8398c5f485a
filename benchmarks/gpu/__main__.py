"""Measures what only a GPU can show, in eight minutes: `python -m benchmarks.gpu`; `--rehearse` runs it on the CPU.

Each stage is a separate process with a budget of seconds. A crash or lack of memory costs no rows of other stages.
Every number is on disk as soon as it is known. results.json and results.md are written after each stage, at the end
and when the program is interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from benchmarks.gpu import processes


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; 0 if all of them completed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8, help="for everything (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="only these")
    parser.add_argument("--skip", nargs="+", metavar="STAGE", default=[], help="all but these")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU; the numbers mean nothing")
    parser.add_argument("--jobs", type=int, default=4, help="stages at once, of those without timings")
    parser.add_argument("--list", action="store_true", help="list the stages and exit")
    args = parser.parse_args(arguments)
    processes.preload()
    from benchmarks.gpu.campaign import STAGES, Campaign, chosen

    if args.list:
        for stage in STAGES:
            print(f"{stage.name:<10}{stage.budget:>5.0f} s  {stage.about}")
        return 0
    try:
        stages = chosen(args.only, args.skip)
        campaign = Campaign(stages, args.out, args.minutes * 60, args.rehearse, 1 if args.rehearse else args.jobs)
    except ValueError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return campaign.run()
    except KeyboardInterrupt:
        return 130
    finally:
        campaign.close()
        print(f"{args.out / 'results.md'}", flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())

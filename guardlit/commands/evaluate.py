"""`guardlit evaluate`: what its command line allows beyond LightningCLI's."""

from __future__ import annotations

import sys
from pathlib import Path

from guardlit.commands.first_look import check, shows_help
from guardlit.commands.lists import as_options, split_lists
from guardlit.config.console import Parser
from guardlit.errors import GuardlitError


def main(args: list[str]) -> None:
    """Run `guardlit evaluate`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: an option, a path or a score that cannot be used.
    """
    if shows_help(args):
        return
    arguments = ["evaluate", *_rewritten(args[1:])]
    check(arguments)
    from guardlit.commands.lightning_cli import main as run

    sys.argv = [sys.argv[0], *arguments]  # what LightningCLI parses, and Lightning's launchers start again
    run(arguments)


def _rewritten(args: list[str]) -> list[str]:
    """Lists as `--ckpt a b`, also repeated; with --rescore, the configuration that the images were drawn with."""
    words, others = split_lists("guardlit evaluate", args, ["ckpt", "label", "prompts", "base_steps"])
    words["base_steps"] = [number for word in words["base_steps"] for number in word.split(",") if number]
    parser = Parser("guardlit evaluate", add_help=False)
    parser.add_argument("--rescore", nargs="?", const="true", default="false", choices=("true", "false"))
    options, rest = parser.parse_known_args(others)
    if options.rescore == "false":
        return [*rest, *as_options(words)]
    if words["ckpt"] or words["label"] or words["base_steps"]:
        raise GuardlitError("--rescore scores the images in --out; leave out --ckpt, --label and --base_steps")
    from guardlit.gold.evaluation import GOLD, RUN

    place = Parser("guardlit evaluate", add_help=False)
    place.add_argument("--out", type=Path, default=Path("evaluation"))
    place.add_argument("--config", "-c", action="append")
    where, _ = place.parse_known_args(rest)
    drawn_with = [where.out / RUN, *([] if where.config else [where.out / GOLD])]
    if missing := next((file for file in drawn_with if not file.is_file()), None):
        raise GuardlitError(f"--rescore needs the images of an earlier evaluation: there is no {missing}")
    return [*(word for file in drawn_with for word in ("--config", str(file))), *rest, "--rescore", "true"]

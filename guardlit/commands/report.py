"""`guardlit report`: figures and one page from run folders, as `python -m guardlit_callbacks.report` makes them."""

from __future__ import annotations

from guardlit_callbacks.report import ConfigKeys, ReportError, execute

from guardlit.errors import GuardlitError

KEYS = ConfigKeys(method="model.objective.class_path", seeds=("seed_everything", "data.seed"))
"""Where a run's configuration names its method and its seeds."""


def main(args: list[str]) -> None:
    """Run `guardlit report`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: a run, an option or an output folder that cannot be used.
    """
    try:
        execute(args[1:], "guardlit report", KEYS)
    except ReportError as error:
        raise GuardlitError(str(error)) from error

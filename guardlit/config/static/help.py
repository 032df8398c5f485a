"""The help of a command, from the source files of its classes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence

from guardlit.config.static.options import Command, Option, subclasses

COMMON = (
    ("--config FILE", "YAML file with options, by the keys below; several merge, the last one wins"),
    ("--print_config", "print the configuration that the command line comes to, and exit"),
    (
        "--seed_everything SEED",
        "of everything random; true draws one, false sets none, but for data.seed (default: 42)",
    ),
)
EPILOG = (
    "An option sets the key of this name in a YAML file. Parameters of a class follow its key: --model.reward PickScore"
    " --model.reward.model FOLDER; list them by --model.reward.help PickScore. A class of another package is named by "
    "its import path. An environment variable such as {variable} sets what no file and no option sets."
)


def help_text(
    command: Command, summary: str, own: Sequence[tuple[str, str]], names: Sequence[str], defaults: Mapping[str, str]
) -> str:
    """The text of `guardlit COMMAND --help`: the command's own options first.

    Args:
        command: whose options are listed.
        summary: what the command does.
        own: options, each with its text, that are no parameters.
        names: public names of guardlit, which classes may be called by.
        defaults: as the source writes them, by key, where they are not the parameter's.
    """
    variable = f"GUARDLIT_{command.name.upper()}__DATA__MICRO_BATCH"
    parser = argparse.ArgumentParser(
        prog=f"guardlit {command.name}",
        usage=f"guardlit {command.name} --config FILE [options]",
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=EPILOG.format(variable=variable),
        add_help=False,
        allow_abbrev=False,
    )
    first = parser.add_argument_group(f"options of {command.name}")
    for option, text in own:
        _add(first, option, text)
    _add_all(first, command.own(), names, defaults)
    common = parser.add_argument_group("options of all these commands")
    for option, text in COMMON:
        _add(common, option, text)
    for section in ("model", "data", "trainer"):
        _add_all(parser.add_argument_group(section), command.section(section), names, defaults)
    return parser.format_help()


def _add_all(
    group: argparse._ArgumentGroup, options: Iterable[Option], names: Sequence[str], defaults: Mapping[str, str]
) -> None:
    for option in options:
        parameter = option.parameter
        default = defaults.get(option.key, parameter.default)
        known = subclasses(option.base, names) if option.base and not option.base.is_dataclass else []
        facts = [f"one of {', '.join(known)}" if known else f"type: {parameter.annotation}"]
        facts.append("required" if default is None else f"default: {_written(default)}")
        _add(group, f"--{option.key} {parameter.name.upper()}", f"{parameter.text} ({'; '.join(facts)})".strip())


def _add(group: argparse._ArgumentGroup, option: str, text: str) -> None:
    name, _, metavar = option.partition(" ")
    how: dict[str, str] = {"metavar": metavar} if metavar else {"action": "store_true"}
    group.add_argument(name, help=text.replace("%", "%%"), **how)  # type: ignore[arg-type]


def _written(default: str) -> str:
    """A default without what makes an instance of it."""
    default = re.sub(r"^field\(default=(.+?)(, \w+=.*)?\)$", r"\1", default)
    default = re.sub(r"^lazy_instance\((.+)\)$", r"\1", default)
    return (
        re.sub(r"^lambda \w+: ", "", default).replace("None", "null").replace("True", "true").replace("False", "false")
    )

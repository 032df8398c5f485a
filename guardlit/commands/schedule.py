"""`guardlit schedule`: what a sampler's steps look like, and how large a gradient each objective gives them.

No network is needed for it: a step is x_next = a x + g v + s noise, and Table 2's gradient scales follow from a, g, s.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from guardlit.config.console import Parser, line_width, show, table, times
from guardlit.config.locate import CONFIG_OPTIONS
from guardlit.errors import GuardlitError, positive
from guardlit.schedule import ScheduleTable, schedule_table, write_csv
from guardlit.sde import CPS, MOST_STEPS, ODE, SDE, Coefficients, DanceSDE, FlowSDE, flow_match_sigmas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

SAMPLERS: dict[str, type[FlowSDE] | type[DanceSDE] | type[CPS]] = {"flow": FlowSDE, "dance": DanceSDE, "cps": CPS}
DEFAULT_SHIFT, DEFAULT_TRAIN_TIMESTEPS = 3.0, 1000
DEFAULT_STEPS, DEFAULT_FRACTION = 10, 0.99
OF_A_RUN = {
    "steps": "model.rollout.num_inference_steps",
    "shift": "model.policy.model",
    "sde": "model.sde",
    "noise_level": "model.sde.noise_level",
    "timestep_fraction": "model.rollout.timestep_fraction",
    "model": "model.policy.model",
}
"""Options that a configuration takes the place of, and its keys."""
OF_SIZE = (("base_shift", 0.5), ("max_shift", 1.15))
BROADEST = 5.0
"""Width of the first curve over that of the last."""
BETWEEN = 3
"""Characters between two columns of a table."""
OTHER_SCHEDULES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "shift_terminal", "invert_sigmas")


def main(args: list[str]) -> None:
    """Run `guardlit schedule`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: an option or a model folder that cannot be used.
    """
    if any(arg.partition("=")[0] in CONFIG_OPTIONS for arg in args):
        options, rest = _parser(config=False).parse_known_args(args[1:])
        table, title = _of_run(options, rest)
    else:
        options = _parser().parse(args[1:])
        table, title = _of_options(options)
    _print(table, title)
    for option, path, write in (("--csv", options.csv, write_csv), ("--plot", options.plot, plot)):
        try:
            if path:
                write(path, table)
        except (OSError, ValueError) as error:  # matplotlib says ValueError to a file type it cannot write
            reason = getattr(error, "strerror", None) or error
            raise GuardlitError(f"{option} {path} cannot be written: {reason}") from error


def _of_options(options: argparse.Namespace) -> tuple[ScheduleTable, str]:
    steps = DEFAULT_STEPS if options.steps is None else options.steps
    if not 1 <= steps <= MOST_STEPS:
        raise GuardlitError(f"--steps {steps} must lie in 1 to {MOST_STEPS}")
    if options.shift is not None:
        positive(**{"--shift": options.shift})
    shift, train_timesteps = _shift(options.model, options.shift)
    sampler = options.sde or "flow"
    try:
        sigmas = flow_match_sigmas(steps, shift, train_timesteps)
        coefficients = _sampler(sampler, options.noise_level).coefficients(sigmas)
    except ValueError as error:
        raise GuardlitError(str(error)) from error
    fraction = DEFAULT_FRACTION if options.timestep_fraction is None else options.timestep_fraction
    trained = _trained_steps(coefficients, fraction)
    title = f"{sampler}, {steps} steps, shift {shift:g}, {len(trained)} trained"
    return schedule_table(coefficients, trained), title


def _of_run(options: argparse.Namespace, rest: list[str]) -> tuple[ScheduleTable, str]:
    """The sampler, the steps and the model's own schedule of a configuration; no weights are read."""
    for name, key in OF_A_RUN.items():
        if getattr(options, name) is not None:
            raise GuardlitError(f"--{name.replace('_', '-')}: the configuration has it; give --{key}")
    from guardlit.commands.plan import planned

    module = planned(rest).module
    rollout = module.rollout
    try:
        coefficients = module.sde.coefficients(module.policy.skeleton().sigmas(rollout.num_inference_steps))
    except ValueError as error:
        raise GuardlitError(str(error)) from error
    trained = [step for step in range(*rollout.trainable_range) if coefficients.std[step] > 0]
    title = f"{type(module.sde).__name__}, {len(coefficients)} steps of the model's schedule, {len(trained)} trained"
    return schedule_table(coefficients, trained), title


def _parser(config: bool = True) -> Parser:
    epilog = "With --config all other options but --plot and --csv are those of `guardlit fit`."
    parser = Parser("guardlit schedule", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("--steps", type=int, metavar="T", help="sampling steps (default: 10)")
    add("--shift", type=float, help="timestep shift (default: the model's, or 3)")
    add("--sde", choices=[*SAMPLERS, "ode"], help="sampler (default: flow)")
    add("--noise-level", type=float, metavar="ETA", help="default: 0.7 for flow, 0.3 for dance, 0.8 for cps")
    add("--timestep-fraction", type=float, help="fraction of the steps that is trained (default: 0.99)")
    add("--model", type=Path, metavar="FOLDER", help="pipeline folder whose scheduler gives the shift")
    add("--plot", type=Path, metavar="PNG", help="draw the table into this file")
    add("--csv", type=Path, metavar="CSV", help="write the table to this file")
    if config:  # listed by help; where one is given, it is of `fit`
        add("--config", metavar="FILE", help="a run: the sampler, steps and schedule that it trains with")
    return parser


def _shift(model: Path | None, shift: float | None) -> tuple[float, int]:
    """The shift and the length of the training schedule, from a pipeline folder unless the option says otherwise."""
    if model is None:
        return (DEFAULT_SHIFT if shift is None else shift), DEFAULT_TRAIN_TIMESTEPS
    path = model / "scheduler" / "scheduler_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GuardlitError(
            f"--model {model}: {path} cannot be read ({error.strerror}); name a pipeline folder"
        ) from error
    except ValueError as error:
        raise GuardlitError(f"{path} is not JSON: {error}") from error
    found = config.get("_class_name") if isinstance(config, dict) else type(config).__name__
    if found != "FlowMatchEulerDiscreteScheduler":
        raise GuardlitError(f"{path}: found {found}, only FlowMatchEulerDiscreteScheduler is a flow-matching schedule")
    for name in OTHER_SCHEDULES:
        if config.get(name):
            raise GuardlitError(f"{path}: {name} is set; only a static shift can be printed")
    if config.get("use_dynamic_shifting") and shift is None:
        low, high = (math.exp(_number_of(config, key, default, path)) for key, default in OF_SIZE)
        raise GuardlitError(f"{path}: the shift depends on the image size; give --shift, from {low:.2f} to {high:.2f}")
    own = _number_of(config, "shift", 1.0, path) if shift is None else shift  # 1.0 is diffusers' default
    return own, int(_number_of(config, "num_train_timesteps", DEFAULT_TRAIN_TIMESTEPS, path))


def _number_of(config: Mapping[str, Any], key: str, default: float, path: Path) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise GuardlitError(f"{path}: {key} is {value!r}; a positive number is needed")
    return value


def _sampler(name: str, noise_level: float | None) -> SDE:
    if name == "ode":
        if noise_level is not None:
            raise GuardlitError("--sde ode draws no noise: leave --noise-level out")
        return ODE()
    return SAMPLERS[name]() if noise_level is None else SAMPLERS[name](noise_level)


def _trained_steps(coefficients: Coefficients, fraction: float) -> list[int]:
    """The first `fraction` of the steps, without deterministic ones."""
    if not 0 < fraction <= 1:
        raise GuardlitError(f"--timestep-fraction {fraction} must lie in (0, 1]")
    count = math.floor(len(coefficients) * fraction + 1e-9)  # 100 x 0.29 is 28.999... in floating point
    if count == 0:
        raise GuardlitError(f"--timestep-fraction {fraction} of --steps {len(coefficients)} leaves no step to train")
    return [step for step in range(count) if coefficients.std[step] > 0]


def _print(found: ScheduleTable, title: str) -> None:
    show(title, *_grids(found, line_width()))
    if not bool((found.coefficients["s"] > 0).all()):
        show("A step with s = 0 is deterministic: it has no ratio and cannot be trained.")


def _grids(found: ScheduleTable, width: int) -> list[Table]:
    """The coefficients, and the objectives' gradient scales in as many tables as the width takes."""
    trained = ["yes" if step else "no" for step in found.trained.tolist()]
    coefficients = {name: [_number(value) for value in c.tolist()] for name, c in found.coefficients.items()}
    scales = {name: [_number(value) for value in s.tolist()] for name, s in found.gradient_scales.items()}
    spreads = {name: times(found.spread(scale)) for name, scale in found.gradient_scales.items()}
    needed = {name: max(map(len, (name, spreads[name], *cells))) + BETWEEN for name, cells in scales.items()}
    # the fewest tables of about as many columns that fit
    sizes = [-(-len(scales) // tables) for tables in range(1, len(scales) + 1)]
    splits = [[list(scales)[i : i + size] for i in range(0, len(scales), size)] for size in sizes]
    first = len("max/min") + 2
    parts = next((s for s in splits if all(first + sum(needed[name] for name in p) <= width for p in s)), splits[-1])
    grids = [_grid({**coefficients, "trained": trained}, trained)]
    return grids + [
        _grid({name: scales[name] for name in part}, trained, ["max/min", *(spreads[name] for name in part)])
        for part in parts
    ]


def _grid(columns: Mapping[str, list[str]], trained: list[str], footer: list[str] | None = None) -> Table:
    rows = [[str(step), *(cells[step] for cells in columns.values())] for step in range(len(trained))]
    grid = table(["step", *columns], rows, footer)
    for row, answer in zip(grid.rows, trained, strict=True):
        row.style = None if answer == "yes" else "dim"
    return grid


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.1e}"


def plot(path: Path, found: ScheduleTable) -> None:
    """Draw s and |g|, and the gradient scale of each objective, over t; steps that are not trained are hollow.

    Args:
        path: file to write; its suffix chooses the format.
        found: what to draw.

    Raises:
        OSError: the file cannot be written.
        ValueError: a file format matplotlib does not know.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    _curve(left, found, found.coefficients["s"], 0, 1.0, "s, standard deviation")
    _curve(left, found, found.coefficients["g"].abs(), 1, 1.0, "|g|, factor of the velocity")
    for style, (name, scale) in enumerate(found.gradient_scales.items()):
        # earlier curves are broader, for on-policy several coincide
        _curve(
            right,
            found,
            scale,
            style,
            BROADEST ** (1 - style / len(found.gradient_scales)),
            f"{name}, {times(found.spread(scale))}",
        )
    left.set(title="Coefficients of a step", ylabel="coefficient", ylim=(0, None))
    right.set(title="Predicted gradient scale, max/min over trained steps", ylabel="gradient scale", yscale="log")
    for axes in (left, right):
        axes.set(xlabel="t, from noise (1) to image (0); hollow: not trained", xlim=(1.03, -0.03))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=9)
    right.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def _curve(axes: Axes, found: ScheduleTable, values: Tensor, style: int, broad: float, label: str) -> None:
    from guardlit_callbacks.figures.plots import LINES, MARKERS, PALETTE

    t, untrained = found.coefficients["t"].numpy(), ~found.trained.numpy()
    look: dict[str, Any] = {"color": PALETTE[style], "markersize": 4 * broad**0.6}
    axes.plot(t, values.numpy(), LINES[style], marker=MARKERS[style], label=label, linewidth=1.5 * broad, **look)
    axes.plot(t[untrained], values.numpy()[untrained], MARKERS[style], mfc="white", **look)

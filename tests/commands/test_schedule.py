import csv
import io
import json
from pathlib import Path

import pytest
import torch

from guardlit.commands.schedule import _grids, main
from guardlit.errors import GuardlitError
from guardlit.schedule import schedule_table, write_csv
from guardlit.sde import CPS, FlowSDE, flow_match_sigmas

# SD3.5-M: 10 steps, shift 3, noise level 0.7
PUBLISHED = {
    "t": ["1.000", "0.960", "0.913", "0.858", "0.790", "0.707", "0.602", "0.465", "0.278", "0.009"],
    "s": ["0.700", "0.743", "0.536", "0.446", "0.392", "0.353", "0.319", "0.282", "0.225", "0.006"],
    "g": ["-0.040", "-0.058", "-0.069", "-0.084", "-0.103", "-0.131", "-0.171", "-0.233", "-0.335", "-0.011"],
    "|g|/s": ["0.057", "0.078", "0.129", "0.188", "0.264", "0.371", "0.536", "0.825", "1.487", "1.771"],
    "trained": ["yes"] * 9 + ["no"],
    "GRPOGuard": ["1.000"] + ["1.245"] * 9,
}
PUBLISHED["FlowGRPO"] = PUBLISHED["MeanRevised"] = PUBLISHED["|g|/s"]
PUBLISHED["RatioNorm"] = PUBLISHED["TempFlowGRPO"] = [g.removeprefix("-") for g in PUBLISHED["g"]]


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[dict[str, list[str]], list[str], str]:
    """The printed columns, the words of the last rows, everything."""
    main(["schedule", *options])
    text = capsys.readouterr().out
    return *columns_of(text), text


def columns_of(text: str) -> tuple[dict[str, list[str]], list[str]]:
    """The columns of all tables, and the words of their last rows."""
    columns: dict[str, list[str]] = {}
    last, header = ["max/min"], []
    for row in (line.split() for line in text.splitlines() if line.strip()):
        if row[0] == "step":
            header = row
            columns |= {name: [] for name in header}
        elif row[0].isdigit():
            for name, cell in zip(header, row, strict=True):
                columns[name].append(cell)
        elif row[0] == "max/min":
            last += row[1:]
    return columns, last


def test_the_default_prints_the_published_numbers(capsys: pytest.CaptureFixture[str]):
    columns, last, text = printed(capsys)
    assert {name: columns[name] for name in PUBLISHED} == PUBLISHED
    assert columns["step"] == [str(step) for step in range(10)]
    names = list(columns)[-10:]
    assert dict(zip(names, last[1:], strict=True)) == {
        "FlowGRPO": "26x",
        "TempFlowGRPO": "8.40x",
        "GuardReweight": "3.87x",
        "MeanRevised": "26x",
        "RatioNorm": "8.40x",
        "GRPOGuard": "1.25x",
        "FlowDPPO": "26x",
        "FlashGRPO": "1.00x",
        "PCPO": "6.75x",
        "VelocityNorm": "1.00x",
    }
    assert "…" not in text


@pytest.mark.parametrize(("width", "tables"), [(80, 2), (120, 2), (160, 1)])
def test_the_scales_fit_the_terminal(width: int, tables: int):
    from rich.console import Console

    found = schedule_table(FlowSDE(0.7).coefficients(flow_match_sigmas(10)), range(9))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(*_grids(found, width))
    text = console.export_text()
    columns, last = columns_of(text)
    assert [name for name in columns if name in found.gradient_scales] == list(found.gradient_scales)
    assert {len(cells) for name, cells in columns.items() if name != "step"} == {10}
    assert len(last) == 1 + len(found.gradient_scales)
    assert text.count("max/min") == tables
    assert max(map(len, text.splitlines())) <= width


def test_the_spread_is_taken_over_trained_steps_only():
    c = FlowSDE(0.7).coefficients(flow_match_sigmas(10))
    flow = schedule_table(c, range(9)).gradient_scales["FlowGRPO"]
    assert schedule_table(c, range(9)).spread(flow) == pytest.approx(26.1, abs=0.05)
    assert schedule_table(c, range(1, 9)).spread(flow) == pytest.approx(19.0, abs=0.05)
    assert schedule_table(c, [4]).spread(flow) == 1


def test_a_deterministic_step_has_no_ratio_and_cannot_be_trained(capsys: pytest.CaptureFixture[str]):
    c = CPS().coefficients(flow_match_sigmas(10))
    with pytest.raises(ValueError, match="step 9 cannot be trained"):
        schedule_table(c, range(10))
    with pytest.raises(ValueError, match="step 10 cannot be trained"):
        schedule_table(FlowSDE().coefficients(flow_match_sigmas(10)), [10])
    columns, _, text = printed(capsys, "--sde", "cps", "--timestep-fraction", "1")
    assert columns["trained"] == ["yes"] * 9 + ["no"]
    assert (columns["|g|/s"][9], columns["FlowGRPO"][9]) == ("-", "-")
    assert "cannot be trained" in text
    columns, last, _ = printed(capsys, "--sde", "ode")
    assert set(columns["trained"]) == {"no"}
    assert set(last[1:]) == {"-"}


def test_the_options_reach_the_sampler(capsys: pytest.CaptureFixture[str]):
    columns, _, _ = printed(capsys, "--sde", "dance", "--noise-level", "0.5", "--steps", "4", "--shift", "1")
    sigmas = flow_match_sigmas(4, shift=1)
    assert columns["t"] == [f"{t:.3f}" for t in sigmas[:-1].tolist()]
    assert columns["s"] == [f"{0.5 * dt**0.5:.3f}" for dt in (-sigmas.diff()).tolist()]
    assert columns["trained"] == ["yes"] * 3 + ["no"]  # 4 x 0.99, rounded down


def test_the_csv_holds_the_table_at_full_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["schedule", "--csv", str(tmp_path / "table.csv")])
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    c = FlowSDE(0.7).coefficients(flow_match_sigmas(10))
    for name, values in {"t": c.sigmas[:-1], "dt": c.dt, "a": c.sample, "g": c.velocity, "s": c.std}.items():
        assert [float(row[name]) for row in rows] == values.tolist()
    assert [float(row["GRPOGuard"]) for row in rows] == (c.velocity.abs() / c.dt).tolist()
    assert [row["trained"] for row in rows] == ["1"] * 9 + ["0"]
    write_csv(tmp_path / "cps.csv", schedule_table(CPS().coefficients(flow_match_sigmas(3)), [0]))
    assert list(csv.DictReader((tmp_path / "cps.csv").open()))[2]["FlowGRPO"] == ""


def test_the_plot_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from PIL import Image

    path = tmp_path / "schedule.png"
    main(["schedule", "--plot", str(path)])
    image = Image.open(path).convert("RGB")
    assert image.width > image.height > 400
    assert len(image.getcolors(maxcolors=2**24)) > 100


def scheduler_folder(folder: Path, **changes) -> Path:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 2.0, **changes}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def test_the_shift_comes_from_the_model_unless_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = str(scheduler_folder(tmp_path))
    columns, _, _ = printed(capsys, "--model", model)
    assert columns["t"] == [f"{t:.3f}" for t in flow_match_sigmas(10, 2.0)[:-1].tolist()]
    columns, _, _ = printed(capsys, "--model", model, "--shift", "3")
    assert columns["t"] == PUBLISHED["t"]


def test_a_shift_that_depends_on_the_image_has_to_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = str(scheduler_folder(tmp_path, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15))
    with pytest.raises(GuardlitError, match=r"scheduler_config.json: .*give --shift, from 1\.65 to 3\.16"):
        main(["schedule", "--model", model])
    assert printed(capsys, "--model", model, "--shift", "3")[0]["t"] == PUBLISHED["t"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "found DDIMScheduler"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused(config: dict, message: str, tmp_path: Path):
    with pytest.raises(GuardlitError, match=message):
        main(["schedule", "--model", str(scheduler_folder(tmp_path, **config))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "x"], "argument --steps: invalid int value: 'x'"),
        (["--steps", "0"], "--steps 0 must lie in 1 to 1000"),
        (["--shift", "-1"], "shift=-1.0"),
        (["--shift", "nan"], "--shift=nan must be positive"),
        (["--noise-level", "-1"], "noise_level=-1.0 must lie in"),
        (["--sde", "cps", "--noise-level", "1.5"], "noise_level=1.5 must lie in"),
        (["--sde", "ode", "--noise-level", "0.7"], "--sde ode draws no noise"),
        (["--sde", "fow"], "invalid choice: 'fow'"),
        (["--timestep-fraction", "0"], r"must lie in \(0, 1\]"),
        (["--timestep-fraction", "1.1"], r"must lie in \(0, 1\]"),
        (["--steps", "1"], "leaves no step to train"),
        (["--step", "3"], "unknown option --step: did you mean --steps?"),
        (["--model", "nowhere"], "--model nowhere: .* cannot be read"),
        (["--csv", "nowhere/out.csv"], "nowhere/out.csv"),
        (["--plot", "out.mp3"], "'mp3' is not supported"),
    ],
)
def test_a_bad_option_is_one_clear_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GuardlitError, match=message) as caught:
        main(["schedule", *options])
    assert "\n" not in str(caught.value)


def test_nothing_is_truncated_with_many_small_steps(capsys: pytest.CaptureFixture[str]):
    columns, _, text = printed(capsys, "--steps", "1000")
    assert len(columns["t"]) == 1000
    assert "…" not in text
    assert all(float(value) > 0 for value in columns["RatioNorm"])
    assert torch.isfinite(torch.tensor([float(value) for value in columns["FlowGRPO"]])).all()


def test_a_configuration_gives_sampler_steps_and_schedule(capsys: pytest.CaptureFixture[str]):
    """SD3.5 Medium's bundled facts have the shift of 3 that the options default to."""
    recipe = str(Path(__file__).parents[2] / "configs" / "sd35_pickscore.yaml")
    columns, _, text = printed(capsys, "--config", recipe)
    assert {name: columns[name] for name in PUBLISHED} == PUBLISHED
    assert "FlowSDE, 10 steps of the model's schedule, 9 trained" in " ".join(text.split())
    columns, _, _ = printed(capsys, "--config", recipe, "--model.sde", "CPS", "--model.rollout.num_inference_steps=4")
    assert columns["trained"] == ["yes"] * 3 + ["no"]


def test_a_configuration_takes_the_place_of_options(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("model: {}\n")
    with pytest.raises(GuardlitError, match=r"--noise-level: the configuration has it; give --model\.sde\.noise_level"):
        main(["schedule", "--config", str(tmp_path / "run.yaml"), "--noise-level", "0.3"])

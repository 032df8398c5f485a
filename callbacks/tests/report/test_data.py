import numpy as np
import pytest
from guardlit_callbacks.report.data import MAX_ROUNDS, ReportError, read_run
from run_folders import write_config, write_csv, write_gold, write_metrics, write_ratio, write_run


def test_scalars_are_read_by_step_without_those_of_single_denoising_steps(tmp_path):
    rows = [
        {"step": 0, "loss": 1.0, "ratio/raw/mean/t03": 7.0},
        {"step": 4, "loss": 3.0},
        {"step": 4, "loss": 5.0, "kl": 0.5},
        {"step": 8, "loss": float("nan")},
    ]
    write_csv(tmp_path / "metrics.csv", rows)
    scalars = read_run(str(tmp_path)).scalars
    assert {key: (s.step.tolist(), s.value.tolist()) for key, s in scalars.items()} == {
        "loss": ([0, 4], [1, 4]),
        "kl": ([4], [0.5]),
    }


def test_several_values_an_epoch_are_averaged_and_single_ones_are_not(tmp_path):
    rows = [{"epoch": e, "step": 4 * e + u, "norm": e + u} for e in range(10) for u in range(4)]
    rows += [{"epoch": e, "step": 4 * e + 3, "val/reward": 10 * e} for e in range(0, 10, 3)]
    write_csv(tmp_path / "metrics.csv", rows)
    scalars = read_run(str(tmp_path)).scalars
    np.testing.assert_array_equal(scalars["norm"].step, 4 * np.arange(10) + 1.5)
    np.testing.assert_array_equal(scalars["norm"].value, np.arange(10) + 1.5)
    np.testing.assert_array_equal(scalars["val/reward"].step, [3, 15, 27, 39])


def test_a_row_that_is_being_written_is_left_out(tmp_path):
    path = write_metrics(tmp_path)
    path.write_text(path.read_text() + "4,4,0.1")
    assert read_run(str(tmp_path)).scalars["reward/x_mean"].step.tolist() == [0, 1, 2, 3]


def test_repeated_steps_of_a_resumed_run_count_once(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write_metrics(a, range(6), slope=1.0)
    write_metrics(b, range(3, 9), slope=-1.0)
    write_gold(a, average=(1.0, 1.1, 1.2), proxy=(1, 2, 3))  # steps 0, 10, 20
    write_gold(b, average=(7.0, 8.0), proxy=(4, 5), first=10)  # steps 10, 20
    for index in range(4):
        write_ratio(a, index, seed=0)
    later = [write_ratio(b, index, seed=1) for index in (2, 3)]
    write_config(a, seed=1)
    write_config(b, seed=2)
    run = read_run(f"{a}+{b}")
    assert run.folders == (a, b)
    assert run.scalars["reward/x_mean"].value.tolist() == [0, 1, 2, -3, -4, -5, -6, -7, -8]
    assert run.gold["average"].tolist() == [1.0, 7.0, 8.0]
    assert run.ratio.found == 4
    np.testing.assert_array_equal(run.ratio.arrays[2]["log_ratio"], later[0].ravel())
    assert run.config["seed_everything"] == 2


def test_a_plus_in_a_folders_name_is_no_join(tmp_path):
    write_metrics(tmp_path / "lr+wd")
    assert read_run(str(tmp_path / "lr+wd")).name == "lr+wd"


def test_what_is_missing_is_named(tmp_path):
    write_gold(tmp_path)
    run = read_run(str(tmp_path))
    assert run.missing == ("metrics.csv", "ratio/round_*.npz", "gradient/round_*.npz", "config.yaml", "run.json")
    assert read_run(str(write_run(tmp_path / "full"))).missing == ()


def test_of_very_many_rounds_some_are_read_evenly(tmp_path):
    rounds = MAX_ROUNDS * 2 + 1
    for index in range(rounds):
        write_ratio(tmp_path, index, n=2)
    run = read_run(str(tmp_path))
    assert (run.ratio.found, len(run.ratio.arrays)) == (rounds, MAX_ROUNDS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.csv", "epoch,loss\n0,1\n", "has no column 'step'"),
        ("metrics.csv", "step,loss\n0,1\n1,x\n", r"metrics.csv:3: column 'loss' holds 'x', which is no number"),
        ("gold.csv", "step,average\n0,high\n", r"gold.csv:2: column 'average' holds 'high'"),
        ("ratio/round_00000.npz", "not a zip", r"round_00000.npz cannot be read"),
        ("run.json", "{", r"run.json cannot be read"),
        ("run.json", "[1]", r"run.json holds a list; it must be a mapping"),
        ("config.yaml", "a: [", r"config.yaml is no YAML"),
    ],
)
def test_a_broken_file_is_named_in_one_line(name, content, message, tmp_path):
    write_run(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ReportError, match=message) as caught:
        read_run(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_logs_is_refused_and_the_right_one_named(tmp_path):
    with pytest.raises(ReportError, match=r"run .*nowhere is no folder"):
        read_run(str(tmp_path / "nowhere"))
    with pytest.raises(ReportError, match=r"holds no logged data: none of metrics.csv, gold.csv, .*; log with"):
        read_run(str(tmp_path))
    write_metrics(tmp_path / "version_3")
    with pytest.raises(ReportError, match=r"holds no logged data: did you mean .*/version_3\?"):
        read_run(str(tmp_path))

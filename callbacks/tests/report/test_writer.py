import base64
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from guardlit_callbacks import GoldScore, GradientNorm, RatioDistribution
from guardlit_callbacks.figures import gradient_figure, proxy_gold_figure, training_figure
from guardlit_callbacks.report import writer as report
from guardlit_callbacks.report.data import read_run
from guardlit_callbacks.report.labels import ConfigKeys, group
from guardlit_callbacks.report.methods import ratio_by_step
from guardlit_callbacks.tools.lightning import Callback
from run_folders import write_csv, write_gold, write_metrics, write_ratio, write_run, write_strip
from toy_flow import Rounds, ToyFlow, transitions

ROOT = Callback.__module__.removesuffix(".callbacks.callback")
KEYS = ConfigKeys("model.objective.class_path", summary={"clip range": "model.objective.init_args.clip_range"})
FIGURES = {"frontier", "proxy_gold", "ratio", "gradient", "training"}


def four_runs(folder):
    """Two methods of two seeds; the first over-optimizes."""
    steady = {"average": (1.0, 1.1, 1.2), "proxy": (0.5, 0.55, 0.6)}
    return [
        str(write_run(folder / f"{name}{seed}", objective=name, seed=seed, shift=shift, **gold))
        for name, shift, gold in (("FlowGRPO", -0.5, {}), ("GRPOGuard", 0.05, steady))
        for seed in (1, 2)
    ]


def test_a_report_is_one_page_and_each_figure_twice(tmp_path):
    page = report.build(four_runs(tmp_path), tmp_path / "deep" / "out", keys=KEYS).read_text()
    written = {path.name for path in (tmp_path / "deep" / "out").iterdir()}
    assert written == {"index.html", "frontier.json", "frontier.csv"} | {
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
    }
    for name in FIGURES:
        assert (tmp_path / f"deep/out/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (tmp_path / f"deep/out/{name}.svg").read_bytes()
    assert "<h1>Training report: FlowGRPO against GRPOGuard</h1>" in page
    assert page.count("<img ") == len(FIGURES)


def test_the_page_is_self_contained(tmp_path):
    page = report.build(four_runs(tmp_path), tmp_path / "out").read_text()
    assert "<script" not in page
    assert not re.search(r"@import|<link|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all((tmp_path / "out" / name).is_file() for name in re.findall(r'href="([^"]*)"', page))


def test_each_runs_film_strip_is_on_the_page_and_the_first_of_a_method_is_open(tmp_path):
    runs = four_runs(tmp_path)
    strips = {run: write_strip(Path(run), 50 * i) for i, run in enumerate(runs) if i != 1}
    page = report.build(runs, tmp_path / "out", keys=KEYS).read_text()
    shown = re.findall(r'<summary>([^<]*)</summary><figure>.*?src="data:image/png;base64,([^"]*)"', page)
    names = ["FlowGRPO, seed 1", "GRPOGuard, seed 1", "GRPOGuard, seed 2"]
    assert shown == [(n, base64.b64encode(s).decode()) for n, s in zip(names, strips.values(), strict=True)]
    assert page.count("<details open>") == 2
    written = [(tmp_path / f"out/samples_{i}.png").read_bytes() for i in (1, 2, 3)]
    assert written == list(strips.values())


def test_the_page_says_where_over_optimization_starts_and_what_differs(tmp_path):
    page = report.build(four_runs(tmp_path), tmp_path / "out", keys=KEYS).read_text().replace("<wbr>", "")
    top = page[: page.index("<h2>Proxy reward against gold scores")]
    assert "FlowGRPO: over-optimization: proxy went from 0.5 to 0.75, gold went from 1.000 to 0.800; " in top
    assert "gold is highest at step 10 (1.200) and falls from there while the proxy rises.</p>" in top
    assert "GRPOGuard: no over-optimization: proxy went from 0.5 to 0.6, gold went from 1.000 to 1.200; " in top
    assert '<td class="text" data-name="setting">clip range</td>' in top
    cells = re.sub(r' data-name="[^"]*"', "", page)
    assert '<td class="text">model.objective.class_path</td><td class="text">project.objective.FlowGRPO</td>' in cells
    assert '<td class="text">versions.torch</td><td class="text">2.14.1</td>' in cells
    assert "<summary>command: FlowGRPO, seed 2</summary><pre>train --fast</pre>" in page
    assert "resumed_from" in page
    assert re.findall(r"Not shown: no run has ([^,]*)", page) == ["drift/* in metrics.csv", "samples/film_strip.png"]


def test_settings_of_many_runs_are_rows(tmp_path):
    runs = [write_run(tmp_path / f"r{i}", seed=i) for i in range(5)]
    page = report.build([str(run) for run in runs], tmp_path / "out", keys=KEYS).read_text().replace("<wbr>", "")
    assert '<th class="text">run</th><th class="text">seed_everything</th></tr>' in page
    cells = re.sub(r' data-name="[^"]*"', "", page)
    assert '<tr><td class="text">FlowGRPO, seed 4</td><td class="text">4</td></tr>' in cells


def test_the_same_runs_make_the_same_files(tmp_path):
    runs = four_runs(tmp_path)
    for name in ("a", "b"):
        report.build(runs, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_names_are_escaped(tmp_path):
    page = report.build([str(write_run(tmp_path / "run"))], tmp_path / "out", ["<b>&"], "<script>").read_text()
    assert "<b>" not in page
    assert "<script>" not in page
    assert '<td class="text" data-name="method">&lt;b&gt;&amp;</td>' in page


def test_a_run_with_a_few_metrics_shows_these_and_says_what_is_not_there(tmp_path):
    write_metrics(tmp_path / "run")
    page = report.build([str(tmp_path / "run")], tmp_path / "out").read_text().replace("<wbr>", "")
    assert page.count("Not shown: no run has ") == 6
    assert "gold.csv, which GoldScore writes" in page
    assert "gold.csv, ratio/round_*.npz, gradient/round_*.npz, config.yaml, run.json" in page
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"index", "training"}


def test_curves_are_chosen_by_pattern(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "guardlit_callbacks.report.sections.training_figure",
        lambda panels: drawn.append({key: unit for key, (unit, _) in panels.items()}) or training_figure(panels),
    )
    keys = ["gradient/norm_before_clipping", "train/grad_norm", "train/kl", "val/reward", "ratio/clipped", "other/x"]
    write_csv(tmp_path / "run/metrics.csv", [{"step": s} | dict.fromkeys(keys, s) for s in range(3)])
    report.build([str(tmp_path / "run")], tmp_path / "out")
    report.build([str(tmp_path / "run")], tmp_path / "out", curves=["other/*", "train/*"])
    assert drawn == [
        {
            "val/reward": "reward",
            "ratio/clipped": "fraction of transitions",
            "train/kl": "KL divergence",
            "gradient/norm_before_clipping": "norm, loss / parameter",
        },
        {"other/x": "value", "train/grad_norm": "norm, loss / parameter", "train/kl": "KL divergence"},
    ]


def test_six_methods_take_ratio_figures_of_two(tmp_path):
    for i in range(5):
        write_ratio(tmp_path / f"r{i}", 0)
    report.build([str(tmp_path / f"r{i}") for i in range(5)], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {"ratio_1.png", "ratio_2.png", "ratio_3.png"}


def test_the_command_takes_the_keys_of_a_configuration(tmp_path, capsys):
    options = ["--method-key", "model.objective.class_path", "--seed-keys", "model.objective.init_args.clip_range"]
    assert report.main([*four_runs(tmp_path), "--out", str(tmp_path / "out"), *options]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<h1>Training report: FlowGRPO against GRPOGuard</h1>" in page
    assert "FlowGRPO, FlowGRPO1" in page  # a seed of 0.001 names no run
    capsys.readouterr()
    report.execute([*four_runs(tmp_path), "--out", str(tmp_path / "again")], "mine", KEYS)
    assert "<h1>Training report: FlowGRPO against GRPOGuard</h1>" in (tmp_path / "again" / "index.html").read_text()


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_needs_neither_torch_nor_lightning(tmp_path):
    runs = four_runs(tmp_path)
    code = """
import sys
from guardlit_callbacks.report.writer import main
code = main(sys.argv[1:])
print(*sorted({"torch", "lightning", "pytorch_lightning", "torchmetrics", "matplotlib.pyplot"} & set(sys.modules)))
sys.exit(code)
"""
    arguments = [*runs, "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [str(tmp_path / "out" / "index.html"), ""]


def test_the_module_runs_as_a_program(tmp_path):
    command = [sys.executable, "-m", "guardlit_callbacks.report", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"python -m guardlit_callbacks.report: error: run {tmp_path} holds no logged data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN"], "the following arguments are required: --out"),
        (["--out", "out"], "the following arguments are required: RUN"),
        (["nowhere", "--out", "out"], "run nowhere is no folder; give the one that holds its metrics.csv"),
        (["RUN", "--out", "FILE"], r"--out .*file cannot be written: File exists"),
        (["RUN", "--out", "FILE/out"], r"--out .*file/out cannot be written: Not a directory"),
        (["RUN", "--out", "out", "--curves", "lr"], "--curves 'lr' is no logged key; there are reward/x_mean"),
        (["RUN", "--out", "out", "--label", "a", "--label", "b"], "--label is given 2 times for 1 runs"),
        (["RUN", "GOLD", "--out", "out"], r"the runs have nothing in common to compare: run has reward/x_mean; gold "),
        (["RUN", "--out", "out", "--titel", "x"], "unrecognized arguments: --titel x"),
    ],
)
def test_an_error_is_one_line_and_writes_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_metrics(tmp_path / "run")
    write_gold(tmp_path / "gold")
    (tmp_path / "file").touch()
    places = {"RUN": tmp_path / "run", "GOLD": tmp_path / "gold", "FILE": "file", "FILE/out": "file/out"}
    assert report.main([str(places.get(argument, argument)) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists()


# --- what the callbacks really write ----------------------------------------------------------------------------------


class Brightness:
    name = "brightness"

    def setup(self, device):
        pass

    def score(self, request):
        values = request.images.float().mean(dim=(1, 2, 3))
        return type("Result", (), {"values": values, "valid": torch.ones(len(values), dtype=torch.bool)})


class Painter(ToyFlow):
    """Paints two flat images whose brightness falls with every step while the reward grows."""

    def validation_step(self, batch, batch_idx):
        at = self.global_step
        images = torch.full((2, 3, 8, 8), 100 - at, dtype=torch.uint8)
        images[1] += 50
        return {"images": images, "prompts": ["a", "b"], "reward": torch.tensor([1.0 + at, 2.0 + at])}


def test_what_the_callbacks_write_is_what_the_report_shows(tmp_path, make_trainer):
    logger = import_module(f"{ROOT}.loggers").CSVLogger(tmp_path, "run", "version_0")
    callbacks = [
        RatioDistribution(raw="raw_log_ratio", normalized="norm_log_ratio", sample_weight="sample_weight"),
        GradientNorm(parameters_every=1),
        GoldScore([Brightness()], metadata=None),
    ]
    trainer = make_trainer(*callbacks, logger=logger, max_epochs=3, num_sanity_val_steps=-1)
    trainer.fit(Painter(), Rounds(transitions()), torch.utils.data.DataLoader([0]))
    folder = tmp_path / "run" / "version_0"
    (method,) = group([read_run(str(folder))], ["toy"])

    logged = trainer.logged_metrics | {k: float(v) for k, v in trainer.callback_metrics.items()}
    shares = [float(np.mean(arrays["clipped"])) for arrays in method.runs[0].ratio.arrays]
    assert method.scalar("ratio/clip_fraction").mean.tolist() == pytest.approx(shares)
    assert method.runs[0].gold["average"][-1] == pytest.approx(logged["gold/average"])
    assert method.proxy_gold().proxy.tolist() == [1.5, 7.5, 13.5, 19.5]  # six optimizer steps a round
    assert set(ratio_by_step(method)) == {0, 1, 2}
    assert set(method.gradient("velocity")) == set(method.gradient("parameters")) == {0, 1, 2}

    page = report.build([str(folder)], tmp_path / "out").read_text()
    assert "gold is highest at step 0 (1.000) and falls from there" in page
    assert "d loss / d parameters" in page
    assert {path.stem for path in (tmp_path / "out").iterdir()} == FIGURES | {"index"}


def test_the_verdict_of_the_stop_is_on_the_page(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "over_optimization.json").write_text(json.dumps({"reason": "over-optimization: gold fell"}))
    page = report.build([str(folder)], tmp_path / "out", keys=KEYS).read_text()
    assert "<p>FlowGRPO, seed 1, while training: over-optimization: gold fell.</p>" in page


def test_figures_label_their_axes_with_units(tmp_path):
    methods = group([read_run(run) for run in four_runs(tmp_path)], keys=KEYS)
    proxy, gold = proxy_gold_figure({m.label: m.proxy_gold() for m in methods}).axes
    assert proxy.get_ylabel() == "proxy: change\n(its own unit)"  # the files have no standard deviation
    assert (gold.get_xlabel(), gold.get_ylabel()) == ("optimizer step", "gold: average of\nscore / base score")
    assert [line.get_xdata()[0] for line in gold.lines if line.get_linestyle() == ":"] == [10]
    gradient = gradient_figure({"d loss / d velocity": {m.label: m.gradient("velocity") for m in methods}}).axes[0]
    assert gradient.get_ylabel() == "mean gradient norm (units of the loss)"
    curves = {m.label: m.scalar("reward/x_mean") for m in methods}
    training = training_figure({"reward/x_mean": ("reward", curves)})
    assert (training.axes[0].get_xlabel(), training.axes[0].get_ylabel()) == ("optimizer step", "reward")
    assert [text.get_text() for text in training.legends[0].texts] == ["FlowGRPO", "GRPOGuard"]
    assert training.axes[0].lines[0].get_ydata().tolist() == [0, 1.5, 3, 4.5]


# --- the page in a browser and on paper -------------------------------------------------------------------------------


def test_a_narrow_screen_shows_each_row_as_a_list_of_names_and_values(tmp_path):
    page = report.build(four_runs(tmp_path), tmp_path / "out", keys=KEYS).read_text()
    for header, body in re.findall(r"<table[^>]*>.*?<thead>(.*?)</thead>(.*?)</table>", page, re.DOTALL):
        names = re.findall(r"<th[^>]*>(.*?)</th>", header)
        rows = [
            re.findall(r'<td[^>]* data-name="([^"]*)"', row) for row in re.findall(r"<tr>.*?</tr>", body, re.DOTALL)
        ]
        assert rows
        assert all(row == names for row in rows)
    narrow = page[page.index("@media screen and (max-width: 640px)") : page.index("@media print")]
    assert "thead { display: none; }" in narrow
    assert "td::before { content: attr(data-name);" in narrow
    assert "figure img { display: block; max-width: 100%; height: auto; }" in page


def test_no_heading_is_alone_at_the_end_of_a_printed_page(tmp_path):
    page = report.build(four_runs(tmp_path), tmp_path / "out", keys=KEYS).read_text()
    assert ".keep { break-inside: avoid; }" in page
    kept = re.findall(r'<section><div class="keep"><h2>[^<]*</h2>\n<(figure|p|div|details)', page)
    assert len(kept) == page.count("<h2>") == 10


def test_figures_are_named_by_what_they_show_and_described(tmp_path):
    page = report.build(four_runs(tmp_path), tmp_path / "out", keys=KEYS).read_text()
    assert "Fig." not in re.sub(r'src="[^"]*"', "", page)
    texts = re.findall(r'<img src="[^"]*" alt="([^"]*)"', page)
    assert len(texts) == len(FIGURES)
    assert all(text.endswith("FlowGRPO, GRPOGuard") for text in texts)


def test_drift_is_shown_with_its_first_and_last_values(tmp_path):
    rows = [{"step": s, "drift/dark_share": 0.2 + s / 10, "drift/dark_share_ratio": 1 + s} for s in range(3)]
    write_csv(tmp_path / "run/metrics.csv", rows)
    page = report.build([str(tmp_path / "run")], tmp_path / "out").read_text()
    assert (tmp_path / "out/drift.svg").is_file()
    row = re.search(r"<tr><td[^>]*>dark_share</td>.*?</tr>", page)[0]
    assert re.findall(r">([^<>]+)</td>", row) == ["dark_share", "fraction of pixels", "run", "0.2000", "0.4000", "2.00"]

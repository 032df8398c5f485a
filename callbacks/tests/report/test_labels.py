import pytest
import yaml
from guardlit_callbacks.report.data import ReportError, read_run
from guardlit_callbacks.report.labels import ConfigKeys, flatten, group
from run_folders import write_config, write_metrics

KEYS = ConfigKeys("model.objective.class_path")


def runs(tmp_path, *configs):
    for i, config in enumerate(configs):
        write_metrics(tmp_path / f"r{i}")
        if config is not None:
            write_config(tmp_path / f"r{i}", **config)
    return [read_run(str(tmp_path / f"r{i}")) for i in range(len(configs))]


def test_seeds_of_one_objective_are_one_method_and_other_settings_another(tmp_path):
    flow = [{"objective": "FlowGRPO", "seed": s, "clip_range": c} for s, c in ((1, 1e-3), (2, 1e-3), (1, 1e-2))]
    methods = group(runs(tmp_path, *flow, {"objective": "GRPOGuard"}), keys=KEYS)
    assert {m.label: m.run_names for m in methods} == {
        "FlowGRPO (clip_range 0.001)": ("seed 1", "seed 2"),
        "FlowGRPO (clip_range 0.01)": ("seed 1",),
        "GRPOGuard": ("seed 1",),
    }


def test_methods_and_seeds_are_named_by_any_keys(tmp_path):
    for name, steps, seed in (("a", 10, 1), ("b", 10, 2), ("c", 20, 1)):
        write_metrics(tmp_path / name)
        config = {"net": {"kind": "my.Net"}, "train": {"steps": steps, "rng": seed}, "out": name}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    read = [read_run(str(tmp_path / name)) for name in "abc"]
    keys = ConfigKeys("net.kind", ("train",), ("train.rng",))
    assert {m.label: m.run_names for m in group(read, keys=keys)} == {
        "Net (steps 10)": ("seed 1", "seed 2"),
        "Net (steps 20)": ("seed 1",),
    }
    assert [m.label for m in group(read)] == ["a", "b", "c"]


def test_a_lightning_cli_that_selects_the_model_by_class_needs_no_keys(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_metrics(tmp_path / name)
        config = {"seed_everything": seed, "model": {"class_path": "my.Model", "init_args": {"lr": 1}}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    (method,) = group([read_run(str(tmp_path / name)) for name in "ab"])
    assert (method.label, method.run_names) == ("Model", ("seed 1", "seed 2"))


def test_without_a_configuration_a_run_is_named_by_its_folder(tmp_path):
    assert [m.label for m in group(runs(tmp_path, None, None), [])] == ["r0", "r1"]
    write_metrics(tmp_path / "mine" / "version_0")
    assert read_run(str(tmp_path / "mine" / "version_0")).name == "mine/version_0"


def test_labels_group_runs_whatever_their_settings(tmp_path):
    methods = group(runs(tmp_path, {"seed": 3}, {"seed": 3, "clip_range": 7}, None), ["a", "a", "b"])
    assert [(m.label, m.run_names) for m in methods] == [("a", ("r0", "r1")), ("b", ("r2",))]


def test_labels_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ReportError, match=r"--label is given 1 times for 2 runs; give one for each"):
        group(runs(tmp_path, None, None), ["a"])
    with pytest.raises(ReportError, match=r"15 methods, and a figure shows 14 at most"):
        group(runs(tmp_path, *[None] * 15), [])


def test_settings_are_flattened_to_dotted_keys():
    config = {"model": {"lr": 1, "betas": [0.9, 0.99], "kl": None, "more": {}}}
    assert flatten(config) == {
        "model.lr": "1", "model.betas.0": "0.9", "model.betas.1": "0.99", "model.kl": "null", "model.more": "{}"
    }  # fmt: skip
    assert flatten({}) == {}

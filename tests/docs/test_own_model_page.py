"""docs/my_own_model.md: its code runs from top to bottom, and the YAML names the policy."""

from __future__ import annotations

import contextlib
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml

PAGE = (Path(__file__).parents[2] / "docs/my_own_model.md").read_text(encoding="utf-8")
FOLDER, POLICY, CHECKS, TRAINING = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder that the page's code ran in, and the names that it left."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "my_aura.py").write_text(POLICY)
    names: dict[str, Any] = {"__name__": "page"}
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for number, block in enumerate((FOLDER, CHECKS, TRAINING), start=1):
            exec(compile(block, f"block {number} of docs/my_own_model.md", "exec"), names)
    return folder, names


def test_the_four_checks_pass_and_the_run_trains(executed):
    folder, names = executed
    assert float(names["difference"]) < 1.5
    assert (folder / "aura_lora/pytorch_lora_weights.safetensors").is_file()
    assert len(list((folder / "runs/aura/version_0/checkpoints").glob("*.ckpt"))) == 2


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("timestep=sigma", "timestep=1000 * sigma"), ('{"num_inference_steps": num_steps}', '{"num_inference_steps": 5}')],
)
def test_the_checks_find_a_mistake_in_the_policy(executed, right: str, wrong: str):
    assert right in POLICY
    module = types.ModuleType("my_aura")
    exec(POLICY.replace(right, wrong), module.__dict__)
    with contextlib.chdir(executed[0]), pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "my_aura", module)
        with pytest.raises(AssertionError):
            exec(CHECKS, dict(executed[1]))


def test_the_yaml_is_the_policy(executed):
    settings = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0])
    policy = settings["model"]["policy"]
    assert policy["class_path"] == "my_aura.AuraFlowPolicy"
    assert "class AuraFlowPolicy(DiffusersPolicy):" in POLICY
    executed[1]["AuraFlowPolicy"](**{**policy["init_args"], "lora": None})


def test_the_table_names_methods_that_exist(executed):
    for method in re.findall(r"^\| [^|]+\| `(_?\w+)`", PAGE, re.MULTILINE):
        assert hasattr(executed[1]["AuraFlowPolicy"], method), method

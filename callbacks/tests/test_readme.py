import re
import subprocess
import sys
from pathlib import Path

import guardlit_callbacks
import pytest
from guardlit_callbacks.tools.lightning import Callback

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_the_example_runs_and_writes_its_images(name, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = example.replace("lightning.pytorch", name)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    (run,) = (tmp_path / "lightning_logs").iterdir()
    assert {p.name for p in (run / "samples").iterdir()} == {
        "step_000000.png",
        "step_000004.png",
        "step_000008.png",
        "film_strip.png",
    }
    assert (run / "ratio" / "round_00002.npz").exists()


def test_every_callback_is_in_the_table():
    public = {name: getattr(guardlit_callbacks, name) for name in guardlit_callbacks.__all__}
    callbacks = {name for name in public if isinstance(public[name], type)}
    callbacks = {name for name in callbacks if issubclass(public[name], Callback)}
    assert callbacks == set(re.findall(r"^\| `(\w+)`", README, re.MULTILINE))

"""The notebooks run from top to bottom in a new kernel, and are committed with the pictures that they draw."""

from __future__ import annotations

import ast
import copy
import json
import tomllib
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from notebook_outputs import keep_what_shows

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
FIGURES = {"01_ratio_and_gradient": 2, "02_over_optimization": 2, "03_callbacks_in_your_project": 3}
MODULES = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def test_every_notebook_is_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == FIGURES.keys()


@pytest.mark.parametrize("name", FIGURES)
def test_it_runs_and_draws(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = set(FOLDER.iterdir())
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(MODULES))
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == FIGURES[name]
    loaded = set(json.loads("".join(output.text for output in notebook.cells[-1].outputs)))  # in one piece or several
    assert "guardlit_callbacks" in loaded
    assert ("guardlit" in loaded) == (not name.startswith("03"))
    assert set(FOLDER.iterdir()) == before


@pytest.mark.parametrize("name", FIGURES)
def test_it_shows_its_pictures_and_little_else(name: str):
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("image/png" in o.get("data", {}) for cell in code for o in cell.outputs) == FIGURES[name]
    assert path.stat().st_size < 300_000
    assert keep_what_shows(copy.deepcopy(notebook)) == notebook
    if name.startswith("03"):
        assert "guardlit" not in {module for cell in code for module in _imported(cell.source)}


@pytest.mark.parametrize("name", FIGURES)
def test_it_opens_in_colab_and_installs_itself_only_there(name: str):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    home = project["urls"]["Repository"].removeprefix("https://github.com/")
    title, install = notebook.cells[:2]
    assert title.cell_type == "markdown"
    assert f"(https://colab.research.google.com/github/{home}/blob/main/notebooks/{name}.ipynb)" in title.source
    distribution = "guardlit-callbacks" if name.startswith("03") else project["name"]
    assert [line.strip() for line in install.source.splitlines() if "%" in line] == [f"%pip install -q {distribution}"]
    said: list[tuple[str, str]] = []
    shell = type("Shell", (), {"run_line_magic": lambda self, magic, line: said.append((magic, line))})
    source = TransformerManager().transform_cell(install.source)
    for loaded in ([], ["google.colab"]):
        sys = type("Sys", (), {"modules": loaded})
        exec(source.replace("import sys", ""), {"sys": sys, "get_ipython": shell})
        assert bool(said) == bool(loaded)
    assert said == [("pip", f"install -q {distribution}")]


def _imported(source: str) -> set[str]:
    """Top-level packages that a cell imports."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in names}

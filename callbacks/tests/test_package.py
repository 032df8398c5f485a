"""The callbacks derive from the Lightning that the program imported, and never need guardlit."""

import ast
import subprocess
import sys
from pathlib import Path

import guardlit_callbacks
import pytest

PACKAGE, TESTS = Path(guardlit_callbacks.__file__).parent, Path(__file__).parent


def python(code, *args):
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize("name", ["lightning.pytorch", "pytorch_lightning"])
def test_every_callback_derives_from_the_lightning_in_use(name):
    code = f"""
import sys
import {name} as pl
import guardlit_callbacks as g
kinds = [getattr(g, name) for name in g.__all__]
kinds = [v for v in kinds if isinstance(v, type) and "Callback" in [b.__name__ for b in v.__mro__]]
assert len(kinds) >= 8 and all(issubclass(kind, pl.Callback) for kind in kinds), kinds
other = {{"lightning.pytorch", "pytorch_lightning"}} - {{"{name}"}}
assert not other & set(sys.modules), other
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


WITHOUT_LIGHTNING = ("figures", "frontier", "report", "test_composite.py", "test_package.py", "test_readme.py")
ON_ONE_RANK = ("--ignore", str(TESTS / "distributed"), "-k", "not two_ranks")


@pytest.mark.parametrize("more", [ON_ONE_RANK, pytest.param((), marks=pytest.mark.slow)], ids=["one rank", "all"])
def test_the_other_lightning_without_guardlit_passes_the_same_tests(more):
    """Runs the tests that use Lightning once more under pytorch_lightning, with guardlit not importable."""
    code = """
import sys
sys.modules["guardlit"] = None
import pytorch_lightning, pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
    ignored = [f"--ignore={TESTS / name}" for name in WITHOUT_LIGHTNING]
    result = python(code, str(TESTS), "-q", "-x", "-p", "no:cacheprovider", "--import-mode=importlib",
                    *ignored, *more, "-c", str(TESTS.parent / "pyproject.toml"))  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]


def test_no_file_imports_guardlit_or_a_model_library():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"guardlit", "diffusers", "transformers", "peft"}, path

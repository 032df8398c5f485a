"""Blocks of code on every page: Python compiles and imports what exists, YAML is what a run accepts."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from runs import guardlit as run_guardlit

import guardlit

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "callbacks/README.md", *sorted(ROOT.glob("docs/**/*.md"))]
WRITTEN_ON_A_PAGE = {"my_aura", "my_rewards"}
SECTIONS = {"model", "data", "trainer"}


def blocks(language: str) -> list[pytest.param]:
    """Blocks of a language on all pages; the Python of one page is one script."""
    found = []
    for page in PAGES:
        texts = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        if language == "python":
            texts = ["\n".join(texts)] if texts else []
        found += [
            pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}") for number, text in enumerate(texts, start=1)
        ]
    return found


def bound(tree: ast.Module) -> set[str]:
    """Names that a script defines or imports anywhere, and the builtin ones."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    names |= {a.asname or a.name.partition(".")[0] for n in ast.walk(tree) if _imports(n) for a in n.names}
    names |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return names | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)} | {*dir(builtins)}


def _imports(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def missing(script: str) -> list[str]:
    """What a script names and does not exist: modules, their names, names of `guardlit`, names never bound."""
    tree = ast.parse(script)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if importlib.util.find_spec(alias.name) is None]
        elif isinstance(node, ast.ImportFrom) and node.module not in WRITTEN_ON_A_PAGE:
            module = import_module(node.module or "")
            found += [f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gl":
            found += [] if node.attr in guardlit.__all__ else [f"gl.{node.attr}"]
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return found + sorted(used - bound(tree))


@pytest.mark.parametrize("script", blocks("python"))
def test_python_compiles_and_names_what_exists(script: str):
    assert missing(script) == []


def accepted(block: str) -> bool:
    """Whether a block is a part of a run's file that can be parsed here."""
    settings = yaml.safe_load(block)
    elsewhere = any(f"{name}." in block for name in WRITTEN_ON_A_PAGE) or "bitsandbytes" in block or "[...]" in block
    return isinstance(settings, dict) and settings.keys() <= SECTIONS and not elsewhere


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_can_be_read(block: str):
    assert isinstance(yaml.safe_load(block), dict)


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if accepted(b.values[0]) and "rewards.md" not in b.id])
def test_yaml_is_a_part_of_a_run(block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """docs/rewards.md has its own test."""
    (tmp_path / "more.yaml").write_text(block)
    files = ["--config", ROOT / "configs/tiny_digits.yaml", "--config", tmp_path / "more.yaml"]
    assert run_guardlit("fit", *files, "--print_config") == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("import guardlit as gl\ngl.GRPOGard()", ["gl.GRPOGard"]),
        ("from guardlit.sde import FlowSDF", ["guardlit.sde.FlowSDF"]),
        ("print(never_bound)", ["never_bound"]),
        ("import guardlit as gl\nx = gl.FlowSDE()\nprint(x)", []),
    ],
)
def test_a_mistake_is_found(script: str, expected: list[str]):
    assert missing(script) == expected

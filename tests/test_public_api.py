"""`import guardlit`: the public names, imported at their first use."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from inspect import getsource

import pytest

import guardlit

HOMES = {name: home for home, names in guardlit._HOMES.items() for name in names.split()}


@pytest.mark.parametrize("name", guardlit.__all__)
def test_every_public_name_is_the_object_of_its_home(name: str):
    public = getattr(guardlit, name)
    assert public is vars(import_module(HOMES[name]))[name]
    assert public.__name__ == name


def test_type_checkers_see_the_same_names_in_the_same_modules():
    seen = {
        alias.asname: node.module
        for node in ast.walk(ast.parse(getsource(guardlit)))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("guardlit.")
        for alias in node.names
    }
    assert seen == HOMES
    assert sorted(seen) == guardlit.__all__


def test_unknown_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'guardlit' has no attribute 'Trainr'"):
        _ = guardlit.Trainr
    with pytest.raises(ImportError, match="Trainr"):
        exec("from guardlit import Trainr")


def test_completion_offers_names_that_are_not_imported_yet():
    code = "import guardlit; assert set(guardlit.__all__) < set(dir(guardlit)); assert 'Trainer' not in vars(guardlit)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_import_alone_loads_the_standard_library_at_most():
    code = "import sys; before = {*sys.modules}; import guardlit; print(*sorted({*sys.modules} - before))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "guardlit" in loaded
    assert {name.partition(".")[0] for name in loaded} - {"guardlit"} <= sys.stdlib_module_names
    assert [name for name in loaded if name.startswith("guardlit.")] == []


def test_every_objective_is_a_public_name():
    """Short names in YAML and on the command line are judged by these, before a model library loads."""
    import guardlit
    from guardlit.objective import OBJECTIVES

    assert {objective.__name__ for objective in OBJECTIVES} <= set(guardlit.__all__)
    assert all(getattr(guardlit, objective.__name__) is objective for objective in OBJECTIVES)

"""The two distributions of this repository belong together, and their bounds hold here."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import guardlit_callbacks
import pytest
from packaging.requirements import Requirement

import guardlit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CALLBACKS = tomllib.loads((ROOT / "callbacks" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}


def test_guardlit_pins_the_callbacks_to_its_own_version():
    assert str(REQUIREMENTS["guardlit-callbacks"].specifier) == f"=={guardlit.__version__}"
    assert guardlit_callbacks.__version__ == guardlit.__version__
    assert "version" in PROJECT["dynamic"]
    assert "version" in CALLBACKS["dynamic"]


def test_both_distributions_have_one_license_and_one_home():
    assert (ROOT / "callbacks" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    for name in ("license", "license-files", "urls", "requires-python"):
        assert CALLBACKS[name] == PROJECT[name], name


def test_libraries_that_guardlit_knows_the_inside_of_have_upper_bounds():
    for name in ("lightning", "jsonargparse", "diffusers"):
        assert any(bound.operator == "<" for bound in REQUIREMENTS[name].specifier), name
        assert REQUIREMENTS[name].specifier.contains(version(name)), name


EXTRAS = PROJECT["optional-dependencies"].keys()
OF_DEVELOPERS = {"dev", "docs"}


@pytest.mark.parametrize("extra", sorted(EXTRAS - OF_DEVELOPERS))
def test_who_lacks_an_extra_is_told_its_name(extra: str):
    files = (ROOT / "guardlit").rglob("*.py")
    assert any(f"guardlit[{extra}]" in path.read_text(encoding="utf-8") for path in files)


def test_the_page_says_what_each_extra_is_for():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) >= EXTRAS

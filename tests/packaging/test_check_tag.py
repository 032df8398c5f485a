"""`.ci/check_tag`: a release's tag, its version and its heading agree."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from guardlit import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what the script reads, ready for v1.2.3."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "check_tag", tmp_path / ".ci")
    (tmp_path / "pyproject.toml").write_text('dependencies = [\n  "guardlit-callbacks==1.2.3", # both\n]\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 1.2.3 - 2026-12-01\n")
    return tmp_path


def check(clone: Path, tag: str) -> tuple[int, str]:
    done = subprocess.run([clone / ".ci" / "check_tag", tag], cwd="/", capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_all_agree(clone: Path):
    assert check(clone, "v1.2.3") == (0, "v1.2.3\n")


@pytest.mark.parametrize("tag", ["1.2.3", "v1.2.4", "v1.2.3rc1", "v1.2"])
def test_another_tag(clone: Path, tag: str):
    assert check(clone, tag) == (1, f"the tag is {tag}, and pyproject.toml says 1.2.3: expected v1.2.3\n")


@pytest.mark.parametrize("heading", ["## Unreleased", "## 1.2.30 - 2026-12-01", "## 1x2.3 - 2026-12-01", "## 1.2.3"])
def test_no_heading(clone: Path, heading: str):
    (clone / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    assert check(clone, "v1.2.3") == (1, "CHANGELOG.md has no heading '## 1.2.3 - YYYY-MM-DD'\n")


def test_the_version_of_this_clone_is_found():
    assert check(ROOT, "v0")[1] == f"the tag is v0, and pyproject.toml says {__version__}: expected v{__version__}\n"

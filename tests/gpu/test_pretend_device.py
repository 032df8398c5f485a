"""The simulated GPU behaves like CUDA where it matters here; the checks are in `tests/support/device_checks.py`."""

from __future__ import annotations

import pytest
from device_checks import CHECKS, check


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The traceback of each check; all run in one separate process."""
    return check(tmp_path_factory.mktemp("checks"))


@pytest.mark.parametrize("name", CHECKS)
def test_the_device(failures: dict[str, str], name: str):
    assert failures[name] == ""

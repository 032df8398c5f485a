"""The pretended GPU behaves as CUDA does where it matters here; the checks are in `support/device_checks.py`."""

from __future__ import annotations

import pytest
from device_checks import CHECKS, check


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of each check; all are made in one process of their own."""
    return check(tmp_path_factory.mktemp("checks"))


@pytest.mark.parametrize("name", CHECKS)
def test_the_device(complaints: dict[str, str], name: str):
    assert complaints[name] == ""

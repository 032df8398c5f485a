"""An OCR scorer with one subprocess."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from guardlit.rewards import OCR


@pytest.fixture(scope="module")
def ocr() -> Iterator[OCR]:
    """Set up; each module of tests has its subprocess."""
    scorer = OCR(workers=1)
    scorer.setup(torch.device("cpu"))
    yield scorer
    scorer.close()

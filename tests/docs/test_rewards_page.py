"""What docs/rewards.md shows is configuration and code that work."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from reference.seeded import pictures
from runs import guardlit
from scorer_files import make_hpsv2, one_by_one, ready

from guardlit.rewards import HPSv2, Reward
from guardlit.types import RewardRequest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: "-".join(re.findall(r"class_path: (\S+)", block)))
def test_a_block_changes_a_run(block: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "more.yaml").write_text(block)
    assert (
        guardlit(
            "fit",
            "--config",
            ROOT / "configs/sd35_pickscore.yaml",
            "--config",
            tmp_path / "more.yaml",
            "--print_config",
        )
        == 0
    ), capsys.readouterr().err
    resolved = capsys.readouterr().out
    assert yaml.safe_load(resolved).keys() >= {"model", "data", "trainer"}
    for name in re.findall(r"class_path: (\S+)", block):
        short = name.rpartition(".")[2]  # the configuration holds the shortest import path
        assert re.search(rf"class_path: (\w+\.)*{short}$", resolved, re.MULTILINE), name


def test_a_scorer_is_written_as_shown():
    scope: dict[str, Any] = {"__name__": "page"}
    exec(next(block for block in blocks("python") if "class Saturation" in block), scope)
    scorer = scope["Saturation"]()
    scorer.setup(torch.device("cpu"))
    images = torch.tensor([[51, 51, 51], [255, 0, 0]], dtype=torch.uint8)[..., None, None].expand(2, 3, 4, 4)
    result = Reward.of(scorer).score(RewardRequest(images, ["a", "b"], [{}, {}]))
    assert result.values.tolist() == [0, 1]
    assert result.details.keys() == {"saturation"}


def test_a_file_that_is_refused_is_converted_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments, file = make_hpsv2(tmp_path), tmp_path / "HPS_v2.1_compressed.pt"
    expected = one_by_one(ready(HPSv2(**arguments)))
    torch.save(torch.load(file) | {"args": argparse.Namespace(lr=1)}, file)
    convert = next(block for block in blocks("python") if "save_file" in block)
    monkeypatch.chdir(tmp_path)
    exec(convert, {})
    scorer = ready(HPSv2(**arguments | {"weights": "HPS_v2.1.safetensors"}))
    torch.testing.assert_close(one_by_one(scorer), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_fid_is_computed_as_shown(
    tmp_path: Path, inception_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from PIL import Image

    for number, picture in enumerate(pictures([(64, 64)] * 6)):
        folder = tmp_path / ("real" if number % 2 else "drawn")
        folder.mkdir(exist_ok=True)
        Image.fromarray(picture).save(folder / f"{number}.png")
    (weights,) = inception_folder.iterdir()
    (tmp_path / weights.name).symlink_to(weights)
    monkeypatch.chdir(tmp_path)
    exec(next(block for block in blocks("python") if "FrechetInceptionDistance" in block), {})
    assert float(re.fullmatch(r"FID ([\d.]+)\n", capsys.readouterr().out)[1]) > 0

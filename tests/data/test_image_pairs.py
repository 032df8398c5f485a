"""Pairs of image and prompt: what is read, how images are brought to size, and one line for each mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import CAPTIONS, write_images, write_metadata
from PIL import Image

from guardlit.data.image_pairs import load_pairs
from guardlit.errors import GuardlitError

SIZE = (32, 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def test_a_folder_and_its_file_are_the_same_pairs(folder: Path, tmp_path: Path):
    pairs = load_pairs(str(folder), SIZE)
    assert pairs.texts == CAPTIONS
    assert [path.name for path in pairs.files] == [f"{i}.png" for i in range(7)]
    assert load_pairs(str(folder / "metadata.jsonl"), SIZE) == pairs
    shutil.move(folder, tmp_path / "moved")
    assert load_pairs(str(tmp_path / "moved"), SIZE).digest == pairs.digest  # by content


def test_the_datasets_library_reads_the_same(folder: Path):
    import datasets

    rows = datasets.load_dataset(str(folder), split="train", streaming=True)
    pairs = load_pairs(str(folder), SIZE)
    for i, row in enumerate(rows):
        assert row["text"] == pairs.texts[i]
        assert np.array_equal(np.asarray(row["image"]), pairs.pixels(i).permute(1, 2, 0).numpy())
    assert i == 6


def test_a_changed_image_text_or_size_is_another_data_set(folder: Path):
    before = load_pairs(str(folder), SIZE)
    assert load_pairs(str(folder), (16, 16)).digest != before.digest
    Image.new("RGB", SIZE).save(folder / "3.png")
    after = load_pairs(str(folder), SIZE)
    assert [i for i in range(7) if after.digests[i] != before.digests[i]] == [3]
    assert after.digest != before.digest
    write_metadata(folder, [{"file_name": "0.png", "text": "another"}])
    assert load_pairs(str(folder), SIZE).digest not in (before.digest, after.digest)


def test_an_image_is_cropped_at_its_center_and_resized(tmp_path: Path):
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 32:64], image[:, 64:96] = (200, 0, 0), (0, 100, 0)  # the central square; around it is black
    Image.fromarray(image).save(tmp_path / "wide.png")
    write_metadata(tmp_path, [{"file_name": "wide.png", "text": "a flag"}])
    pixels = load_pairs(str(tmp_path), SIZE).pixels(0)
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.uint8)
    assert pixels[:, :, 5:11].flatten(1).unique(dim=1).flatten().tolist() == [200, 0, 0]
    assert pixels[:, :, 21:27].flatten(1).unique(dim=1).flatten().tolist() == [0, 100, 0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_images_of_other_modes_are_read_as_colors(mode: str, tmp_path: Path):
    Image.new("RGB", (40, 40), (51, 51, 51)).convert(mode).save(tmp_path / "a.png")
    write_metadata(tmp_path, [{"file_name": "a.png", "text": "gray"}])
    pixels = load_pairs(str(tmp_path), SIZE).pixels(0)
    assert pixels.shape == (3, 32, 32)
    assert pixels.unique().tolist() == [51]


MISTAKES = {
    "no image": ([{"file_name": "9.png", "text": "a"}], "metadata.jsonl:1: there is no image .*9.png; file_name is"),
    "no text": (
        [{"file_name": "0.png"}],
        "metadata.jsonl:1: no 'text' here; there is 'file_name'; call the text's key",
    ),
    "blank text": ([{"file_name": "0.png", "text": " "}], "metadata.jsonl:1: the prompt is blank"),
    "no name": ([{"text": "a cat"}], "metadata.jsonl:1: no 'file_name' here; each line names an image and its prompt"),
    "odd name": ([{"file_name": 3, "text": "a cat"}], "metadata.jsonl:1: 'file_name' is 3; each line"),
    "no object": (["3"], "metadata.jsonl:1: JSON of type int; each line is one object with the key 'text'"),
    "no JSON": (["{"], "metadata.jsonl:1: not JSON"),
    "nothing": ([], "it is empty; at least one image"),
    "no picture": (
        [{"file_name": "metadata.jsonl", "text": "a"}],
        r"metadata.jsonl cannot be read as an image \(cannot",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_one_line(name: str, folder: Path):
    rows, expected = MISTAKES[name]
    write_metadata(folder, rows)
    with pytest.raises(GuardlitError, match=expected) as caught:
        load_pairs(str(folder), SIZE)
    assert "\n" not in str(caught.value)


def test_an_image_is_not_enlarged(folder: Path):
    with pytest.raises(GuardlitError, match=r"0.png is 32 x 32 pixels, smaller than the run's 64 x 64; images are not"):
        load_pairs(str(folder), (64, 64))


def test_a_damaged_image_is_named_when_it_is_decoded(folder: Path):
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[: len(content) // 2])  # its header is whole
    pairs = load_pairs(str(folder), SIZE)
    with pytest.raises(GuardlitError, match=r"2.png cannot be read as an image \("):
        pairs.pixels(2)


def test_sources_of_other_kinds(tmp_path: Path):
    with pytest.raises(GuardlitError, match="there is no such folder or file; name a folder of images"):
        load_pairs(str(tmp_path / "none"), SIZE)
    with pytest.raises(GuardlitError, match=r"has no metadata.jsonl, which names .*`guardlit sample` writes it"):
        load_pairs(str(tmp_path), SIZE)
    (tmp_path / "a.csv").touch()
    with pytest.raises(GuardlitError, match=r"it is no \.jsonl file"):
        load_pairs(str(tmp_path / "a.csv"), SIZE)

"""The bundled tiny worlds: they load without warnings, are small and can be rebuilt; the digits leave head-room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from guardlit.assets import NAMES, resolve
from guardlit.errors import GuardlitError
from guardlit.rewards.digits.scorers import SCORERS
from guardlit.sde import FlowSDE
from guardlit.tiny_world import build
from guardlit.tiny_world.digits.captions import MAX_TOKENS, captions
from guardlit.tiny_world.digits.measure import measure, prompts
from guardlit.tiny_world.drawing import draw

ASSETS = Path(str(files("guardlit.assets")))


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusion3Pipeline.from_pretrained(resolve("guardlit://digits"), local_files_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_bundled_names_resolve_to_files_of_the_package(name):
    found = resolve(f"guardlit://{name}")
    assert isinstance(found, Path)
    assert found.exists()
    assert found == ASSETS / name


@pytest.mark.parametrize("path", ["digits", "./runs/a", "stabilityai/stable-diffusion-3.5-medium", "http://host/x"])
def test_other_paths_are_returned_unchanged(path):
    assert resolve(path) == path


@pytest.mark.parametrize("path", ["guardlit://digit", "guardlit://", "guardlit://prompts/../errors.py"])
def test_an_unknown_bundled_name_lists_the_known_ones(path):
    with pytest.raises(GuardlitError, match=r"guardlit://digits, guardlit://digits_scorers") as error:
        resolve(path)
    assert "\n" not in str(error.value)


def test_everything_bundled_is_at_most_twelve_megabytes():
    sizes = [file.stat().st_size for file in ASSETS.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(sizes) <= 12_000_000


def test_no_bundled_weights_are_pickled():
    suffixes = {file.suffix for folder in NAMES[:4] for file in (ASSETS / folder).rglob("*.*")}
    assert suffixes == {".json", ".safetensors"}


@pytest.mark.parametrize("world", ["digits", "words"])
def test_loading_finds_no_missing_and_no_unexpected_weights(world):
    code = (
        "from diffusers import StableDiffusion3Pipeline; from guardlit.assets import resolve;"
        f"StableDiffusion3Pipeline.from_pretrained(resolve('guardlit://{world}'), local_files_only=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("warn", "missing", "unexpected", "newly initialized", "not used", "mismatch"):
        assert word not in (done.stdout + done.stderr).lower()


def test_the_pipeline_is_stable_diffusion_3_in_small(pipeline):
    assert pipeline.vae.config.latent_channels == pipeline.transformer.config.in_channels == 16
    assert pipeline.scheduler.config.shift == 3.0
    assert {p.dtype for p in pipeline.transformer.parameters()} == {torch.float32}
    tokens, _, pooled, _ = pipeline.encode_prompt(prompts(), None, None, max_sequence_length=MAX_TOKENS)
    assert tokens.shape == (10, 2 * MAX_TOKENS, 64)
    assert pooled.shape == (10, 64)


def test_every_word_of_the_captions_is_one_token(pipeline):
    for caption in captions():
        words = len(caption.split())
        assert len(pipeline.tokenizer(caption).input_ids) == words + 2
        assert len(pipeline.tokenizer_2(caption).input_ids) == words + 2
        assert len(pipeline.tokenizer_3(caption).input_ids) == words + 1


def test_unknown_words_are_spelled_not_dropped(pipeline):
    assert pipeline.tokenizer.decode(pipeline.tokenizer("Zebra").input_ids, skip_special_tokens=True) == "zebra"
    assert pipeline.tokenizer_3.decode(pipeline.tokenizer_3("Zebra").input_ids, skip_special_tokens=True) == "Zebra"


@pytest.mark.parametrize("noise_level", [0.7, 0.0])
def test_the_base_model_leaves_head_room_for_training(pipeline, noise_level):
    scores = measure(pipeline, SCORERS, noise_level, per_prompt=12, seed=7)
    assert 0.5 <= scores["proxy_success"] <= 0.8
    assert 0.5 <= scores["gold_success"] <= 0.8
    assert scores["realism"] < 0.2  # blank images and noise are above 0.25
    assert scores["diversity"] > 0.15


def test_the_recorded_measurement_is_in_the_promised_band():
    measured = json.loads((ASSETS / "digits" / "about.json").read_text())["measured"]
    assert 0.55 <= measured["flow_sde_0.7_10_steps"]["proxy_success"] <= 0.75


def test_images_are_a_function_of_the_seed(pipeline):
    first, again, other = (draw(pipeline, prompts()[:2], FlowSDE(0.7), seed) for seed in (1, 1, 2))
    assert first.shape == (2, 3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_diffusers_own_call_generates_a_digit(pipeline):
    image = pipeline("a handwritten seven", num_inference_steps=4, guidance_scale=3.0, output_type="pt").images
    assert image.shape == (1, 3, 32, 32)
    assert image.std() > 0.1


def test_digit_prompts_are_the_ten_canonical_ones():
    rows = [json.loads(line) for line in (ASSETS / "prompts/digits.jsonl").read_text().splitlines()]
    assert rows == [{"prompt": prompt, "digit": digit} for digit, prompt in enumerate(prompts())]


def test_everyday_prompts_are_distinct_and_short():
    lines = (ASSETS / "prompts/everyday.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 120
    assert all(line == line.strip() and 0 < len(line.split()) <= 60 for line in lines)


@pytest.mark.parametrize("world", ["digits", "words"])
def test_a_rebuild_writes_into_the_package_by_default(world, monkeypatch: pytest.MonkeyPatch):
    written = []
    scales = {"full": "the full one", "small": None}
    monkeypatch.setitem(build.WORLDS, world, (lambda *arguments: written.append(arguments), scales))
    monkeypatch.setattr(sys, "argv", ["build", world])
    build.main()
    assert written == [(ASSETS, "the full one", 0)]


def test_the_digits_are_rebuilt_where_no_world_is_named(monkeypatch: pytest.MonkeyPatch):
    written = []
    monkeypatch.setitem(build.WORLDS, "digits", (lambda *_: written.append("digits"), build.WORLDS["digits"][1]))
    monkeypatch.setattr(sys, "argv", ["build"])
    build.main()
    assert written == ["digits"]


@pytest.mark.parametrize("world", ["digits", pytest.param("words", marks=pytest.mark.slow)])
def test_a_shrunken_rebuild_writes_the_same_files(world, tmp_path):
    options = ["--out", str(tmp_path), "--scale", "small", "--seed", "3"]
    command = [sys.executable, "-m", "guardlit.tiny_world.build", world, *options]
    # one thread: two that compete with other processes for the cores can wait for each other for minutes
    subprocess.run(command, check=True, capture_output=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for folder in (world, f"{world}_scorers"):
        built = {file.relative_to(tmp_path) for file in (tmp_path / folder).rglob("*") if file.is_file()}
        assert built == {file.relative_to(ASSETS) for file in (ASSETS / folder).rglob("*") if file.is_file()}
        for file in (file for file in built if file.suffix == ".safetensors"):
            new, shipped = load_file(tmp_path / file), load_file(ASSETS / file)
            assert {k: v.shape for k, v in new.items()} == {k: v.shape for k, v in shipped.items()}
            assert {k: v.dtype for k, v in new.items()} == {k: v.dtype for k, v in shipped.items()}
        assert json.loads((tmp_path / folder / "about.json").read_text())["seed"] == 3

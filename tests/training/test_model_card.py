"""The model card of an export: what it says is what happened, it is complete, and its code runs."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from runs import config, guardlit, newest

from guardlit.files import sha256
from guardlit.policies.exports.base_model import base_license, hub_id, public_name
from guardlit.policies.exports.facts import ExportFacts
from guardlit.training.model_card.card import Origin, write_card
from guardlit.training.model_card.privacy import public, public_command
from guardlit.training.model_card.run_facts import read_run_facts
from guardlit.training.model_card.tables import gold_table

UPDATES = 4
"""Of one round."""
CALLBACKS: list[dict[str, Any]] = [
    {"class_path": "guardlit_callbacks.TrainableEMA"},
    {"class_path": "guardlit_callbacks.SampleGrid", "init_args": {"max_images": 2, "columns": 2}},
    {"class_path": "guardlit_callbacks.GoldScore", "init_args": {"scorers": ["brightness.Brightness"]}},
    {"class_path": "guardlit.training.export.ExportAtEnd"},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sd3_folder: Path) -> Path:
    """A run of one round on a model folder with its own card, in a folder with a private name."""
    folder = tmp_path_factory.mktemp("home_of_someone")
    shutil.copytree(sd3_folder, folder / "tiny_sd3")
    license = {"license": "other", "license_name": "tiny-license", "license_link": "https://example.org/LICENSE"}
    (folder / "tiny_sd3/README.md").write_text(f"---\n{yaml.safe_dump(license)}---\n# tiny\n")
    path = config(folder, folder / "tiny_sd3", trainer__max_epochs=1, trainer__callbacks=CALLBACKS)
    assert guardlit("fit", "--config", path, "--trainer.num_sanity_val_steps", -1) == 0
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return world / "runs/version_0"


def export(world: Path, out: Path, *options: object) -> Path:
    """Of the run's checkpoint; returns the averaged weights' folder."""
    checkpoint = newest(world)
    assert guardlit("export", "--config", world / "run.yaml", "--ckpt_path", checkpoint, "--out", out, *options) == 0
    return out / "ema"


def table(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of the table below a heading, by their first cell."""
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_card_of_a_finished_run(run: Path, weights: str):
    card = ModelCard.load(run / "export" / weights / "README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert data["tags"] == ["guardlit", "grpo", "reinforcement-learning", "lora"]
    assert [data.get(key) for key in ("license", "license_name")] == ["other", "tiny-license"]
    assert data["license_link"] == "https://example.org/LICENSE"
    assert "base_model" not in data  # a folder has no name on the hub
    assert card.text.startswith("\n# tiny_sd3, trained by guardlit")
    assert ("averaged over the training" in card.text) == (weights == "ema")
    recipe = table(card.text, "Recipe")
    expected = {"objective": "GRPOGuard", "clip range": "0.0001", "learning rate": "0.001", "seed": "42"}
    expected |= {"rollout steps": "5", "LoRA rank": "4", "LoRA alpha": "8", "LoRA layers": "15"}
    assert {name: recipe[name][0] for name in expected} == expected
    facts, provenance = json.loads((run / "run.json").read_text()), table(card.text, "Provenance")
    assert {name: provenance[name][0] for name in ("torch", "peft")} == {
        n: facts["versions"][n] for n in ("torch", "peft")
    }
    assert (provenance["updates"], provenance["round"]) == ([str(UPDATES)], ["1"])
    assert "Not found" not in card.text


def test_the_gold_table_has_the_first_and_the_last_evaluation(run: Path):
    text = (run / "export/ema/README.md").read_text()
    header, *rows = [line.split(",") for line in (run / "gold.csv").read_text().split()]
    found = table(text, "Gold scores")
    for label, row in (("base", rows[0]), ("last evaluation", rows[-1])):
        named = dict(zip(header, map(float, row), strict=True))
        updates, proxy, gold, average = found[label]
        assert updates == f"{named['step']:.0f}"
        assert [float(proxy), float(gold)] == pytest.approx([named["proxy"], named["brightness"]], rel=1e-3)
        assert average.startswith(f"{named['average']:.4g} (")


def test_the_grid_is_beside_the_card(run: Path):
    grids = sorted((run / "samples").glob("step_*.png"))
    assert (
        "![Samples of the last validation, by the weights that it used](./samples.png)"
        in (run / "export/raw/README.md").read_text()
    )
    assert (run / "export/raw/samples.png").read_bytes() == grids[-1].read_bytes()
    assert grids[0].read_bytes() != grids[-1].read_bytes()


def test_a_card_names_no_place_of_this_machine(world: Path, run: Path, tmp_path: Path):
    cards = [export(world, tmp_path / to, "--to", to) / "README.md" for to in ("diffusers", "comfyui", "peft")]
    cards += [export(world, tmp_path / "merged", "--merged", "true") / "README.md", run / "export/ema/README.md"]
    for card in cards:
        text = card.read_text()
        assert "guardlit fit --config run.yaml --trainer.num_sanity_val_steps -1" in text
        for private in ("home_of_someone", str(world), str(tmp_path), str(Path.home()), socket.gethostname()):
            assert not re.search(rf"(?<!\w){re.escape(private)}(?!\w)", text), (card, private)


def test_an_export_of_a_checkpoint_names_it(world: Path, run: Path, tmp_path: Path):
    checkpoint = newest(world)
    assert checkpoint.parent == run / "checkpoints"
    provenance = table((export(world, tmp_path) / "README.md").read_text(), "Provenance")
    assert provenance["checkpoint"] == ["round_00001.ckpt"]
    assert provenance["checkpoint's SHA-256"] == [sha256(checkpoint)]
    assert (provenance["updates"], provenance["round"]) == ([str(UPDATES)], ["1"])


def test_a_checkpoint_without_its_run_leaves_out_what_is_not_known(world: Path, tmp_path: Path):
    alone = tmp_path / "alone.ckpt"
    shutil.copy(newest(world), alone)
    assert guardlit("export", "--config", world / "run.yaml", "--ckpt_path", alone, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out/raw/README.md").read_text()
    assert "Not found when this card was written, and left out: the run's folder." in text
    assert "## Reward" not in text
    assert "## Gold scores" not in text
    assert table(text, "Recipe").keys() == {"LoRA rank", "LoRA alpha", "LoRA layers"}
    assert table(text, "Provenance").keys() == {"checkpoint", "checkpoint's SHA-256", "round", "updates"}
    assert {path.name for path in (tmp_path / "out/raw").iterdir()} == {"README.md", "pytorch_lora_weights.safetensors"}


@pytest.mark.parametrize(
    ("options", "library"),
    [(["--to", "diffusers"], "diffusers"), (["--to", "peft"], "peft"), (["--merged", "true"], "diffusers")],
    ids=["diffusers", "peft", "merged"],
)
def test_its_code_draws(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], library: str):
    """As it stands in the card, from the export's folder; the base is where the card says that its place is to be."""
    out = export(world, tmp_path, *options)
    card = ModelCard.load(out / "README.md")
    assert card.data.to_dict()["library_name"] == library
    assert ("lora" in card.data.to_dict()["tags"]) == ("--to" in options)
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    (out / "tiny_sd3").symlink_to(world / "tiny_sd3")
    monkeypatch.chdir(out)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(code[1], names)
    trained = names["image"]
    assert trained.size == (32, 32)
    from diffusers import StableDiffusion3Pipeline

    base = StableDiffusion3Pipeline.from_pretrained(world / "tiny_sd3")
    torch.manual_seed(0)
    call = {"num_inference_steps": 2, "guidance_scale": 1, "height": 32, "width": 32, "max_sequence_length": 16}
    assert base("a red cup on a table", **call).images[0].tobytes() != trained.tobytes()


def test_comfyui_s_card_says_where_the_file_goes(world: Path, tmp_path: Path):
    card = ModelCard.load(export(world, tmp_path, "--to", "comfyui") / "README.md")
    assert "library_name" not in card.data.to_dict()
    assert "Put `comfyui_lora.safetensors` into ComfyUI's folder `models/loras`" in card.text


@pytest.mark.parametrize(("adapter", "relation"), [(True, "adapter"), (False, "finetune")])
def test_a_base_of_the_hub_is_named(adapter: bool, relation: str, tmp_path: Path):
    flux = "black-forest-labs/FLUX.1-dev"
    facts = ExportFacts(flux, flux, adapter, "diffusers", base_license(flux, tmp_path), "Use it.")
    write_card(tmp_path, facts, read_run_facts(None, 3), Origin(3, None), "raw")
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == (flux, relation)
    assert (data["license"], data["license_name"]) == ("other", "flux-1-dev-non-commercial-license")
    assert f"[{flux}](https://huggingface.co/{flux})" in card.text
    unknown = ExportFacts("sd35m", None, adapter, "diffusers", {}, "Use it.")
    write_card(tmp_path, unknown, read_run_facts(None, 3), Origin(3, None), "raw")
    card = ModelCard.load(tmp_path / "README.md")
    assert not {"base_model", "base_model_relation", "license"} & card.data.to_dict().keys()
    assert "The license of `sd35m` is not known here" in card.text


def test_nothing_later_than_the_weights_is_shown(tmp_path: Path):
    (tmp_path / "samples").mkdir()
    for step in (0, 4, 12):
        (tmp_path / f"samples/step_{step:06d}.png").write_bytes(b"")
    (tmp_path / "gold.csv").write_text("step,aesthetic,average\n0,5,1\n4,6,1.2\n12,1,0.2\n")
    (tmp_path / "gold.json").write_text('{"lower_is_better": ["aesthetic"]}')
    found = read_run_facts(tmp_path, 8)
    assert [row["step"] for row in found.gold] == [0, 4]
    assert found.grid == tmp_path / "samples/step_000004.png"
    assert found.missing == ("config.yaml", "run.json")
    assert "| last evaluation | 4 | 6 | 1.2 |" in gold_table(found)
    assert "aesthetic (lower is better)" in gold_table(found)


def test_broken_files_are_left_out(tmp_path: Path):
    for name, text in (("config.yaml", "a: ["), ("run.json", "{"), ("gold.csv", "step\nx\n"), ("gold.json", "3")):
        (tmp_path / name).write_text(text)
    assert read_run_facts(tmp_path, 8).missing == ("config.yaml", "run.json", "gold.csv", "samples/")


# names, licenses, privacy ---------------------------------------------------------------------------------------------


def test_the_names_of_base_models(tmp_path: Path):
    model = "stabilityai/stable-diffusion-3.5-medium"
    cached = tmp_path / "hub/models--stabilityai--stable-diffusion-3.5-medium/snapshots/abc"
    assert [hub_id(name) for name in (model, str(cached), str(tmp_path), "guardlit://digits")] == [
        model,
        model,
        None,
        None,
    ]
    assert [public_name(str(tmp_path / "sd35m")), public_name("guardlit://digits")] == ["sd35m", "guardlit://digits"]


def test_the_license_of_the_base(tmp_path: Path):
    sd35, flux = "stabilityai/stable-diffusion-3.5-medium", "black-forest-labs/FLUX.1-dev"
    found = {name: base_license(name, tmp_path) for name in (sd35, flux, "someone/else", str(tmp_path))}
    assert found[sd35]["license_name"] == "stabilityai-ai-community"
    assert found[flux] == {
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": f"https://huggingface.co/{flux}/blob/main/LICENSE.md",
    }
    assert (found["someone/else"], found[str(tmp_path)]) == ({}, {})
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlicense_link: LICENSE\n---\n")
    assert base_license(sd35, tmp_path)["license"] == "mit"
    assert base_license(str(tmp_path), tmp_path) == {"license": "mit"}
    (tmp_path / "README.md").write_text("---\n[\n---\n")
    assert base_license(str(tmp_path), tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/runs/a.yaml", "a.yaml"),
        ("~/models/sd35m/", "sd35m"),
        ("../models/sd35m", "sd35m"),
        (r"C:\Users\ann\sd35m", "sd35m"),
        ("--x=/data/secret/weights.pt", "--x=weights.pt"),
        ('{"model": "/data/ann/pick", "rank": 3}', '{"model": "pick", "rank": 3}'),
        ("configs/tiny_digits.yaml", "configs/tiny_digits.yaml"),
        ("stabilityai/stable-diffusion-3.5-medium", "stabilityai/stable-diffusion-3.5-medium"),
        ("guardlit://digits", "guardlit://digits"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("http://gpu-7.lab.example:8000/score", "<server>"),
        ("1/2 of 3", "1/2 of 3"),
    ],
)
def test_what_is_private_goes(text: str, expected: str):
    assert public(text) == expected


def test_a_command_keeps_no_secret():
    words = ["guardlit", "fit", "--model.reward.init_args.token", "hf_abc", "--a.api_key=xyz", "--data.seed", "3"]
    words += ['--model.reward={"class_path": "RemoteReward", "token": "t0p"}']
    shown = public_command(words)
    assert "--model.reward.init_args.token '***'" in shown
    assert "--data.seed 3" in shown
    assert not re.search("hf_abc|xyz|t0p", shown)
    for mapping in ("{class_path: X, api_key: abc}", "{'credentials': 'abc', 'seed': 3}", '{"my_token": "abc"}'):
        shown = public_command(["guardlit", "fit", f"--trainer.logger={mapping}"])
        assert "abc" not in shown
        assert "class_path: X" in shown or "seed" in shown or "my_token" in shown

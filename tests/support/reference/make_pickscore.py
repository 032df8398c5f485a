"""Scores of PickScore's published program, on transformers of its time and random weights -> pickscore.json.

Environment: Python 3.11, then

    pip install torch torchvision open_clip_torch==3.3.0 "huggingface_hub<0.26" safetensors
    pip install --no-deps transformers==4.40.2 tokenizers==0.19.1

The lines between processor and score are those of the model card (yuvalkirstain/PickScore_v1). open_clip only lends its
copy of CLIP's vocabulary.

    python tests/support/reference/make_pickscore.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel

sys.path.insert(0, str(Path(__file__).parent))
from seeded import PROMPTS, pictures, weights, write_clip_files

TOWER = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
CONFIG: dict[str, Any] = {
    "projection_dim": 16,
    # eos_token_id 2 is what PickScore's config.json carries; it selects pooling at the highest token id
    "text_config": {**TOWER, "hidden_size": 32, "vocab_size": 49408, "eos_token_id": 2},
    "vision_config": {**TOWER, "hidden_size": 32, "image_size": 32, "patch_size": 8},
}


def calc_scores(processor: Any, model: Any, prompt: str, image: Image.Image) -> float:
    image_inputs = processor(images=[image], padding=True, truncation=True, max_length=77, return_tensors="pt")
    text_inputs = processor(text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        image_embs = model.get_image_features(**image_inputs)
        image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
        text_embs = model.get_text_features(**text_inputs)
        text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
        return (model.logit_scale.exp() * (text_embs @ image_embs.T)[0])[0].item()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clip_files(folder, CONFIG)
        shapes = {key: tensor.shape for key, tensor in CLIPModel(CLIPConfig(**CONFIG)).state_dict().items()}
        state = {key: torch.from_numpy(value) for key, value in weights(shapes, 1).items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        processor, model = AutoProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
        pairs = zip(PROMPTS, map(Image.fromarray, pictures()), strict=True)
        expected = [calc_scores(processor, model, prompt, image) for prompt, image in pairs]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    made = {"made_by": Path(__file__).name, **versions, "config": CONFIG, "seed": 1, "expected": expected}
    Path(__file__).with_name("pickscore.json").write_text(json.dumps(made, indent=1) + "\n")


main()

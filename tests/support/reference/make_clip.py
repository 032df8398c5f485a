"""Aesthetic scores and CLIP cosines of the `image-reward` package on OpenAI's own `clip` -> clip.json.

Environment: that of make_imagereward.py. The package's AestheticScore is the improved aesthetic predictor; its
CLIPScore is the bare cosine, 100 times which, or 0 if it is negative, is torchmetrics' CLIPScore. Its `clip.load` is
pointed at a small file in OpenAI's layout, and spared a first attempt as TorchScript, which leaves the file read to its
end. Weights are whole numbers of half precision, to which `clip` rounds them.

    python tests/support/reference/make_clip.py
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from make_imagereward import package
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from seeded import PROMPTS, head_layout, pictures, weights
from transformers import CLIPConfig, CLIPModel

TOWER = {"num_hidden_layers": 2, "hidden_act": "quick_gelu"}
CONFIG: dict[str, Any] = {
    "projection_dim": 768,  # that of ViT-L/14, to which the head is fixed
    "text_config": {
        **TOWER,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_attention_heads": 1,
        "vocab_size": 49408,
        "eos_token_id": 2,
    },
    "vision_config": {
        **TOWER,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
}
LAYER = {
    r"self_attn\.out_proj": "attn.out_proj",
    r"layer_norm([12])": r"ln_\1",
    r"mlp\.fc1": "mlp.c_fc",
    r"mlp\.fc2": "mlp.c_proj",
}


def openai_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a CLIP folder on the hub, as OpenAI's own files have them."""
    out = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "visual.proj": state["visual_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
    }
    for end in ("weight", "bias"):
        out[f"ln_final.{end}"] = state[f"text_model.final_layer_norm.{end}"]
        out[f"visual.ln_pre.{end}"] = state[f"vision_model.pre_layrnorm.{end}"]
        out[f"visual.ln_post.{end}"] = state[f"vision_model.post_layernorm.{end}"]
    for tower, prefix in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
        for n in range(CONFIG["text_config"]["num_hidden_layers"]):
            old, new = f"{tower}.encoder.layers.{n}.", f"{prefix}.resblocks.{n}."
            for end in ("weight", "bias"):
                fused = [state[f"{old}self_attn.{part}_proj.{end}"] for part in "qkv"]
                out[f"{new}attn.in_proj_{end}"] = torch.cat(fused)
            for key in (k for k in state if k.startswith(old)):
                for pattern, replacement in LAYER.items():
                    if match := re.fullmatch(f"{pattern}(\\.weight|\\.bias)", key.removeprefix(old)):
                        out[new + match.expand(replacement) + match[match.lastindex]] = state[key]
    return out


def halves(shapes: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value).half().float() for key, value in weights(shapes, seed).items()}


def main() -> None:
    package()
    import clip
    from ImageReward.models.AestheticScore import AestheticScore
    from ImageReward.models.CLIPScore import CLIPScore

    shapes = {key: tensor.shape for key, tensor in CLIPModel(CLIPConfig(**CONFIG)).state_dict().items()}

    def no_script(*_: Any, **__: Any) -> None:
        raise RuntimeError("not TorchScript")

    load, torch.jit.load = clip.load, no_script
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(openai_layout(halves(shapes, 1)), folder / "ViT-L-14.pt")
        clip.load = lambda _, **options: load(str(folder / "ViT-L-14.pt"), **options)
        clip_score, aesthetic = CLIPScore(None).eval(), AestheticScore(None).eval()
        aesthetic.mlp.load_state_dict(halves(head_layout(768), 2))
        files = [folder / f"{number}.png" for number in range(len(PROMPTS))]
        for file, image in zip(files, pictures(), strict=True):
            Image.fromarray(image).save(file)
        with torch.no_grad():
            cosines = [clip_score.score(prompt, str(file)) for prompt, file in zip(PROMPTS, files, strict=True)]
            marks = [aesthetic.score(None, str(file)) for file in files]
    made = {"made_by": Path(__file__).name, "torch": torch.__version__, "config": CONFIG, "seeds": [1, 2]}
    made |= {"cosines": cosines, "aesthetic": marks}
    Path(__file__).with_name("clip.json").write_text(json.dumps(made, indent=1) + "\n")


main()

"""Scores of the `image-reward` package on random weights -> imagereward.json.

Environment: Python 3.11, then

    pip install torch torchvision "huggingface_hub<0.26" tqdm setuptools
    pip install --no-deps image-reward==1.5 transformers==4.40.2 tokenizers==0.19.1 timm==0.6.13 fairscale openai-clip

`import ImageReward` also wants datasets and diffusers for ReFL, so the package's own `__init__` is passed over; the
tokenizer comes from a small local folder; for the tiny cases the sizes are replaced, and nothing else: preprocessing,
network, loading and score are the package's own.

    python tests/support/reference/make_imagereward.py          # tiny architectures
    python tests/support/reference/make_imagereward.py --full   # the published one: 1.8 GB of file, 8 GB of memory
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from seeded import PROMPTS, imagereward_layout, pictures, weights, write_bert_files

# hidden_size 48 has whole heads whether there are 12 (as published) or 8 (what transformers would take)
TINY = {
    "vision": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
    "text": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 40},
}
FULL = {
    "vision": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
    },
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "max_position_embeddings": 512},
}


def package() -> types.ModuleType:
    """ImageReward.ImageReward, without what the package's __init__ imports for training."""
    if "ImageReward" not in sys.modules:
        bare = types.ModuleType("ImageReward")
        bare.__path__ = importlib.util.find_spec("ImageReward").submodule_search_locations
        sys.modules["ImageReward"] = bare
    return importlib.import_module("ImageReward.ImageReward")


def build(module: types.ModuleType, sizes: dict[str, Any], vocabulary: int, folder: Path) -> torch.nn.Module:
    from ImageReward.models.BLIP import blip, blip_pretrain

    vision, text = sizes["vision"], sizes["text"]
    med = {  # med_config.json of the hub's THUDM/ImageReward, with these sizes
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "num_attention_heads": 12,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
        "add_cross_attention": True,
        **text,
    }
    (folder / "med.json").write_text(json.dumps(med))
    from_pretrained = blip.BertTokenizer.from_pretrained
    blip.BertTokenizer.from_pretrained = lambda _: from_pretrained(folder / "bert")
    if sizes is not FULL:
        tower = blip.VisionTransformer(
            img_size=vision["image_size"],
            patch_size=vision["patch_size"],
            embed_dim=vision["hidden_size"],
            depth=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
        )
        blip_pretrain.create_vit = lambda *_: (tower, vision["hidden_size"])
    model = module.ImageReward(str(folder / "med.json"))
    blip.BertTokenizer.from_pretrained = from_pretrained
    if sizes is not FULL:
        model.preprocess, model.mlp = module._transform(vision["image_size"]), module.MLP(text["hidden_size"])
    return model


def case(name: str, sizes: dict[str, Any], seed: int, images: list, faint: str | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        vocabulary = write_bert_files(folder / "bert") + 2
        model = build(package(), sizes, vocabulary, folder)
        layout = imagereward_layout(vocab_size=vocabulary, **sizes)
        assert layout == {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
        state = {key: torch.from_numpy(value) for key, value in weights(layout, seed, faint).items()}
        state["blip.text_encoder.embeddings.position_ids"] = torch.arange(sizes["text"]["max_position_embeddings"])[
            None
        ]
        torch.save(state, folder / "ImageReward.pt")
        state = torch.load(folder / "ImageReward.pt", map_location="cpu")  # as ImageReward.utils.load does
        print(model.load_state_dict(state, strict=False))
        model.eval()
        with torch.no_grad():
            pairs = zip(images, PROMPTS, strict=False)
            expected = [model.score(prompt, Image.fromarray(image)) for image, prompt in pairs]
    print(name, expected)
    return {"sizes": sizes, "seed": seed, "faint": faint, "expected": expected}


def main() -> None:
    result = Path(__file__).with_name("imagereward.json")
    made = json.loads(result.read_text()) if result.exists() else {}
    if "--full" in sys.argv:
        sizes = [[300, 400], [256, 256]]
        made["full"] = case("full", FULL, 2, pictures(sizes)) | {"image_sizes": sizes}
    else:
        made["tiny"] = case("tiny", TINY, 1, pictures())
        made["faint"] = case("faint", TINY, 3, pictures(), faint="visual_encoder")
    made |= {"made_by": Path(__file__).name, "torch": torch.__version__}
    result.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()

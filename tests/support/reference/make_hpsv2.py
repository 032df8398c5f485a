"""Scores of the `hpsv2` package on random weights -> hpsv2.json.

Environment: Python 3.11, then

    pip install torch torchvision open_clip_torch==3.3.0 huggingface_hub requests
    pip install --no-deps hpsv2==1.2.0 clint args

The wheel lacks its vocabulary and imports `turtle`: `prepare` lends it open_clip's file and an empty module. Nothing
else of it is changed: preprocessing, tokenizer, network, loading and score are the package's own.

    python tests/support/reference/make_hpsv2.py          # a tiny architecture
    python tests/support/reference/make_hpsv2.py --full   # ViT-H/14: 4 GB of file, 10 GB of memory
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
import types
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from seeded import PROMPTS, pictures, weights

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def prepare() -> types.ModuleType:
    sys.modules["turtle"] = types.ModuleType("turtle")
    sys.modules["turtle"].forward = None
    package, modern = importlib.util.find_spec("hpsv2"), importlib.util.find_spec("open_clip")
    name = "bpe_simple_vocab_16e6.txt.gz"
    target = Path(package.origin).with_name("src") / "open_clip" / name
    if not target.exists():
        shutil.copy(Path(modern.origin).with_name(name), target)
    from hpsv2 import img_score

    return img_score


def scores(img_score: types.ModuleType, architecture: str, seed: int, images: list, file: Path) -> list[float]:
    from hpsv2.src.open_clip import create_model_and_transforms

    # the arguments are those of hpsv2.img_score.initialize_model, without the download of weights it then replaces
    model, _, preprocess = create_model_and_transforms(
        architecture, None, precision="fp32", jit=False, light_augmentation=True, aug_cfg={}, output_dict=True
    )
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    state = {key: torch.from_numpy(value) for key, value in weights(shapes, seed).items()}
    torch.save({"state_dict": state}, file)
    del state
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    pairs = list(zip(images, PROMPTS, strict=False))
    return [float(img_score.score(Image.fromarray(image), prompt, cp=str(file))[0]) for image, prompt in pairs]


def main() -> None:
    img_score, result = prepare(), Path(__file__).with_name("hpsv2.json")
    from hpsv2.src.open_clip import add_model_config

    made = json.loads(result.read_text()) if result.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "--full" in sys.argv:
            case = {"architecture": "ViT-H-14", "seed": 2, "sizes": [[300, 400], [256, 256]]}
            case["expected"] = scores(img_score, "ViT-H-14", 2, pictures(case["sizes"]), folder / "file.pt")
            made["full"] = case
        else:
            (folder / "tiny-hps.json").write_text(json.dumps(CONFIG))
            add_model_config(folder)
            case = {"config": CONFIG, "seed": 1}
            case["expected"] = scores(img_score, "tiny-hps", 1, pictures(), folder / "file.pt")
            made["tiny"] = case
    made |= {"made_by": Path(__file__).name, "torch": torch.__version__}
    result.write_text(json.dumps(made, indent=1) + "\n")


main()

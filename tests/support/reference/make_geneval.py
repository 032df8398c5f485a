"""Writes geneval.json: what mmdet and the public reward server's rules give on what geneval_tiny.py draws.

Two environments, as the official weights exist in two layouts; each run fills its own part of the file. mmdet has no
wheel for today's torch and mmcv no compiled operators: mmcv without them and an empty `_ext` run the deformable
attention's own PyTorch code on a CPU. In two environments (Python 3.11):

    pip install torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 opencv-python-headless==5.0.0.93 scipy matplotlib tqdm
    pip install pycocotools shapely terminaltables addict yapf termcolor platformdirs rich six wheel
    1:  pip install --no-deps mmdet==2.28.2 && MMCV_WITH_OPS=0 pip install --no-deps --no-build-isolation mmcv==1.7.2
    2:  pip install --no-deps mmdet==3.3.0 mmengine==0.10.7 mmcv-lite==2.1.0 --no-build-isolation
    python make_geneval.py gen_eval.py geneval.json

`gen_eval.py` is reward_server/gen_eval.py of https://github.com/yifan123/reward-server (7131478); only three of its
functions, which need no model, are run.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import cv2
import geneval_tiny as tiny
import mmcv
import numpy as np
import torch


class _NoOperators(types.ModuleType):
    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


sys.modules["mmcv._ext"] = _NoOperators("mmcv._ext")

import mmdet  # noqa: E402
from mmdet.apis import inference_detector  # noqa: E402

SEED = 3
VERSION = int(mmdet.__version__[0])
FOLDER = Path(mmdet.__file__).parent / ".mim" / "configs" / "mask2former"
OFFICIAL = {
    2: FOLDER / "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco.py",
    3: FOLDER / "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py",
}


def main(rules: str, out: str) -> None:
    """Run this environment's references and write what they gave."""
    model = build()
    part: dict[str, Any] = {"mmdet": mmdet.__version__, "mmcv": mmcv.__version__, "torch": torch.__version__}
    part |= {"logits": on_pixels(model), "postprocess": postprocess(model)}
    if VERSION == 2:
        part["pictures"] = [on_picture(model, i, *size) for i, size in enumerate(tiny.SIZES)]
        part["swapped"] = swapped(model)
    file = Path(out)
    expected = json.loads(file.read_text()) if file.exists() else {}
    expected |= {"seed": SEED, f"mmdet{VERSION}": part, "rules": judged(rules)}
    file.write_text(json.dumps(expected, separators=(",", ":")).replace(',"', ',\n"') + "\n")
    print(f"{out}: {file.stat().st_size} bytes")


def build() -> Any:
    """The official configuration with tiny sizes, and the weights of `fill`."""
    if VERSION == 3:
        from mmdet.utils import register_all_modules
        from mmengine.config import Config

        register_all_modules()
    else:
        from mmcv import Config
    config = Config.fromfile(str(OFFICIAL[VERSION]))
    widths = [tiny.EMBED * 2**i for i in range(4)]
    config.model.backbone.update(
        embed_dims=tiny.EMBED, depths=tiny.DEPTHS, num_heads=tiny.HEADS, window_size=tiny.WINDOW, init_cfg=None
    )
    head = config.model.panoptic_head
    head.update(in_channels=widths, feat_channels=tiny.WIDTH, out_channels=tiny.WIDTH, num_queries=tiny.QUERIES)
    head.positional_encoding.num_feats = head.pixel_decoder.positional_encoding.num_feats = tiny.WIDTH // 2
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    encoder.num_layers, decoder.num_layers = tiny.ENCODER_LAYERS, tiny.DECODER_LAYERS
    layers = (encoder.layer_cfg, decoder.layer_cfg) if VERSION == 3 else _old_layers(encoder, decoder)
    for layer, hidden in zip(layers, (tiny.ENCODER_FFN, tiny.DECODER_FFN), strict=True):
        for part in ("self_attn_cfg", "cross_attn_cfg", "attn_cfgs"):
            if part in layer:
                layer[part].update(embed_dims=tiny.WIDTH, num_heads=tiny.ATTENTION_HEADS)
        layer["ffn_cfg" if VERSION == 3 else "ffn_cfgs"].update(embed_dims=tiny.WIDTH, feedforward_channels=hidden)
    if VERSION == 3:
        from mmdet.registry import MODELS

        model = MODELS.build(config.model).eval()
        config.test_dataloader.dataset.pipeline = config.test_pipeline
    else:
        from mmdet.models import build_detector

        model = build_detector(config.model).eval()
        config.data.test.pipeline = config.test_pipeline
    fill(model)
    model.cfg = config
    return model


def _old_layers(encoder: Any, decoder: Any) -> tuple[Any, Any]:
    decoder.transformerlayers.feedforward_channels = tiny.DECODER_FFN
    return encoder.transformerlayers, decoder.transformerlayers


def fill(model: Any) -> None:
    """Check that names and shapes are those of `layout`, and load the weights."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == tiny.layout(VERSION), shapes.items() ^ tiny.layout(VERSION).items()
    weights = tiny.fill(SEED) if VERSION == 3 else tiny.renamed(tiny.fill(SEED))
    result = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert not result.unexpected_keys
    assert all(name.endswith("relative_position_index") for name in result.missing_keys)


@torch.no_grad()
def on_pixels(model: Any) -> dict[str, Any]:
    """Logits of the last decoder layer."""
    features = model.extract_feat(torch.from_numpy(tiny.pixels(SEED)))
    classes, masks = model.panoptic_head(features, [{}] if VERSION == 2 else None)
    return {"classes": summary(classes[-1][0]), "masks": summary(masks[-1][0])}


def summary(values: torch.Tensor) -> dict[str, Any]:
    """Mean, deviation, and every n-th value of a tensor."""
    flat = values.double().flatten()
    some = [float(f"{v:.8g}") for v in flat[:: len(flat) // 30]]
    return {"shape": list(values.shape), "mean": float(flat.mean()), "std": float(flat.std()), "some": some}


def on_picture(model: Any, index: int, height: int, width: int) -> list[list[float]]:
    """Detections of the whole published pipeline, from a PNG file."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "picture.png")
        cv2.imwrite(file, tiny.picture(height, width, index)[..., ::-1])
        return by_class(inference_detector(model, file), 12)


def swapped(model: Any) -> list[list[float]]:
    """Detections on a picture that is handed over as an RGB array, as the reward server does."""
    return by_class(inference_detector(model, tiny.picture(*tiny.SIZES[0], 0)), 4)


def by_class(result: Any, count: int) -> list[list[float]]:
    """mmdet 2's answer, boxes and masks by class, as `listed` has it."""
    boxes, masks = result
    rows = [
        [label, float(f"{box[4]:.7g}"), *map(int, box[:4]), int(mask.sum())]
        for label in range(tiny.CLASSES)
        for box, mask in zip(boxes[label], masks[label], strict=True)
    ]
    return sorted(rows, key=lambda row: -row[1])[:count]


def postprocess(model: Any) -> list[list[float]]:
    """What the fusion head makes of logits of a picture of 90 x 128, resized to 96 x 136 of 96 x 160 padded pixels."""
    classes, masks = (torch.from_numpy(a)[None] for a in tiny.logits(SEED))
    masks = torch.nn.functional.interpolate(masks, size=(96, 160), mode="bilinear", align_corners=False)
    sizes = {"img_shape": (96, 136), "ori_shape": (90, 128)}
    fusion = model.panoptic_fusion_head
    if VERSION == 2:
        labels, boxes, found = fusion.simple_test(classes, masks, [sizes], rescale=True)[0]["ins_results"]
        boxes, scores = boxes[:, :4], boxes[:, 4]
    else:
        sample = types.SimpleNamespace(metainfo=sizes)
        result = fusion.predict(classes, masks, [sample], rescale=True)[0]["ins_results"]
        labels, boxes, scores, found = result.labels, result.bboxes, result.scores, result.masks
    areas, best = found.flatten(1).sum(1), scores.argsort(descending=True)[:20].tolist()
    return [[int(labels[i]), float(f"{scores[i]:.7g}"), *map(int, boxes[i]), int(areas[i])] for i in best]


def judged(file: str) -> dict[str, Any]:
    """What the public reward server's functions say of the cases."""
    wanted = {"relative_position", "evaluate", "evaluate_reward"}
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in wanted]
    scope: dict[str, Any] = {"np": np, "POSITION_THRESHOLD": 0.1, "COLORS": ["red", "blue"]}
    scope["color_classification"] = lambda image, objects, name: [color for _, color in objects]
    exec(compile(ast.Module(functions, []), file, "exec"), scope)
    results = []
    for metadata, found in tiny.cases(300, SEED):
        objects = {k: [(np.array([*box, 0.9], np.float32), c) for box, c in v] for k, v in found.items() if v}
        official, _ = scope["evaluate"](None, objects, metadata)
        strict, score, _ = scope["evaluate_reward"](None, objects, metadata)
        results.append((int(official), int(strict), score))
    verdicts = "".join(str(2 * official + strict) for official, strict, _ in results)
    return {"official_strict": verdicts, "flow_grpo": [float(f"{score:.9g}") for *_, score in results]}


if __name__ == "__main__":
    main(*sys.argv[1:])

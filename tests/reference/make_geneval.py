"""Writes geneval.json: what mmdet 3.3.0 and the public reward server's rules give on what geneval_tiny.py draws.

mmdet has no wheel for today's torch and mmcv no compiled operators: mmcv-lite with an empty `_ext` runs the deformable
attention's own PyTorch code on a CPU. In an environment of its own (Python 3.11):

    pip install torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 opencv-python-headless scipy matplotlib tqdm rich
    pip install mmengine==0.10.7 pycocotools shapely terminaltables addict yapf termcolor platformdirs
    pip install --no-deps mmdet==3.3.0 && pip install --no-deps --no-build-isolation mmcv-lite==2.1.0
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
import mmcv  # noqa: F401 - before its missing extension is replaced
import numpy as np
import torch


class _NoOperators(types.ModuleType):
    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


sys.modules["mmcv._ext"] = _NoOperators("mmcv._ext")

import mmdet  # noqa: E402
from mmdet.apis import inference_detector  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

SEED = 3
OFFICIAL = "mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


def main(rules: str, out: str) -> None:
    """Run all references and write what they gave."""
    register_all_modules()
    model = build()
    expected = {
        "made_with": {"mmdet": mmdet.__version__, "torch": torch.__version__, "seed": SEED},
        "pictures": [on_picture(model, i, *size) for i, size in enumerate(tiny.SIZES)],
        "swapped_channels": swapped(model),
        "postprocess": postprocess(model),
        "rules": judged(rules),
    }
    Path(out).write_text(json.dumps(expected, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    print(f"{out}: {Path(out).stat().st_size} bytes")


def build() -> Any:
    """The official configuration with tiny sizes, and the weights of `fill`."""
    folder = os.path.join(os.path.dirname(mmdet.__file__), ".mim", "configs")
    config = Config.fromfile(os.path.join(folder, OFFICIAL))
    config.test_dataloader.dataset.pipeline = config.test_pipeline
    widths = [tiny.EMBED * 2**i for i in range(4)]
    config.model.backbone.update(
        embed_dims=tiny.EMBED, depths=tiny.DEPTHS, num_heads=tiny.HEADS, window_size=tiny.WINDOW, init_cfg=None
    )
    head = config.model.panoptic_head
    head.update(in_channels=widths, feat_channels=tiny.WIDTH, out_channels=tiny.WIDTH, num_queries=tiny.QUERIES)
    head.positional_encoding.num_feats = head.pixel_decoder.positional_encoding.num_feats = tiny.WIDTH // 2
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    encoder.num_layers, decoder.num_layers = tiny.ENCODER_LAYERS, tiny.DECODER_LAYERS
    attentions = [encoder.layer_cfg.self_attn_cfg, decoder.layer_cfg.self_attn_cfg, decoder.layer_cfg.cross_attn_cfg]
    for attention in attentions:
        attention.update(embed_dims=tiny.WIDTH, num_heads=tiny.ATTENTION_HEADS)
    encoder.layer_cfg.ffn_cfg.update(embed_dims=tiny.WIDTH, feedforward_channels=tiny.ENCODER_FFN)
    decoder.layer_cfg.ffn_cfg.update(embed_dims=tiny.WIDTH, feedforward_channels=tiny.DECODER_FFN)
    model = MODELS.build(config.model).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == tiny.layout(), shapes.items() ^ tiny.layout().items()
    result = model.load_state_dict({k: torch.from_numpy(v) for k, v in tiny.fill(SEED).items()}, strict=False)
    assert not result.unexpected_keys
    assert all(k.endswith("relative_position_index") for k in result.missing_keys)
    model.cfg = config
    return model


def on_picture(model: Any, index: int, height: int, width: int) -> dict[str, Any]:
    """Logits and detections of the whole published pipeline, from a PNG file."""
    seen: dict[str, torch.Tensor] = {}
    predict = model.panoptic_head.predict
    forward = model.panoptic_head.forward

    def spy(*args: Any) -> Any:
        classes, masks = forward(*args)
        seen.update(classes=classes[-1], masks=masks[-1])
        return classes, masks

    model.panoptic_head.forward, model.panoptic_head.predict = spy, predict
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "picture.png")
        cv2.imwrite(file, tiny.picture(height, width, index)[..., ::-1])
        found = inference_detector(model, file).pred_instances
    model.panoptic_head.forward = forward
    return {
        "classes": summary(seen["classes"][0]),
        "masks": summary(seen["masks"][0]),
        "mask_shape": list(seen["masks"].shape[-2:]),
        "found": listed(found, 12),
    }


def swapped(model: Any) -> list[float]:
    """Scores on a picture that is handed over as an RGB array, as the reward server does."""
    found = inference_detector(model, tiny.picture(*tiny.SIZES[0], 0)).pred_instances
    return [round(float(s), 7) for s in found.scores.sort(descending=True).values[:8]]


def summary(values: torch.Tensor) -> dict[str, Any]:
    """Mean, deviation, and every n-th value of a tensor."""
    flat = values.double().flatten()
    return {
        "mean": float(flat.mean()),
        "std": float(flat.std()),
        "some": [round(float(v), 6) for v in flat[:: len(flat) // 40]],
    }


def listed(found: InstanceData, count: int) -> list[list[float]]:
    """The most confident: label, score, box, area of the mask."""
    best = found.scores.argsort(descending=True)[:count].tolist()
    areas = found.masks.flatten(1).sum(1)
    return [
        [int(found.labels[i]), round(float(found.scores[i]), 7), *map(int, found.bboxes[i]), int(areas[i])]
        for i in best
    ]


def postprocess(model: Any) -> list[list[float]]:
    """What the fusion head makes of logits of a picture of 90 x 128, resized to 96 x 136 of 96 x 160 padded pixels."""
    classes, masks = (torch.from_numpy(a)[None] for a in tiny.logits(SEED))
    masks = torch.nn.functional.interpolate(masks, size=(96, 160), mode="bilinear", align_corners=False)
    sample = types.SimpleNamespace(metainfo={"img_shape": (96, 136), "ori_shape": (90, 128)})
    found = model.panoptic_fusion_head.predict(classes, masks, [sample], rescale=True)[0]["ins_results"]
    return listed(found, 30)


def judged(file: str) -> dict[str, Any]:
    """What the public reward server's functions say of the cases."""
    wanted = {"relative_position", "evaluate", "evaluate_reward"}
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in wanted]
    scope: dict[str, Any] = {"np": np, "POSITION_THRESHOLD": 0.1, "COLORS": ["red", "blue"]}
    scope["color_classification"] = lambda image, objects, name: [colour for _, colour in objects]
    exec(compile(ast.Module(functions, []), file, "exec"), scope)
    results = []
    for metadata, found in tiny.cases(300, SEED):
        objects = {k: [(np.array([*box, 0.9], np.float32), c) for box, c in v] for k, v in found.items() if v}
        official, _ = scope["evaluate"](None, objects, metadata)
        strict, score, _ = scope["evaluate_reward"](None, objects, metadata)
        results.append((int(official), int(strict), score))
    verdicts = "".join(str(2 * official + strict) for official, strict, _ in results)
    return {"official_strict": verdicts, "scores": [score for *_, score in results]}


if __name__ == "__main__":
    main(*sys.argv[1:])

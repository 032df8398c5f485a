"""`configs/gpu/24gb.yaml` fits: planned on the published sizes of Stable Diffusion 3.5 Medium and its text encoders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published import SD35_MEDIUM
from runs import PROMPTS
from tiny_folders import make_sd3

from guardlit.commands.plan import planned
from guardlit.planning.estimate import estimate
from guardlit.rewards import PickScore

ROOT = Path(__file__).parents[2]
CLIP = {"num_attention_heads": 12, "vocab_size": 49408}
PUBLISHED = {  # sizes that determine memory
    "transformer": SD35_MEDIUM,
    "vae": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32},
    "text_encoder": {**CLIP, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    "text_encoder_2": {
        **CLIP,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    },
    "text_encoder_3": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}
PICKSCORE = 3_944_000_000  # bytes of its published weights in float32


def test_the_preset_for_24_gb_plans_at_most_22(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make_sd3(tmp_path / "model")
    for part, sizes in PUBLISHED.items():
        path = model / part / "config.json"
        own = {} if part == "transformer" else json.loads(path.read_text())
        path.write_text(json.dumps({**own, **sizes, **({"vocab_size": 32128} if part == "text_encoder_3" else {})}))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    monkeypatch.setattr(PickScore, "weight_bytes", lambda self: PICKSCORE)
    files = [f"--config={ROOT / 'configs' / name}" for name in ("sd35_pickscore.yaml", "gpu/24gb.yaml")]
    gpu = ["--trainer.accelerator=gpu", f"--model.policy.init_args.model={model}"]
    memory = estimate(planned([*files, *gpu])).memory
    assert memory.parts["text encoders, while encoding"] == pytest.approx(13.17e9, rel=0.01)  # 2 GB of it T5's float32
    assert memory.peak <= 22e9
    next_to_weights = estimate(planned([*files, *gpu, "--model.policy.init_args.encode_alone=false"])).memory
    assert next_to_weights.phases["encoding"] > 22e9

"""Stable Diffusion 3 and 3.5: three text encoders, patches with learned positions, a fixed schedule shift."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.diffusers_base import JOINT_ATTENTION, DiffusersPolicy
from guardlit.policies.folders.pipeline_folder import pipeline_index, read_json
from guardlit.types import Conditioning


class SD3Policy(DiffusersPolicy):
    """A `StableDiffusion3Pipeline` folder or hub id as a policy.

    The default of `max_sequence_length` is Flow-GRPO's. A prompt's embeddings are 3.4 MB for SD3.5 in `fp32`, and half
    of that in `fp16` or `bf16`.

    Args:
        text_encoder_3: false omits T5 and uses zeros for its embeddings, as diffusers does.
    """

    pipeline_class = "StableDiffusion3Pipeline"
    transformer_class = "SD3Transformer2DModel"
    components = ("transformer", "vae", "scheduler", "text_encoder")
    lora_targets = JOINT_ATTENTION
    """Flow-GRPO's list for SD3.5-M: joint attention only; SD3.5's second, image-only attention (attn2) has none."""

    def __init__(self, *args: Any, text_encoder_3: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.text_encoder_3 = text_encoder_3

    def _pipeline(self, transformer: Any = None) -> Any:
        if self.text_encoder_3:
            self._need_files("text_encoder_3", "*.safetensors", "*.bin")
            self._need_files("tokenizer_3", "*")
        return super()._pipeline(transformer)

    def _need_files(self, part: str, *kinds: str) -> None:
        place, named = self._folder / part, pipeline_index(self._folder).get(part, [None])[0]
        if named is None or not any(file for kind in kinds for file in place.glob(kind)):
            raise GuardlitError(
                f"{self._folder} has no files of {part} (T5): download them, or set model.policy.text_encoder_3 to "
                "false, which uses zeros for T5's embeddings, as diffusers does"
            )

    def _token_pixels(self, transformer: Any) -> int:
        return int(transformer.config.patch_size) * self._vae_scale()

    def _check_resolution(self, transformer: Any) -> None:
        super()._check_resolution(transformer)
        multiple, positions = self._token_pixels(transformer), transformer.config.pos_embed_max_size
        patches = self.resolution // multiple
        if patches > positions:
            raise GuardlitError(
                f"resolution={self.resolution} needs {patches} patches a side; {self._folder} has positions for "
                f"{positions}: at most {positions * multiple} pixels"
            )

    def _schedule(self, num_steps: int) -> dict[str, Any]:
        if self._outside["scheduler"].config.use_dynamic_shifting:
            raise GuardlitError(
                f"{self._folder}/scheduler asks for dynamic shifting, which {self.pipeline_class} models do not use"
            )
        return {"num_inference_steps": num_steps}

    def _encoder_settings(self) -> tuple[object, ...]:
        return (self.max_sequence_length, self.text_encoder_3, self.text_encoder_dtype)

    def _left_out(self) -> tuple[str, ...]:
        return () if self.text_encoder_3 else ("text_encoder_3", "tokenizer_3")

    def _embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        config, path = self.transformer.config, self._folder / "tokenizer/tokenizer_config.json"
        length = int(read_json(path, f"{path.parent} is no tokenizer")["model_max_length"]) + self.max_sequence_length
        return {
            "prompt_embeds": (length, int(config.joint_attention_dim)),
            "pooled": (int(config.pooled_projection_dim),),
        }

    def _encode_prompts(self, pipeline: Any, prompts: list[str]) -> Conditioning:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

    def _predict(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        velocity = self.transformer(
            hidden_states=latents,
            timestep=sigma * 1000,
            encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )[0]
        return cast("Tensor", velocity)

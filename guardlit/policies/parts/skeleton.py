"""A diffusers policy on torch's meta device: shapes without weights, from configuration files only."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from guardlit.assets import published
from guardlit.devices.storage import pinned_bytes, size_of
from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy, Footprint
from guardlit.policies.folders.components import quiet
from guardlit.policies.folders.embeddings import CAPACITY, EmbeddingCache
from guardlit.policies.folders.pipeline_folder import pipeline_index
from guardlit.policies.network.compiling import blocks_of
from guardlit.policies.weights.adapters import adapted_layers
from guardlit.policies.weights.exported import has_exported_lora
from guardlit.policies.weights.quantized import weight_bytes

META = torch.device("meta")


def skeleton_component(loader: Any, folder: Path, component: str, dtype: torch.dtype) -> Any:
    """A component of a diffusers pipeline on the meta device, built from its config.json.

    Raises:
        GuardlitError: a configuration that is missing or of another component.
    """
    quiet()
    try:
        config = loader.load_config(folder, subfolder=component, local_files_only=True)
        with META:
            return nn.Module.to(loader.from_config(config), dtype)  # diffusers' own `to` warns about float16
    except Exception as error:  # diffusers raises many kinds; each means that this file is unusable
        reason = " ".join(str(error).split())[:300]
        raise GuardlitError(f"{folder / component} does not describe a {loader.__name__}: {reason}") from error


class SkeletonPolicy(FlowPolicy):
    """Builds skeletons, and counts the bytes a policy takes; see `DiffusersPolicy` for the attributes."""

    weightless = False
    """Whether this is a skeleton."""
    _copies_on_host = _decoder_on_host = False
    """What `copies_device` and `vae_device` were, of a skeleton, which has None for both."""
    model: str
    lora: Any
    reference: bool
    cache: str | None
    max_sequence_length: int
    copies_device: str | None
    weights_dtype: torch.dtype
    text_encoder_dtype: torch.dtype
    text_encoders: str
    encode_alone: bool
    decode_dtype: torch.dtype
    vae_device: str | None
    transformer: Any
    _folder: Path
    _outside: dict[str, Any]
    _embeddings: EmbeddingCache

    @abstractmethod
    def _left_out(self) -> tuple[str, ...]:
        """Components that are not loaded."""

    def _embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one prompt's embeddings, as `_encode_prompts` returns them."""
        return {"prompt_embeds": (self.max_sequence_length, int(self.transformer.config.joint_attention_dim))}

    @property
    def has_reference(self) -> bool:
        """True with an adapter, also an exported one in use; with full fine-tuning if `reference` is set."""
        return self.lora is not None or self.reference or has_exported_lora(self.transformer)

    @property
    def host_copy(self) -> int:
        """See `FlowPolicy.host_copy`: with full fine-tuning only."""
        on_host = not self.lora and (self._copies_on_host or bool(self.copies_device))
        return size_of(self.transformer.parameters()) if on_host else 0

    def skeleton(self, gradient_checkpointing: bool | None = None) -> Self:
        """See `FlowPolicy.skeleton`."""
        twin = copy.copy(self)
        twin.__dict__ |= {"_modules": {}, "transformer": None, "_outside": {}, "_empty": None}
        twin.weightless = True
        twin.copies_device = twin.vae_device = None  # the meta device has no data to move
        if gradient_checkpointing is not None:
            twin.gradient_checkpointing = gradient_checkpointing
        with META:
            twin.load()
        twin.sizes_of = self.model if twin._folder == published(self.model) else None
        twin._embeddings = _Shapes(twin._embedding_skeleton())
        twin._copies_on_host = bool(self.copies_device)
        twin._decoder_on_host = bool(self.vae_device)
        return twin

    @property
    def device(self) -> torch.device:
        """The transformer's device."""
        return cast("torch.device", next(self.transformer.parameters()).device)

    def _full_precision(self) -> AbstractContextManager[Any]:
        """Disable autocast, which the meta device does not have."""
        return nullcontext() if self.weightless else torch.autocast(self.device.type, enabled=False)

    def _embedding_skeleton(self) -> dict[str, Tensor]:
        """One prompt's embeddings on the meta device; `mask` is boolean."""
        dtypes = {"mask": torch.bool}
        shapes = self._embedding_shapes()
        return {k: torch.empty(v, dtype=dtypes.get(k, self.text_encoder_dtype), device=META) for k, v in shapes.items()}

    def footprint(self) -> Footprint:
        """See `FlowPolicy.footprint`."""
        network: nn.Module = self.transformer
        trained = size_of(p for p in network.parameters() if p.requires_grad)
        adapters = 2 + self.renews  # trained, old, and a renewed reference's
        copies = (adapters - 1) * trained if self.lora else size_of(network.parameters())
        pinned = sum(pinned_bytes(size_of([p])) for p in network.parameters())
        inside = copies if self.lora else 0  # the other adapters are part of the network
        if not self.lora and self.reference:
            copies, pinned = adapters * copies, adapters * pinned  # old, base, and a renewed reference
        vae = [*self._outside["vae"].parameters(), *self._outside["vae"].buffers()]
        encoders, half = self._encoder_bytes(), self.decode_dtype != torch.float32
        resident = encoders if self.text_encoders == "host" else 0
        return Footprint(
            frozen=weight_bytes(network) - trained - inside,
            buffers=size_of(network.buffers()),
            trained=trained,
            copies=copies,
            cast=adapters * trained * self.weights_dtype.itemsize // 4 if self.forward_dtype else 0,  # of all adapters
            merged=size_of(layer.get_base_layer().weight for layer in adapted_layers(network)) if self.lora else 0,
            gathered=self._gathered(),
            copies_on_host=self.host_copy > 0,
            copies_pinned=pinned if self.host_copy else 0,
            decoder=size_of(vae, self.decode_dtype),
            decoder_on_host=self._decoder_on_host or bool(self.vae_device),
            encoders=encoders,
            encoded_alone=self.encode_alone,
            host_resident=resident + (size_of(vae, torch.float32) if half else 0),
            embedding=size_of(self._embedding_skeleton().values()),
            remembered=None if self.cache is None else CAPACITY,
        )

    def _gathered(self) -> int:
        blocks = sorted(size_of(block.parameters()) for block in blocks_of(self.transformer))
        return size_of(self.transformer.parameters()) - sum(blocks[:-2])

    def _encoder_bytes(self) -> int:
        total = 0
        named = {k: v for k, v in pipeline_index(self._folder).items() if k.startswith("text_encoder")}
        for name, (library, kind) in named.items():
            if library and name not in self._left_out():
                loader = getattr(import_module(library), kind)
                with META:
                    encoder = loader(loader.config_class.from_pretrained(self._folder / name))
                total += sum(
                    p.numel() * _itemsize(encoder, n, self.text_encoder_dtype) for n, p in encoder.named_parameters()
                )
        return total


def _itemsize(encoder: Any, name: str, dtype: torch.dtype) -> int:
    """Bytes of one element of a transformers model's parameter: some layers stay float32 in any dtype."""
    full = set(encoder._keep_in_fp32_modules_strict or ()) if dtype != torch.float32 else set()
    if dtype == torch.float16:
        full |= set(encoder._keep_in_fp32_modules or ())
    return 4 if full & set(name.split(".")) else dtype.itemsize


class _Shapes(EmbeddingCache):
    """Embeddings without content, the same for every prompt."""

    def __init__(self, entry: dict[str, Tensor]) -> None:
        super().__init__("skeleton", None)
        self._entry = entry

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Always empty."""
        return []

    def get(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The same P times, leading dimension P."""
        return {name: tensor.expand(len(prompts), *tensor.shape) for name, tensor in self._entry.items()}

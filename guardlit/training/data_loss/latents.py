"""Latents of a data set's images: encoded once, each rank a part, and kept by content."""

from __future__ import annotations

from itertools import chain

from lightning.pytorch.utilities import rank_zero_info

from guardlit.data.image_pairs import ImagePairs
from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy
from guardlit.policies.folders.embeddings import EmbeddingCache
from guardlit.processes.world import World

LATENTS = "latents"


def encode_pairs(policy: FlowPolicy, pairs: ImagePairs, world: World) -> EmbeddingCache:
    """The cache of an image set's latents by the images' digests, complete. Collective: every rank must call it.

    Images are encoded one at a time, since kernels may round differently in another batch: latents do not depend on the
    world size, nor on which of them were in the cache already.

    Raises:
        GuardlitError: an image that cannot be decoded, on every rank.
    """
    cache = policy.latent_cache()
    missing = list(dict.fromkeys(chain.from_iterable(world.gather_objects(cache.missing(pairs.digests)))))
    if missing:
        rank_zero_info(f"data loss: {len(missing)} images are encoded")
        parts = cache.split_by_rank(missing)
        world.raise_on_all(_encode(policy, pairs, cache, parts[world.rank]))
        cache.exchange(parts)
    return cache


def _encode(policy: FlowPolicy, pairs: ImagePairs, cache: EmbeddingCache, digests: list[str]) -> GuardlitError | None:
    """Encode some images; says what went wrong."""
    index = {digest: i for i, digest in enumerate(pairs.digests)}
    try:
        for digest in digests:
            cache.add([digest], {LATENTS: policy.encode_images(pairs.pixels(index[digest]).unsqueeze(0))})
    except GuardlitError as error:
        return error
    return None

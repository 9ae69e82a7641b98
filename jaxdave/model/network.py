"""A `Network` for the decode loop, made from a config: pure functions of parameters."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxdave.config import ModelConfig
from jaxdave.model.attention import tiled, two_part
from jaxdave.model.denoiser import binder
from jaxdave.model.layers import rope_table
from jaxdave.types import KVCache, Network

HEAD_CHUNK = 8192
"""Ids of the vocabulary that are looked at together. Keyed noise is drawn per chunk, so
another value would draw other samples."""

Numerics = Literal["exact", "fast"]


def network(
    config: ModelConfig,
    *,
    numerics: Numerics = "exact",
    positions: int = 4096,
    block_length: int | None = None,
) -> Network:
    """The decode loop's view of a model.

    numerics: "exact" attends by tiles on the absolute grid, "fast" in two parts.
    positions: how many the rotation table covers. Raises ValueError for a model whose
    attention is not block-causal.
    """
    if config.attention != "block_causal" or config.logits_shift != "none":
        raise ValueError(
            f"model {config.name!r} has attention={config.attention!r} and "
            f"logits_shift={config.logits_shift!r}; this engine decodes block-causal "
            "models without a shift (SDAR, TraDo)"
        )
    bind = binder(config)
    cos, sin = rope_table(config, positions)
    attend = {"exact": tiled, "fast": two_part}[numerics]
    length = block_length or config.block_length
    chunk = min(HEAD_CHUNK, config.vocab_rows)

    def forward(params, tokens_KL, start, cache: KVCache):
        chex.assert_rank(tokens_KL, 2)
        places = start + jnp.arange(tokens_KL.shape[1], dtype=jnp.int32)
        rope = jnp.asarray(cos)[places], jnp.asarray(sin)[places]

        def layer(stored, q, k, v):
            return attend(q, k, v, stored, start, length)

        hidden, (k, v) = bind(params).hidden(tokens_KL, rope, layer, cache)
        return hidden, KVCache(k, v)

    def logits(params, hidden_RE, first):
        kernel = bind(params).head_kernel()
        part = jax.lax.dynamic_slice_in_dim(kernel, first, chunk, axis=1)
        return jnp.matmul(
            hidden_RE,
            part,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )

    def empty_cache(rows, capacity):
        shape = (config.num_layers, rows, capacity, config.kv_heads, config.head_dim)
        return KVCache(jnp.zeros(shape), jnp.zeros(shape))

    return Network(
        forward,
        logits,
        empty_cache,
        config.vocab_rows,
        config.vocab_size,
        config.banned_ids,
        chunk,
    )

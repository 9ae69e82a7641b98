"""A `Network` for the decode loop, made from a config: pure functions of parameters.

What networks of both kinds of attention share: `causal.py` has those of block-causal
models, `full.py` those of full-attention ones.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import KVCache, ModelFns
from jaxdave.models.attention import (
    TILE,
    LayerCache,
    MaskFn,
    mask_before,
    tiled_attention,
    two_part_attention,
)
from jaxdave.models.param_shapes import Binder
from jaxdave.models.prefill import shift_right
from jaxdave.models.rope import rope_table
from jaxdave.numerics.matmul import gather_rows, matmul, table_chunk
from jaxdave.numerics.quantization import einsum_kernel
from jaxdave.numerics.weight_layout import head_chunk
from jaxdave.runtime.platform import on_cpu

NumericsName = Literal["guarded", "exact", "fast"]


class AttentionContext(NamedTuple):
    """What a window has been evaluated with: all that something beside it can look at.

    start: the window's position; cache [N, T, ...], window [N, K, L, ...]: keys and
    values of what lies outside it and in it; see_from(query places [L]) -> See; reach:
    no key lies there or beyond.
    """

    start: jax.Array
    cache: KVCache
    window: KVCache
    see_from: Callable[[jax.Array], MaskFn]
    reach: jax.Array


ExtraBranch = Callable[["DecodeModel", Any, jax.Array, AttentionContext], jax.Array]
"""(model, params, aligned hidden_KLE, what it has seen) -> vectors, maybe wider."""


def no_extra_branch(model: "DecodeModel", params, hidden_KLE, seen: AttentionContext):
    """Nothing stands beside a window."""
    del model, params, seen
    return hidden_KLE


class DecodeModel:
    """A config's pure functions, shared by its networks.

    exact: everything is computed in shapes of its own. wide: activations are float32
    whatever the weights are, as guarded numerics want them: differences between shapes
    are then those of float32, a thousandth of what bfloat16 would round them to.
    """

    def __init__(self, config: ModelConfig, positions: int, *, exact, wide):
        self.config, self.exact = config, exact
        self.dtype = jnp.float32 if wide else None
        # On a CPU a fold over tiles is faster, as it ends where the keys do.
        tile = TILE if on_cpu() else None
        attend = (
            tiled_attention
            if exact
            else functools.partial(two_part_attention, tile=tile)
        )
        self.bind, self.attend = Binder(config), attend
        self.cos, self.sin = rope_table(config, positions)
        self.shift = int(config.logits_shift != "none")
        self.align = shift_right if self.shift else lambda hidden: hidden
        self.chunk = head_chunk(config.vocab_rows)

    def vector(self, params) -> jax.ShapeDtypeStruct:
        """What is made of a position: a vector of this shape, K/V of this dtype."""
        dtype = params["norm"]["scale"].dtype if self.dtype is None else self.dtype
        return jax.ShapeDtypeStruct((self.config.hidden,), dtype)

    @property
    def layers(self) -> jax.Array:
        """An index for every layer."""
        return jnp.arange(self.config.num_layers, dtype=jnp.int32)

    def rope(self, place):
        """Cosines and sines of positions."""
        return jnp.asarray(self.cos)[place], jnp.asarray(self.sin)[place]

    def window(self, params, tokens_KL, start, cache, see, reach):
        """Hidden states [K, L, E] and K/V of a window that attends to a cache."""
        place_L = start + jnp.arange(tokens_KL.shape[1], dtype=jnp.int32)
        whole = lambda a: a  # noqa: E731
        return self.parts(params, tokens_KL, place_L, start, cache, see, reach, whole)

    def parts(self, params, tokens, place, start, cache, see, reach, window_of):
        """Hidden states [K, Q, E] and K/V of parts of a window, or of all of it.

        tokens: [K, Q], at places [K or none, Q]; window_of: keys of the parts to those
        of the window that each part sees [K, L, G, D].
        """
        chex.assert_rank(tokens, 2)

        def layer(index, q, k, v):
            k, v, stored = window_of(k), window_of(v), LayerCache(cache, index)
            return self.attend(q, k, v, stored, start, see, reach)

        bound, rope = self.bind(params), self.rope(place)
        hidden, kv = bound.hidden(tokens, rope, layer, self.layers, self.dtype)
        return hidden, KVCache(*kv)

    def canvas(self, params, tokens_T, end):
        """Aligned hidden states [T, E] and K/V of a whole canvas that sees itself."""
        tokens_CS = tokens_T.reshape(-1, TILE)
        place_CS = jnp.arange(tokens_T.shape[0], dtype=jnp.int32).reshape(-1, TILE)

        def attend(index, q, k, v, stored):
            whole = LayerCache(jax.tree.map(lambda a: a[None], stored), 0)
            return self.attend(q, k, v, whole, index * TILE, mask_before(end), end)

        over = jax.vmap if not self.exact else lambda f: lambda a: jax.lax.map(f, a)
        bound = self.bind(params)
        rope = self.rope(place_CS)
        hidden, kv = bound.canvas(tokens_CS, rope, attend, over, self.dtype)
        return self.align(hidden), KVCache(*kv)

    def logits(self, params, hidden_RE, first):
        """Float32 logits of one chunk of ids."""
        table = self.bind(params).head_table()
        return matmul(hidden_RE, table_chunk(table, first, self.chunk))

    def logits_at(self, params, hidden_RE, ids_RM):
        """Float32 logits of some ids of each row."""
        rows_RME = gather_rows(self.bind(params).head_table(), ids_RM)
        return einsum_kernel("re,rme->rm", hidden_RE, rows_RME)

    def network(
        self, forward, prime, block_states=None, recheck=None, fast_prefill=None
    ) -> ModelFns:
        """The network with this model's head."""
        c = self.config
        return ModelFns(
            forward, prime, self.logits, self.logits_at, c.vocab_rows, c.vocab_size,
            c.banned_ids, self.chunk, block_states=block_states, recheck=recheck,
            fast_prefill=fast_prefill,
        )  # fmt: skip


def draft_and_trusted_models(
    config: ModelConfig, numerics: NumericsName, positions: int
):
    """What drafts are evaluated with, and what makes caches and settles doubts."""
    guarded = numerics == "guarded"
    apart = DecodeModel(config, positions, exact=numerics != "fast", wide=guarded)
    side_by_side = DecodeModel(config, positions, exact=False, wide=guarded)
    return (apart if numerics == "exact" else side_by_side), apart


def window_cache(cache: KVCache, start, size: int) -> KVCache:
    """The keys and values [N, 1, L, ...] that a cache [N, T, ...] holds of a window."""
    cut = lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis=1)  # noqa: E731
    return jax.tree.map(lambda a: cut(a)[:, None], cache)

"""The transformer as a module, and as pure functions of its parameters.

`Denoiser` is Flax NNX with the layers stacked on a leading axis and scanned, so compile
time does not grow with depth. `split` separates it once; everything outside this
package sees plain arrays and pure functions.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import KVCache, Params
from jaxdave.models.layers import Block, RMSNorm
from jaxdave.models.rope import Rope
from jaxdave.numerics.matmul import RowMajor, embed, matmul, scan_over_layers, unchunked

LayerAttend = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


class Transformer(nnx.Module):
    """Embedding, stacked layers, final norm and (unless tied) a head."""

    def __init__(self, config: ModelConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        table = init(rngs.params(), (config.vocab_rows, config.hidden), dtype)
        self.embedding = nnx.Param(table)

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, dtype=dtype, rngs=rngs)

        self.blocks = stack(rngs)
        self.norm = RMSNorm(config.hidden, config.rms_eps, dtype=dtype)
        # A row an id, as in the embedding, so that a chunk of ids lies in one piece.
        self.head = (
            None
            if config.tie_embeddings
            else nnx.Param(init(rngs.params(), table.shape[::-1], dtype).T)
        )

    def hidden(
        self, tokens, rope: Rope, attend: LayerAttend, per_layer: Any, dtype=None
    ):
        """Final normed hidden states, and every layer's rotated keys and values.

        tokens: int32 [..., L]; attend(slice of `per_layer`, q, k, v) -> context; dtype:
        of the activations, by default that of the weights.
        Returns hidden [..., L, E] and (keys, values) [N, ..., L, H, D].
        """
        layer, layers = self._layers(rope, attend)
        x = self._embedded(tokens, dtype)
        x, kv = jax.lax.scan(layer, x, (layers, per_layer))
        return self.norm(x), kv

    def states(self, tokens, rope: Rope, attend: LayerAttend, per_layer: Any):
        """What `hidden` computes on the way, [N + 1, ..., L, E].

        The embedding, then the output of every layer, the last one normed.
        """
        layer, layers = self._layers(rope, attend)

        def kept(x, inputs):
            return layer(x, inputs)[0], x

        last, before = jax.lax.scan(kept, self._embedded(tokens), (layers, per_layer))
        return jnp.concatenate([before, self.norm(last)[None]])

    def _embedded(self, tokens: jax.Array, dtype=None) -> jax.Array:
        """Vectors of tokens, in a dtype, by default that of the norms."""
        dtype = self.norm.scale.get_value().dtype if dtype is None else dtype
        return embed(self.embedding.get_value(), tokens, dtype)

    def _layers(self, rope: Rope, attend: LayerAttend):
        """One layer as the body of a scan, and the weights of all of them."""
        given, block_of = self._scanned()

        def layer(x, inputs):
            weights, extra = inputs
            block = block_of(weights)
            return block(x, rope, lambda q, k, v: attend(extra, q, k, v))

        return layer, given

    def _scanned(self):
        """What a scan over layers is given, and how that becomes a layer."""
        graph, layers = nnx.split(self.blocks)
        given, one_of = scan_over_layers(layers)
        return given, lambda weights: nnx.merge(graph, one_of(weights))

    def canvas(self, tokens_CS, rope: Rope, attend, over, dtype=None):
        """Final normed hidden states of a canvas cut into tiles, and its K and V.

        tokens_CS: int32 [C, S], tiles of one sequence; rope: [C, S, ...]. attend(tile
        index, q, k, v [1, S, ...], KVCache of the whole canvas [T, G, D]) -> context.
        over: how a function of one tile becomes one of all: `lax.map` where every tile
        must be computed in one shape whatever the canvas, else `vmap`.
        Returns hidden [T, E] and (keys, values) [N, T, G, D].
        """
        given, block_of = self._scanned()
        index_C = jnp.arange(tokens_CS.shape[0], dtype=jnp.int32)
        flat = lambda a: a.reshape(-1, *a.shape[2:])  # noqa: E731

        def layer(x_CSE, weights):
            block = block_of(weights)
            q, k, v = over(lambda a: block.project(*a))((x_CSE, rope))
            stored = KVCache(flat(k), flat(v))

            def mixed(tile):
                x, index, *qkv = tile
                context = attend(index, *(part[None] for part in qkv), stored)
                return block.finish(x, context[0])

            return over(mixed)((x_CSE, index_C, q, k, v)), stored

        x = self._embedded(tokens_CS, dtype)
        x, kv = jax.lax.scan(layer, x, given)
        return flat(over(self.norm)(x)), kv

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits [..., vocab_rows] over the whole vocabulary."""
        return matmul(hidden, RowMajor(unchunked(self.head_table())))

    def head_table(self) -> Any:
        """The output projection [vocab_rows, hidden], a table of any kind."""
        table = self.embedding if self.head is None else self.head
        return table.get_value()


def init(config: ModelConfig, seed: int, dtype=jnp.float32) -> Params:
    """Random parameters, a pure pytree of stacked arrays."""
    return jax.jit(lambda: split(_build(config, dtype, seed))[1])()


def split(model: Transformer) -> tuple[Any, Params]:
    """The graph and the plain parameters of a module."""
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def bind(config: ModelConfig, params: Params) -> Transformer:
    """Parameters back in a module of this config (see `params.Binder`)."""
    return nnx.merge(_graph(config), params)


@functools.cache
def _graph(config: ModelConfig):
    """The module without its parameters."""
    return nnx.split(nnx.eval_shape(lambda: _build(config, jnp.float32, 0)))[0]


def _build(config: ModelConfig, dtype, seed: int) -> Transformer:
    return Transformer(config, dtype=dtype, rngs=nnx.Rngs(params=seed))

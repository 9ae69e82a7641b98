"""The transformer as a Flax module, and as pure functions of its parameters.

Layers are stacked on a leading axis and scanned, so that compile time does not grow
with depth. `split` separates the module into structure and parameters, `bind` puts
them together again inside jit; everything outside this package sees plain arrays and
pure functions. `param_shapes` repeats the structure without Flax: change both together.
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
from jaxdave.numerics.matmul import (
    RowMajor,
    embed,
    matmul,
    scan_over_layers,
    whole_table,
)

LayerAttend = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
"""(slice of `per_layer`, q, k, v) -> weighted values [..., L, H, D]."""


class Transformer(nnx.Module):
    """Embedding, stacked layers, final norm and (unless tied) a head."""

    def __init__(self, config: ModelConfig, *, dtype=jnp.float32, rngs: nnx.Rngs):
        """Initialise random parameters.

        Args:
            config: The model's shape.
            dtype: Of the parameters.
            rngs: Where they are drawn from.
        """
        init = nnx.initializers.normal(0.02)
        table = init(rngs.params(), (config.vocab_rows, config.hidden), dtype)
        self.embedding = nnx.Param(table)

        # N blocks of one structure, their parameters
        # stacked [N, ...], each from a key of its own.
        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(config, dtype=dtype, rngs=rngs)

        self.blocks = stack(rngs)
        self.norm = RMSNorm(config.hidden, config.rms_eps, dtype=dtype)
        # One row per id, as in the embedding, so that a chunk of ids is contiguous.
        self.head = (
            None
            if config.tie_embeddings
            else nnx.Param(init(rngs.params(), table.shape[::-1], dtype).T)
        )

    def hidden(
        self, tokens, rope: Rope, attend: LayerAttend, per_layer: Any, dtype=None
    ):
        """Compute the final hidden states of tokens.

        Args:
            tokens: int32 [..., L].
            rope: Cosines and sines of their positions.
            attend: The attention function of a layer.
            per_layer: Arrays [N, ...], of which `attend` gets each layer's slice.
            dtype: Of the activations; None: that of the weights.

        Returns:
            Normed hidden states [..., L, E], and every layer's keys (rotated) and
            values [N, ..., L, G, D].
        """
        layer, layers = self._layers(rope, attend)
        x = self._embed(tokens, dtype)
        # The carry is the residual stream; what each
        # layer emits, keys and values, is stacked.
        x, kv = jax.lax.scan(layer, x, (layers, per_layer))
        return self.norm(x), kv

    def states(self, tokens, rope: Rope, attend: LayerAttend, per_layer: Any):
        """Compute the hidden states of tokens after every layer.

        Args:
            tokens: int32 [..., L].
            rope: Cosines and sines of their positions.
            attend: The attention function of a layer.
            per_layer: Arrays [N, ...], of which `attend` gets each layer's slice.

        Returns:
            [N + 1, ..., L, E]: the embedding, then every layer's output, the last one
            normed.
        """
        layer, layers = self._layers(rope, attend)

        def emit_input(x, inputs):
            return layer(x, inputs)[0], x

        last, before = jax.lax.scan(
            emit_input, self._embed(tokens), (layers, per_layer)
        )
        return jnp.concatenate([before, self.norm(last)[None]])

    def _embed(self, tokens: jax.Array, dtype=None) -> jax.Array:
        """Vectors of tokens, by default in the dtype of the norms.

        Not in that of the embedding, which may be int8.
        """
        dtype = self.norm.scale.get_value().dtype if dtype is None else dtype
        return embed(self.embedding.get_value(), tokens, dtype)

    def _layers(self, rope: Rope, attend: LayerAttend):
        """One layer as the body of a scan, and what to scan over to get all weights."""
        # `attend` gets its own slice of `per_layer`, e.g. the layer's index, with which
        # it finds its keys in the cache of all layers.
        xs, block_of = self._scan_inputs()

        def layer(x, inputs):
            weights, layer_input = inputs
            block = block_of(weights)
            return block(x, rope, lambda q, k, v: attend(layer_input, q, k, v))

        return layer, xs

    def _scan_inputs(self):
        """What to scan over, and a function from one element of it to a `Block`."""
        graph, layers = nnx.split(self.blocks)
        xs, weights_of = scan_over_layers(layers)
        return xs, lambda element: nnx.merge(graph, weights_of(element))

    def canvas(self, tokens_CS, rope: Rope, attend, over, dtype=None):
        """Compute the hidden states of a canvas that is cut into tiles.

        In each layer all tiles are projected first, so that the keys of the whole
        canvas are there when the first tile attends to them.

        Args:
            tokens_CS: Tiles of one sequence, int32 [C, S].
            rope: Cosines and sines of their positions, [C, S, ...].
            attend: (tile index, q, k, v [1, S, ...], `KVCache` of the whole canvas
                [T, G, D]) -> weighted values [1, S, H, D].
            over: Turns a function of one tile into one of all: `lax.map` where every
                tile must be computed in one shape whatever the canvas, else `vmap`.
            dtype: Of the activations; None: that of the weights.

        Returns:
            Normed hidden states [T, E], and keys and values [N, T, G, D], T = C S.
        """
        xs, block_of = self._scan_inputs()
        index_C = jnp.arange(tokens_CS.shape[0], dtype=jnp.int32)

        def join_tiles(a: jax.Array) -> jax.Array:
            return a.reshape(-1, *a.shape[2:])

        def layer(x_CSE, weights):
            block = block_of(weights)
            # First pass over the tiles: project. Second pass: attend to all keys, and
            # finish. Between them the keys of the tiles are joined to those of the
            # canvas, [C, S, G, D] -> [T, G, D].
            q, k, v = over(lambda a: block.project(*a))((x_CSE, rope))
            canvas_kv = KVCache(join_tiles(k), join_tiles(v))

            def attend_tile(tile):
                x, index, *qkv = tile
                context = attend(index, *(part[None] for part in qkv), canvas_kv)
                return block.finish(x, context[0])

            return over(attend_tile)((x_CSE, index_C, q, k, v)), canvas_kv

        x = self._embed(tokens_CS, dtype)
        x, kv = jax.lax.scan(layer, x, xs)
        return join_tiles(over(self.norm)(x)), kv

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits over the whole vocabulary.

        Args:
            hidden: Normed hidden states [..., E].

        Returns:
            float32 [..., vocab_rows].
        """
        return matmul(hidden, RowMajor(whole_table(self.head_table())))

    def head_table(self) -> Any:
        """The output projection [vocab_rows, hidden], a table of any layout."""
        table = self.embedding if self.head is None else self.head
        return table.get_value()


def init(config: ModelConfig, seed: int, dtype=jnp.float32) -> Params:
    """Draw random parameters.

    Args:
        config: The model's shape.
        seed: Seed of the draw.
        dtype: Of the parameters.

    Returns:
        Nested dicts of arrays, as `param_shapes` describes them.
    """
    return jax.jit(lambda: split(_build(config, dtype, seed))[1])()


def split(model: Transformer) -> tuple[Any, Params]:
    """Separate a module into structure and parameters.

    Args:
        model: The module.

    Returns:
        The graph definition, and the parameters as nested dicts of arrays.
    """
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def bind(config: ModelConfig, params: Params) -> Transformer:
    """Put parameters into a module (see `param_shapes.Binder`).

    Args:
        config: The model's shape.
        params: Parameters of it, in any layout.

    Returns:
        The module.
    """
    return nnx.merge(_graph(config), params)


@functools.cache
def _graph(config: ModelConfig):
    """The module's structure without its parameters."""
    return nnx.split(nnx.eval_shape(lambda: _build(config, jnp.float32, 0)))[0]


def _build(config: ModelConfig, dtype, seed: int) -> Transformer:
    return Transformer(config, dtype=dtype, rngs=nnx.Rngs(params=seed))

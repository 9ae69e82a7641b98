"""The transformer as a Flax module, and as pure functions of its parameters.

Layers are stacked on a leading axis and scanned, so that compile time does not grow
with depth. `split` separates the module into structure and parameters, `bind` puts
them together again inside jit; everything outside this package sees plain arrays and
pure functions. `param_shapes` repeats the structure without Flax: change both together.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import KVCache, Params, activation_dtype
from jaxdave.core.shards import WHOLE_MODEL, ModelShards
from jaxdave.models.block import Block
from jaxdave.models.layers import RMSNorm
from jaxdave.models.rope import Rope
from jaxdave.numerics.layer_stack import fold_layers
from jaxdave.numerics.matmul import RowMajor, embed, matmul, whole_table
from jaxdave.runtime.machine import Machine, this_machine

LayerAttend = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]
"""(slice of `per_layer`, q, k, v) -> weighted values [..., L, H, D]."""


class Transformer(nnx.Module):
    """Embedding, stacked layers, final norm and (unless tied) a head.

    On a mesh the parameters are those of one device: its heads and features, and its
    rows of the vocabulary. Hidden vectors are the same on all devices.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
        machine: Machine,
        shards: ModelShards = WHOLE_MODEL,
        use_kernels: bool = False,
        traces_router: bool = False,
    ):
        """Initialise random parameters.

        Args:
            config: The model's shape; on a mesh as one device sees it.
            dtype: Of the parameters.
            rngs: Where they are drawn from.
            machine: What its products are compiled for.
            shards: The devices that the model is split over.
            use_kernels: Use kernels of a GPU, which have no gradient.
            traces_router: Layers tell how close their choices of experts were.
        """
        self.shards, self.vocab_rows = shards, config.vocab_rows
        init = nnx.initializers.normal(0.02)
        table = init(rngs.params(), (config.vocab_rows, config.hidden), dtype)
        self.embedding = nnx.Param(table)

        # N blocks of one structure, their parameters
        # stacked [N, ...], each from a key of its own.
        def stack(config: ModelConfig, num_layers: int) -> Block:
            @nnx.split_rngs(splits=num_layers)
            @nnx.vmap(in_axes=(0,), out_axes=0)
            def make(rngs: nnx.Rngs) -> Block:
                options = {"machine": machine, "shards": shards}
                options |= {"use_kernels": use_kernels}
                options |= {"traces_router": traces_router}
                return Block(config, dtype=dtype, rngs=rngs, **options)

            return make(rngs)

        # The first layers of a mixture of experts may be dense, a stack of their own.
        self.num_dense = config.dense_layers
        dense = dataclasses.replace(config, experts=None)
        self.dense_blocks = stack(dense, self.num_dense) if self.num_dense else None
        self.blocks = stack(config, config.num_layers - self.num_dense)
        self.norm = RMSNorm(config.hidden, config.rms_eps, dtype=dtype)
        # One row per id, as in the embedding, so that a chunk of ids is contiguous.
        self.head = (
            None
            if config.tie_embeddings
            else nnx.Param(init(rngs.params(), table.shape[::-1], dtype).T)
        )
        self.machine = machine

    def hidden(
        self,
        tokens,
        rope: Rope,
        attend: LayerAttend,
        per_layer: Any,
        dtype=None,
        *,
        remat: bool = False,
        spell_out: bool = False,
    ):
        """Compute the final hidden states of tokens.

        Args:
            tokens: int32 [..., L].
            rope: Cosines and sines of their positions.
            attend: The attention function of a layer.
            per_layer: Arrays [N, ...], of which `attend` gets each layer's slice.
            dtype: Of the activations; None: as `model_api.activation_dtype` says.
            remat: Keep only the inputs of layers for the gradient, which computes the
                rest again.
            spell_out: Compile every layer by itself (`layer_stack.fold_layers`).

        Returns:
            Normed hidden states [..., L, E], and every layer's keys (rotated) and
            values [N, ..., L, G, D], followed by its `RouterTrace` if layers trace it.
        """
        # The carry is the residual stream; what each
        # layer emits, keys and values, is stacked.
        layer = self._layer_fn(rope, attend)
        x, kv = self._fold_layers(
            layer, self._embed(tokens, dtype), per_layer, remat, spell_out
        )
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
        layer = self._layer_fn(rope, attend)

        def emit_input(x, block: Block, layer_input):
            return layer(x, block, layer_input)[0], x

        last, before = self._fold_layers(emit_input, self._embed(tokens), per_layer)
        return jnp.concatenate([before, self.norm(last)[None]])

    def _embed(self, tokens: jax.Array, dtype=None) -> jax.Array:
        """Vectors of tokens, by default in the dtype that goes with the norms'.

        Not in that of the embedding, which may be int8.
        """
        if dtype is None:
            dtype = activation_dtype(self.norm.scale.get_value().dtype)
        table = self.embedding.get_value()
        if self.shards.is_whole:
            return embed(table, tokens, dtype)
        # The vector of an id comes from the device that has its row; the others add
        # zeros, so that the sum has that row's bits.
        rows = tokens - self.shards.first_id(self.vocab_rows)
        size = self.shards.vocab_rows(self.vocab_rows)
        vectors = embed(table, jnp.clip(rows, 0, size - 1), dtype)
        is_own = (rows >= 0) & (rows < size)
        return self.shards.sum(jnp.where(is_own[..., None], vectors, 0))

    @staticmethod
    def _layer_fn(rope: Rope, attend: LayerAttend):
        """One layer: (x, block, slice of `per_layer`) -> (x, (k, v))."""

        # `attend` gets its own slice of `per_layer`, e.g. the layer's index, with which
        # it finds its keys in the cache of all layers.
        def layer(x, block: Block, layer_input):
            return block(x, rope, lambda q, k, v: attend(layer_input, q, k, v))

        return layer

    def _fold_layers(
        self,
        function,
        x,
        per_layer: Any = None,
        remat: bool = False,
        spell_out: bool = False,
    ):
        """Fold (x, block, slice of `per_layer`) -> (x, output) over the layers."""

        def fold(blocks: Block, x, inputs):
            graph, layers = nnx.split(blocks)

            def layer(x, weights, layer_input):
                return function(x, nnx.merge(graph, weights), layer_input)

            return fold_layers(
                jax.checkpoint(layer) if remat else layer,
                x,
                layers,
                inputs,
                self.machine,
                spell_out=spell_out,
            )

        if self.dense_blocks is None:
            return fold(self.blocks, x, per_layer)
        first, rest = (
            jax.tree.map(lambda a, part=part: a[part], per_layer)
            for part in (slice(self.num_dense), slice(self.num_dense, None))
        )
        x, dense_outputs = fold(self.dense_blocks, x, first)
        x, outputs = fold(self.blocks, x, rest)
        return x, jax.tree.map(
            lambda *parts: jnp.concatenate(parts), dense_outputs, outputs
        )

    def canvas(self, tokens_T, rope: Rope, attend, over, dtype=None):
        """Compute the hidden states of a canvas, tile by tile.

        In each layer all tiles are projected first, so that the keys of the whole
        canvas are there when the first tile attends to them.

        Args:
            tokens_T: Tokens of one sequence, int32 [T].
            rope: Cosines and sines of their positions, [T, ...].
            attend: (first position of a tile, q, k, v [1, S, ...], `KVCache` of the
                whole canvas [T, G, D]) -> weighted values [1, S, H, D].
            over: Turns a function of one tile, of arrays [S, ...], into one of all
                tiles that are used, of arrays [T, ...] (`canvas_tiles.TileMap`).
            dtype: Of the activations; None: as `model_api.activation_dtype` says.

        Returns:
            Normed hidden states [T, E], and keys and values [N, T, G, D], followed by
            the layers' `RouterTrace` [N, T] if they trace it.
        """
        position_T = jnp.arange(tokens_T.shape[0], dtype=jnp.int32)

        def layer(x_TE, block: Block, _):
            # First pass over the tiles: project. Second pass: attend to all keys, and
            # finish.
            q, k, v = over(lambda a: block.project(*a))((x_TE, rope))
            canvas_kv = KVCache(k, v)

            def attend_tile(tile):
                x, position_S, *qkv = tile
                own = (part[None] for part in qkv)
                context = attend(position_S[0], *own, canvas_kv)
                return block.finish(x, context[0])

            x_TE, *trace = over(attend_tile)((x_TE, position_T, q, k, v))
            return x_TE, (k, v, *trace)

        x = self._embed(tokens_T, dtype)
        x, kv = self._fold_layers(layer, x)
        return over(self.norm)(x), kv

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Logits over the whole vocabulary.

        Args:
            hidden: Normed hidden states [..., E].

        Returns:
            float32 [..., vocab_rows].
        """
        return matmul(hidden, RowMajor(whole_table(self.head_table())), self.machine)

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
    machine = this_machine()
    return jax.jit(lambda: split(_build(config, dtype, seed, machine))[1])()


def split(model: Transformer) -> tuple[Any, Params]:
    """Separate a module into structure and parameters.

    Args:
        model: The module.

    Returns:
        The graph definition, and the parameters as nested dicts of arrays.
    """
    graph, state = nnx.split(model)
    return graph, nnx.to_pure_dict(state)


def bind(
    config: ModelConfig,
    params: Params,
    machine: Machine,
    shards: ModelShards = WHOLE_MODEL,
    use_kernels: bool = False,
    traces_router: bool = False,
) -> Transformer:
    """Put parameters into a module (see `param_shapes.Binder`).

    Args:
        config: The model's shape; on a mesh as one device sees it.
        params: Parameters of it, in any layout.
        machine: What its products are compiled for.
        shards: The devices that the model is split over.
        use_kernels: Use kernels of a GPU, which have no gradient.
        traces_router: Layers tell how close their choices of experts were.

    Returns:
        The module.
    """
    graph = _graph(config, machine, shards, use_kernels, traces_router)
    return nnx.merge(graph, params)


@functools.cache
def _graph(
    config: ModelConfig,
    machine: Machine,
    shards: ModelShards,
    use_kernels: bool,
    traces_router: bool,
):
    """The module's structure without its parameters."""
    options = shards, use_kernels, traces_router
    built = nnx.eval_shape(lambda: _build(config, jnp.float32, 0, machine, *options))
    return nnx.split(built)[0]


def _build(
    config: ModelConfig,
    dtype,
    seed: int,
    machine: Machine,
    shards: ModelShards = WHOLE_MODEL,
    use_kernels: bool = False,
    traces_router: bool = False,
) -> Transformer:
    return Transformer(
        config,
        dtype=dtype,
        rngs=nnx.Rngs(params=seed),
        machine=machine,
        shards=shards,
        use_kernels=use_kernels,
        traces_router=traces_router,
    )

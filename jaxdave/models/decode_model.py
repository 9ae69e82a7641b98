"""The transformer as the pure functions of its parameters that decoding needs.

`DecodeModel` is what the two kinds of attention share; `block_causal` and
`full_attention` build a `ModelFns` from it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig, Numerics
from jaxdave.core.model_api import (
    EvaluateBlocksFn,
    ForwardFn,
    KVCache,
    ModelFns,
    PrefillFn,
    RecheckFn,
    RouterTrace,
    activation_dtype,
)
from jaxdave.core.prediction import HeadSummary
from jaxdave.core.shapes import assert_rank
from jaxdave.core.shards import WHOLE_MODEL, ModelShards, local_config
from jaxdave.models import router_trace
from jaxdave.models.attention import (
    TILE,
    LayerCache,
    MaskFn,
    mask_before,
    tiled_attention,
    two_part_attention,
)
from jaxdave.models.canvas_tiles import (
    TileMap,
    group_size,
    map_tiles_of_positions,
    map_used_positions,
    map_used_tiles,
    most_of_all_rows,
)
from jaxdave.models.param_shapes import Binder
from jaxdave.models.prefill import shift_right
from jaxdave.models.rope import rope_table
from jaxdave.numerics.matmul import gather_rows, matmul, table_chunk
from jaxdave.numerics.quantization import einsum_kernel
from jaxdave.numerics.weight_layout import head_chunk
from jaxdave.runtime.machine import Machine, this_machine

ACCELERATOR_GROUP = 8
"""Tiles of a canvas that an accelerator computes side by side, at most. Not measured
there: fewer would be many small products, more would be padding."""


MAX_UNROLLED_CHUNKS = 8
"""Off a CPU, folds over at most so many chunks of the head are unrolled."""


class DecodeModel:
    """The pure functions of one config under one kind of numerics.

    Attributes:
        config: The model's shape, on a mesh as one device sees it.
        machine: What programs are compiled for.
        shards: The devices that the model is split over.
        exact: Whether every state is computed in one fixed shape.
        dtype: Of activations; None: as `model_api.activation_dtype` says.
        attend: The attention function.
        traces_router: Whether hidden vectors carry a `RouterTrace`.
        may_use_kernel: Whether a GPU's kernels for attention and for statistics of the
            head may be used.
        shift: How far to the right of its output a prediction stands: 0 or 1.
        align: Moves vectors [..., L, E] to the positions that they predict.
        head_chunk: Vocabulary ids per chunk of the head.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        exact,
        wide,
        machine: Machine,
        kernel: bool = False,
        shards: ModelShards = WHOLE_MODEL,
    ):
        """Build the functions; nothing is compiled yet.

        Args:
            config: The whole model's shape.
            exact: Compute every state in one fixed shape.
            wide: Keep activations in float32 whatever the weights are, as guarded
                numerics want them: results of different shapes then differ by float32
                rounding, a thousandth of what bfloat16 would make of it.
            machine: What programs are compiled for.
            kernel: Windows may be evaluated with a GPU's attention kernel, whose sums
                depend on where a window starts.
            shards: The devices that the model is split over, each of which runs these
                functions on its own part.
        """
        config = local_config(config, shards.count)
        self.may_use_kernel = kernel and machine.is_gpu
        self.config, self.exact, self.machine = config, exact, machine
        self.shards = shards
        self.dtype = jnp.float32 if wide else None
        # On a CPU a fold over tiles is faster, as it ends where the keys do. On an
        # accelerator one product over the whole capacity is.
        tile = TILE if machine.is_cpu else None
        attend = (
            tiled_attention
            if exact
            else functools.partial(two_part_attention, tile=tile)
        )
        # Only guarded numerics doubt decisions, and with them those of routers.
        self.traces_router = wide and config.experts is not None
        self.bind = Binder(
            config,
            machine,
            use_kernels=self.may_use_kernel,
            shards=shards,
            traces_router=self.traces_router,
        )
        self.attend = attend
        self.shift = int(config.logits_shift != "none")
        self.align = shift_right if self.shift else lambda hidden: hidden
        self.head_chunk = head_chunk(shards.vocab_rows(config.vocab_rows), machine)

    def hidden_struct(self, params) -> jax.ShapeDtypeStruct:
        """Shape and dtype of one hidden vector; keys and values have the dtype too.

        Args:
            params: The parameters.

        Returns:
            A struct of shape [E], with its trace if there is one.
        """
        dtype = self.dtype or activation_dtype(params["norm"]["scale"].dtype)
        width = self.config.hidden
        if self.traces_router:
            width += router_trace.num_columns(self.config.num_layers)
        return jax.ShapeDtypeStruct((width,), dtype)

    @property
    def layer_indices(self) -> np.ndarray:
        """The indices of the layers, int32 [N], an input of theirs."""
        # A host array: where layers are spelled out, an index is a known number.
        return np.arange(self.config.num_layers, dtype=np.int32)

    def rope(self, position, capacity: int):
        """Cosines and sines of positions.

        Args:
            position: int32 [...].
            capacity: Positions of the sequence. What lies behind them is never read, so
                the table is as long as they are, whatever the model allows.

        Returns:
            The arrays of a `Rope`.
        """
        tables = rope_table(self.config, capacity)
        return tuple(jnp.asarray(table)[position] for table in tables)

    def evaluate_window(
        self, params, tokens_KL, start, cache: KVCache, mask_fn: MaskFn, keys_end
    ):
        """Evaluate drafts of a whole window against a cache.

        Args:
            params: The parameters.
            tokens_KL: Tokens of the drafts, int32 [K, L].
            start: The window's first position, int32 scalar.
            cache: The row's cache, [N, T, G, D].
            mask_fn: Which queries see which key positions.
            keys_end: No query sees a key at this position or later.

        Returns:
            Hidden vectors [K, L, E], not aligned, and the window's keys and values
            [N, K, L, G, D].
        """
        position_L = start + jnp.arange(tokens_KL.shape[1], dtype=jnp.int32)
        hidden, kv = self.evaluate_parts(
            params,
            tokens_KL,
            position_L,
            start,
            cache,
            mask_fn,
            keys_end,
            window_of=lambda part: part,
        )
        # Any position may depend on any other.
        return self.share_margins(
            hidden, lambda a_KL: jnp.min(a_KL, 1, keepdims=True)
        ), kv

    def share_margins(
        self, hidden: jax.Array, smallest: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """Let the margins of hidden vectors be those of all that they depend on.

        Args:
            hidden: Vectors [..., E].
            smallest: The tokens' own margins [...] -> the smallest that each vector
                depends on, [...] or of a shape that is broadcast to it.

        Returns:
            The vectors; as they are where no routers are traced.
        """
        if not self.traces_router:
            return hidden
        return router_trace.share_margins(hidden, self.config.hidden, smallest)

    def router_trace(self, hidden: jax.Array) -> RouterTrace:
        """The routers that hidden vectors depend on (`ModelFns.router_trace`).

        Args:
            hidden: Vectors [..., E].

        Returns:
            Their trace.
        """
        return router_trace.split(hidden, self.config.hidden).trace

    def _without_trace(self, hidden: jax.Array) -> jax.Array:
        """Hidden vectors as the head takes them."""
        return hidden[..., : self.config.hidden] if self.traces_router else hidden

    def evaluate_parts(
        self,
        params,
        tokens_KQ,
        position_KQ,
        start,
        cache: KVCache,
        mask_fn: MaskFn,
        keys_end,
        window_of: Callable[[jax.Array], jax.Array],
    ):
        """Evaluate parts of a window, which see other parts of it and a cache.

        Args:
            params: The parameters.
            tokens_KQ: Tokens of the parts, int32 [K, Q].
            position_KQ: Their positions, int32 [Q] or [K, Q].
            start: The window's first position, int32 scalar.
            cache: The row's cache, [N, T, G, D].
            mask_fn: Which queries see which key positions.
            keys_end: No query sees a key at this position or later.
            window_of: Maps keys (or values) of all parts [K, Q, G, D] to those of the
                window as each part sees it, [K, L, G, D].

        Returns:
            Hidden vectors [K, Q, E], not aligned, and the parts' keys and values
            [N, K, Q, G, D].
        """
        assert_rank(tokens_KQ, 2)

        # Keys of this call come from the call itself, arranged as the window
        # that each part sees; keys of all other positions come from the
        # cache. The layer's cache is not sliced out.
        def attend(index, q, k, v):
            k, v, layer_cache = window_of(k), window_of(v), LayerCache(cache, index)
            return self.attend(q, k, v, layer_cache, start, mask_fn, keys_end)

        if self.uses_kernel(cache):
            from jaxdave.models.attention_kernel import attend_in_window

            bounds = start, keys_end
            attend = attend_in_window(
                tokens_KQ.shape, cache, bounds, mask_fn, window_of, self.machine
            )
        bound, rope = self.bind(params), self.rope(position_KQ, cache.k.shape[1])
        hidden, (k, v, *trace) = bound.hidden(
            tokens_KQ, rope, attend, self.layer_indices, self.dtype
        )
        return router_trace.join_layers(hidden, trace), KVCache(k, v)

    def uses_kernel(self, cache: KVCache) -> bool:
        """Tell if windows are evaluated with the attention kernel.

        Args:
            cache: A row's cache, [N, T, G, D].

        Returns:
            True on a GPU, unless the numerics are exact or the shapes do not fit.
        """
        if not self.may_use_kernel:
            return False
        # Pallas is imported only where it is used: it takes a second.
        from jaxdave.models.attention_kernel import fits_kernel

        return fits_kernel(self.config.head_dim, cache.k.shape[1])

    def evaluate_canvas(self, params, tokens_T, end):
        """Evaluate a whole canvas that sees itself, without a cache.

        Args:
            params: The parameters.
            tokens_T: Tokens of the canvas, int32 [T], T a multiple of `TILE`.
            end: Keys at this position or later are not seen, int32 scalar.

        Returns:
            Aligned hidden vectors [T, E], and keys and values [N, T, G, D]; of tiles
            behind the end they may be zeros.
        """
        # The canvas is cut into tiles, each evaluated as a window of its own whose
        # "cache" holds the keys of the whole canvas.
        num_positions = tokens_T.shape[0]
        position_T = jnp.arange(num_positions, dtype=jnp.int32)

        def attend(start, q, k, v, canvas_kv):
            # A cache of one layer: `LayerCache` addresses a layer inside a stack.
            layer_cache = LayerCache(jax.tree.map(lambda a: a[None], canvas_kv), 0)
            return self.attend(q, k, v, layer_cache, start, mask_before(end), end)

        bound = self.bind(params)
        rope = self.rope(position_T, num_positions)
        over = self._over_canvas(num_positions // TILE, end)
        hidden, (k, v, *trace) = bound.canvas(tokens_T, rope, attend, over, self.dtype)
        hidden = router_trace.join_layers(hidden, trace)

        def smallest(margin_T: jax.Array) -> jax.Array:
            return jnp.min(
                jnp.where(position_T < end, margin_T, jnp.inf), keepdims=True
            )

        hidden = self.share_margins(hidden, smallest)
        return self.align(hidden), KVCache(k, v)

    def _over_canvas(self, num_tiles: int, end) -> TileMap:
        """How a function of a tile is applied to a canvas up to its end."""
        if self.machine.is_cpu and not self.exact:
            return map_used_positions(most_of_all_rows(end), TILE)
        # Exact: tiles one after another in one shape, so that a tile's bits do not
        # depend on how many there are.
        most = 1 if self.exact else ACCELERATOR_GROUP
        used = most_of_all_rows((end + TILE - 1) // TILE)
        over = map_used_tiles(used, group_size(num_tiles, most))
        return map_tiles_of_positions(TILE, over)

    def logits(self, params, hidden_RE, first):
        """Logits of one chunk of the vocabulary (`ModelFns.logits`).

        Args:
            params: The parameters.
            hidden_RE: Hidden vectors [R, E].
            first: The chunk's first id, int32 scalar.

        Returns:
            float32 [R, head_chunk].
        """
        # Only this chunk of the head is read: logits of all ids would take more memory
        # than the activations of the layers.
        table = self.bind(params).head_table()
        chunk = table_chunk(table, first, self.head_chunk)
        return matmul(self._without_trace(hidden_RE), chunk, self.machine)

    def summarize_head(
        self, params, hidden_RE, *, vocab_size: int, suppressed_ids: tuple[int, ...]
    ) -> HeadSummary:
        """All that is needed of the logits where there is no noise (`ModelFns`).

        Args:
            params: The parameters.
            hidden_RE: Hidden vectors [R, E].
            vocab_size: Ids from here on cannot be predicted.
            suppressed_ids: Nor can these.

        Returns:
            Arrays [R], of this device's ids.
        """
        from jaxdave.models.head_kernel import summarize_head

        return summarize_head(
            self._without_trace(hidden_RE),
            self.bind(params).head_table(),
            self.shards.first_id(self.config.vocab_rows),
            vocab_size=vocab_size,
            suppressed_ids=suppressed_ids,
            machine=self.machine,
        )

    def logits_at(self, params, hidden_RE, ids_RM):
        """Logits of some ids of each row (`ModelFns.logits_at`).

        Args:
            params: The parameters.
            hidden_RE: Hidden vectors [R, E].
            ids_RM: int32 [R, M].

        Returns:
            float32 [R, M].
        """
        # Ids differ from row to row, so that their head rows are gathered, [R, M, E].
        hidden_RE = self._without_trace(hidden_RE)
        rows = self.config.vocab_rows
        local_RM = ids_RM - self.shards.first_id(rows)
        is_own_RM = (local_RM >= 0) & (local_RM < self.shards.vocab_rows(rows))
        row_RM = local_RM if self.shards.is_whole else jnp.where(is_own_RM, local_RM, 0)
        rows_RME = gather_rows(self.bind(params).head_table(), row_RM)
        logits_RM = einsum_kernel("re,rme->rm", hidden_RE, rows_RME, self.machine)
        if self.shards.is_whole:
            return logits_RM
        # Only the device that has an id's row knows its logit.
        return self.shards.sum(jnp.where(is_own_RM, logits_RM, 0.0))

    def model_fns(
        self,
        forward: ForwardFn,
        prefill: PrefillFn,
        evaluate_blocks: EvaluateBlocksFn | None = None,
        recheck: RecheckFn | None = None,
        fast_prefill: PrefillFn | None = None,
        is_cached: bool = True,
    ) -> ModelFns:
        """Put functions together with this model's head.

        Args:
            forward: See `ModelFns`, as all others.
            prefill: Evaluates a row from its tokens.
            evaluate_blocks: Evaluates distinct states of blocks.
            recheck: Evaluates the window in the trusted shape.
            fast_prefill: The prefill in any shape.
            is_cached: The cache holds keys and values.

        Returns:
            The record for the decode loop.
        """
        return ModelFns(
            forward=forward,
            prefill=prefill,
            logits=self.logits,
            logits_at=self.logits_at,
            vocab_rows=self.config.vocab_rows,
            vocab_size=self.config.vocab_size,
            suppressed_ids=self.config.suppressed_ids,
            head_chunk=self.head_chunk,
            unrolled_chunks=1 if self.machine.is_cpu else MAX_UNROLLED_CHUNKS,
            saves_launches=self.machine.is_gpu,
            evaluate_blocks=evaluate_blocks,
            recheck=recheck,
            fast_prefill=fast_prefill,
            summarize_head=self.summarize_head if self.may_use_kernel else None,
            router_trace=self.router_trace if self.traces_router else None,
            shards=self.shards,
            # Keys and values [N, T, G, D] of this device's own heads.
            cache_axis=2 if is_cached and self.shards.splits_attention else None,
        )


def draft_and_trusted_models(
    config: ModelConfig,
    numerics: Numerics | str,
    machine: Machine | None = None,
    shards: ModelShards = WHOLE_MODEL,
) -> tuple[DecodeModel, DecodeModel]:
    """The model that evaluates drafts, and the one that guarded numerics trust.

    Args:
        config: The model's shape.
        numerics: "guarded", "exact" or "fast".
        machine: What programs are compiled for; None: this machine.
        shards: The devices that the model is split over.

    Returns:
        draft_model: Exact under "exact", else fast.
        trusted_model: Fast under "fast", else exact: it makes caches and decides again
            what was too close to call.
    """
    # Guarded numerics keep float32 activations in both models: their
    # difference, the error bound, must be as small as float32
    # rounding for most decisions to be certified.
    guarded = numerics == Numerics.GUARDED
    # Drafts must not show in the order of a sum. What guarded numerics trust is always
    # computed in one shape, at one place in it, so that any order is the same one.
    settings = {
        "wide": guarded,
        "machine": machine or this_machine(),
        "kernel": numerics != Numerics.EXACT,
        "shards": shards.in_order(numerics == Numerics.EXACT),
    }
    trusted = DecodeModel(config, exact=numerics != Numerics.FAST, **settings)
    fast = DecodeModel(config, exact=False, **settings)
    return (trusted if numerics == Numerics.EXACT else fast), trusted

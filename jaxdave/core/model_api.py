"""The interface between the decode loop and a model: `ModelFns`, a record of functions.

The loop knows nothing else about a model. Networks are built in `jaxdave.models`; a
model from elsewhere can be decoded by filling in a `ModelFns` of its own. Nothing here
imports Flax, so that a process that finds its compiled programs on disk need not load
it either.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import HeadSummary
from jaxdave.core.shards import WHOLE_MODEL, ModelShards

Params = Any
"""Parameters: nested dicts of arrays, those of the layers stacked on a leading axis
[N, ...] (`models.param_shapes`). After quantisation or in a device's own layout some
leaves are the matrix classes of `numerics.quantization` and `numerics.matmul`."""

Cache = Any
"""One row's cache, a pytree of arrays [N, T, ...] over the positions T of the row's
canvas. The loop slices and writes it along T and never looks inside."""


class KVCache(NamedTuple):
    """Rotated keys and values of committed tokens.

    Attributes:
        k: Keys [N, (B,) T or L, G, D]: layers, (rows,) positions of the canvas or of a
            window, key/value heads, head size.
        v: Values, of the same shape.
    """

    k: jax.Array
    v: jax.Array


class RouterTrace(NamedTuple):
    """How close the choices of a mixture's routers were.

    Attributes:
        margin: The smallest error of router logits at which a token would go to other
            experts, float32 [...]: the logits of some layer, of any token that the
            vector depends on and that was evaluated in the same call.
        best: The best router logit of the token in each layer, float32 [..., N]; 0 for
            a dense layer. By it two computations of the same token are compared.
    """

    margin: jax.Array
    best: jax.Array


class BlockStates(NamedTuple):
    """The distinct states of a window's blocks that one call evaluates.

    In a block-causal model the output at a block depends only on that block and on the
    blocks to its left. Drafts of one window mostly agree there, so a call evaluates
    each distinct (block, everything to its left) once: the nodes of tree attention,
    with whole blocks as nodes.

    Attributes:
        tokens_MP: Tokens of each block state, int32 [M, P], P the block length.
        block_M: The index of each state's block in the window, int32 [M].
        chain_MJ: For each state, which states stand in the J blocks of the window as it
            sees them, int32 [M, J], indices into M: its ancestors, then itself. Entries
            to the right of `block_M` are never seen and may be anything.
    """

    tokens_MP: jax.Array
    block_M: jax.Array
    chain_MJ: jax.Array


ForwardFn = Callable[..., tuple[jax.Array, Any]]
"""forward(params, tokens_KL, start, end, cache) -> (hidden_KLE, added or None)"""

PrefillFn = Callable[..., tuple[jax.Array, Any]]
"""prefill(params, tokens_T, begin, start, end, window_length, prompt_length)
-> (hidden_LE, cache)"""

EvaluateBlocksFn = Callable[..., tuple[jax.Array, Any]]
"""evaluate_blocks(params, BlockStates, start, end, cache) -> (hidden_MPE, added)"""

RecheckFn = Callable[..., tuple[jax.Array, Any]]
"""recheck(params, tokens_T, verified_until, start, end, window_length, cache)
-> (hidden_LE, cache)"""

LogitsFn = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""logits(params, hidden_RE, first id of the chunk or ids_RM) -> float32"""

SummarizeFn = Callable[..., HeadSummary]
"""summarize_head(params, hidden_RE, vocab_size=, suppressed_ids=) -> HeadSummary"""


class ModelFns(NamedTuple):
    """What the decode loop needs of a model: pure functions and a few sizes.

    All functions are traced inside jit and work on one row (one request); the engine
    maps them over a batch. Arguments are positional.

    * `params` is whatever pytree the model wants; `cache` is a `Cache` of one row.
    * `start` is the position of the window's first token, `begin` the row's first
      generated position and `end` the position after its last one: int32 scalars.
    * Hidden vectors stand at the positions that they *predict*: a model whose logits
      are shifted (Dream, Fast-dLLM v2) has to move its vectors before it returns them.
    * Axes: T canvas, L window, K drafts, M block states, P positions of a block, R
      rows of vectors, E features, N layers. Vectors may be of any dtype and width.

    Attributes:
        forward: Evaluates K drafts of a window against one shared cache:
            (params, tokens_KL int32, start, end, cache) -> (hidden_KLE, added). `added`
            is what a committed window adds to the cache, [N, K, L, ...] per leaf, or
            None where the cache stays as the prefill made it (full attention).
        prefill: Evaluates a row from its tokens alone and makes its cache:
            (params, tokens_T int32, begin, start, end, window_length, prompt_length)
            -> (hidden_LE of the window, cache). The two lengths are Python ints:
            positions of the window that are wanted, and a power of two that covers the
            prompt.
        logits: Logits of one chunk of the vocabulary: (params, hidden_RE, first row,
            int32 scalar) -> float32 [R, head_chunk]. Rows are counted from the first
            one of this device (see `shards`).
        logits_at: Logits of some ids: (params, hidden_RE, ids_RM int32) -> float32
            [R, M].
        vocab_rows: Rows of the head, real tokens and padding.
        vocab_size: Ids below this one are real tokens; others are never predicted.
        suppressed_ids: Ids below `vocab_size` that are never predicted, e.g. the mask.
        head_chunk: Ids per chunk of `logits`, at most the rows of this device. Where
            those are not a multiple, the last chunk starts earlier so that it is full.
        unrolled_chunks: Folds over at most so many chunks of the head are unrolled;
            longer ones are a loop.
        saves_launches: Starting a kernel is what costs, and a read of the head costs
            all of it, however few the vectors, as on a GPU: a verify call reads the
            head once where it can, and a row's numbers are carried side by side.
        shadow: Maps hidden_RE to vectors [R, E] from which `logits` computes what the
            model would predict at a position if only that position were masked (WINO).
            None: the model was built without shadow masks.
        evaluate_blocks: `forward` of block-causal models, for distinct states of blocks
            instead of whole windows: (params, BlockStates, start, end, cache) ->
            (hidden_MPE, added), with added [N, M, P, ...] per leaf. None: the model
            evaluates whole windows only.
        recheck: Evaluates the window's present state again, in the one shape that
            guarded numerics trust, and rewrites the cache from `verified_until` on
            in that shape: (params, tokens_T, verified_until, start, end, window_length,
            cache) -> (hidden_LE, cache). Positions before `verified_until` must already
            come from such calls. None: the model cannot be decoded under guarded
            numerics.
        fast_prefill: `prefill` in whatever shapes are fastest. Allowed under guarded
            numerics because `recheck` can remake the whole cache in the trusted shape.
            None: guarded numerics use `prefill`.
        unscored_ids: Ids that may be predicted, but that confidences leave out: score,
            gap, margin and entropy are those of the distribution without them, and a
            token that is one of them has probability 0.
        shards: How the model is split over the devices that all run these functions.
            Each of them has its own part of the parameters, of the cache and of the
            vocabulary; hidden vectors and results of `logits_at` are whole.
        cache_axis: The axis of a row's cache arrays [N, T, ...] of which each device
            has a part of its own; None: every device has all of the cache.
        router_trace: hidden vectors [..., E] -> `RouterTrace` of the routers that they
            depend on. Guarded numerics doubt a decision if one of them was a near tie.
            None: the model has no routers, or these numerics do not ask.
        summarize_head: All that is needed of the logits of this device's ids where
            there is no noise, in fewer launches than reductions of `logits` take:
            (params, hidden_RE, vocab_size=, suppressed_ids=) -> `HeadSummary`. Who
            wraps `logits` wraps this, too. None: there is no faster way.
    """

    forward: ForwardFn
    prefill: PrefillFn
    logits: LogitsFn
    logits_at: LogitsFn
    vocab_rows: int
    vocab_size: int
    suppressed_ids: tuple[int, ...]
    head_chunk: int
    shadow: Callable[[jax.Array], jax.Array] | None = None
    evaluate_blocks: EvaluateBlocksFn | None = None
    recheck: RecheckFn | None = None
    fast_prefill: PrefillFn | None = None
    unscored_ids: tuple[int, ...] = ()
    unrolled_chunks: int = 1
    saves_launches: bool = False
    shards: ModelShards = WHOLE_MODEL
    cache_axis: int | None = None
    summarize_head: SummarizeFn | None = None
    router_trace: Callable[[jax.Array], RouterTrace] | None = None


def activation_dtype(weights_dtype) -> jnp.dtype:
    """The dtype of activations between weights of a dtype.

    Args:
        weights_dtype: Of the norms, which are never quantised.

    Returns:
        That dtype; float32 for float16, as activations of published models (the
        residual stream, the products of the feed-forward layer) reach beyond 65504.
    """
    dtype = jnp.dtype(weights_dtype)
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype

"""The self-check of exact numerics: does a draft's place in a call show in its bits?

Losslessness under `exact` rests on one property of the compiled network: inside one
executable a draft's result depends on that draft alone, not on its index and not on
what travels beside it. It holds on XLA's CPU backend (`tests/test_exact.py`); on
another backend it is a question, and this asks it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.model_api import BlockStates
from jaxdave.core.spec import DecodeSpec
from jaxdave.decoding.block_states import max_block_states
from jaxdave.models.attention import TILE
from jaxdave.runtime.compilation import compile_options
from jaxdave.sampling.predictions import predict

PROBED_START = TILE - 1
"""About where the probed window begins: it crosses the edge of a tile of keys."""


class SlotProbe(NamedTuple):
    """What was found equal, bit for bit.

    repeats: the same drafts twice. order: the drafts permuted. equals: one draft in
    every place. neighbours: one draft kept, all others changed.
    """

    repeats: bool
    order: bool
    equals: bool
    neighbours: bool

    @property
    def holds(self) -> bool:
        """Whether drafts cannot change a decision on this backend."""
        return all(self)


_RESULTS: dict[tuple, SlotProbe] = {}


def slot_probe(spec: DecodeSpec, params: Any, seed: int = 0) -> SlotProbe:
    """Evaluate random drafts in several arrangements and compare tokens, scores, K/V.

    Asked once per program, dtype and backend of a process: a later call returns the
    first answer. Source: design of the numerics, "exact"; the four arrangements are
    those under which batched kernels are known to differ.
    """
    dtypes = tuple(str(leaf.dtype) for leaf in jax.tree.leaves(params))
    key = (spec, dtypes, jax.default_backend(), seed)
    if key not in _RESULTS:
        _RESULTS[key] = _probe(spec, params, seed)
    return _RESULTS[key]


class _Slots(NamedTuple):
    """How a program evaluates several lines of tokens at once.

    forward(params, tokens_KL, start, end, cache) -> (hidden_KLE, what the lines add to
    the cache [N, K, L, ...] or None).
    """

    count: int
    length: int
    forward: Callable[..., tuple[jax.Array, Any]]


def _slots(spec: DecodeSpec) -> _Slots:
    """Whole windows, or lines of two pieces each where blocks are evaluated apart."""
    layout, pieces = spec.layout, spec.model.evaluate_blocks
    if pieces is None:
        return _Slots(spec.num_states, layout.window_length, spec.model.forward)
    most = max_block_states(spec.num_states, spec.window_used // layout.length)
    count = most // 2
    piece_M = jnp.arange(most, dtype=jnp.int32)
    block_M = jnp.where(piece_M < 2 * count, piece_M % 2, 0)
    is_left_MJ = jnp.arange(layout.blocks)[None] < block_M[:, None]
    chain_MJ = jnp.where(is_left_MJ, piece_M[:, None] - 1, piece_M[:, None])

    def forward(params, tokens_KL, start, end, cache):
        tokens_MP = tokens_KL.reshape(-1, layout.length)
        spare_MP = jnp.tile(tokens_MP[:1], (most - 2 * count, 1))
        tokens_MP = jnp.concatenate([tokens_MP, spare_MP])
        hidden_MPE, added = pieces(
            params, BlockStates(tokens_MP, block_M, chain_MJ), start, end, cache
        )
        flat = lambda a: a[: 2 * count].reshape(*tokens_KL.shape, *a.shape[2:])  # noqa: E731
        return flat(hidden_MPE), jax.tree.map(jax.vmap(flat), added)

    return _Slots(count, 2 * layout.length, forward)


def _probe(spec: DecodeSpec, params: Any, seed: int) -> SlotProbe:
    lines = _slots(spec)
    count, length = lines.count, lines.length
    rng = np.random.default_rng(seed)
    draw = lambda: rng.integers(  # noqa: E731
        0, spec.model.vocab_size, (count, length), np.int32
    )
    evaluate = _evaluator(spec, lines, params, rng)
    drafts_KL, kept = draw(), count - 1
    order, others_KL = rng.permutation(count), draw()
    others_KL[kept] = drafts_KL[kept]
    equal_KL = np.repeat(drafts_KL[kept : kept + 1], count, axis=0)
    first = evaluate(drafts_KL)
    at = lambda parts, index: [part[index] for part in parts]  # noqa: E731
    return SlotProbe(
        repeats=_same(evaluate(drafts_KL), first),
        order=_same(evaluate(drafts_KL[order]), at(first, order)),
        equals=_same(evaluate(equal_KL), at(first, np.full(count, kept))),
        neighbours=_same(at(evaluate(others_KL), kept), at(first, kept)),
    )


def _evaluator(spec: DecodeSpec, lines: _Slots, params, rng: np.random.Generator):
    """tokens_KL -> arrays [K, ...]: predictions of the window, and its K and V."""
    network, window = spec.model, spec.layout.window_length
    start = PROBED_START // spec.layout.length * spec.layout.length
    end = jnp.int32(start + window)
    capacity = -(-(start + window) // TILE) * TILE
    stored = jax.eval_shape(
        lambda tokens_T: network.prefill(
            params, tokens_T, end, jnp.int32(0), end, window, capacity
        )[1],
        jax.ShapeDtypeStruct((capacity,), jnp.int32),
    )
    # Keys and values of any size will do; so will tokens, drawn as small numbers.
    cache = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape) * 4, a.dtype), stored
    )
    key = jnp.zeros((2,), jnp.uint32)

    @functools.partial(jax.jit, compiler_options=compile_options())
    def evaluate(params, tokens_KL, start, cache):
        hidden_KLE, added = lines.forward(params, tokens_KL, start, end, cache)
        place_L = start + jnp.arange(lines.length, dtype=jnp.int32)
        place_KL = jnp.broadcast_to(place_L[None], tokens_KL.shape)
        step_KL = jnp.zeros_like(place_KL)
        pred = predict(spec, params, hidden_KLE, key, step_KL, place_KL)
        moved = [jnp.moveaxis(part, 1, 0) for part in jax.tree.leaves(added)]
        return [*pred, *moved]

    def on_host(tokens_KL: np.ndarray) -> list[np.ndarray]:
        found = evaluate(params, jnp.asarray(tokens_KL), jnp.int32(start), cache)
        return [np.asarray(part) for part in found]

    return on_host


def _same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Whether two lists of arrays agree to the last bit."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))

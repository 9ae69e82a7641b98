"""The self-check of exact numerics: does a draft's place in a call show in its bits?

Losslessness under `exact` rests on one property of the compiled network: inside one
executable a draft's result depends on that draft alone, not on its index and not on
what travels beside it. It holds on XLA's CPU backend (`tests/test_exact.py`); on
another backend it is a question, and this asks it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.decode import Program
from jaxdave.model.attention import TILE
from jaxdave.predict import predict

START = TILE - 1
"""About where the probed window begins: it crosses the edge of a tile of keys."""


class Probe(NamedTuple):
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


_ANSWERS: dict[tuple, Probe] = {}


def slot_probe(program: Program, params: Any, seed: int = 0) -> Probe:
    """Evaluate random drafts in several arrangements and compare tokens, scores, K/V.

    Asked once per program, dtype and backend of a process: a later call returns the
    first answer. Source: design of the numerics, "exact"; the four arrangements are
    those under which batched kernels are known to differ.
    """
    dtypes = tuple(str(leaf.dtype) for leaf in jax.tree.leaves(params))
    key = (program, dtypes, jax.default_backend(), seed)
    if key not in _ANSWERS:
        _ANSWERS[key] = _probe(program, params, seed)
    return _ANSWERS[key]


def _probe(program: Program, params: Any, seed: int) -> Probe:
    count, length = program.slots, program.grid.window_length
    rng = np.random.default_rng(seed)
    draw = lambda: rng.integers(  # noqa: E731
        0, program.network.vocab_size, (count, length), np.int32
    )
    evaluate = _evaluator(program, params, rng)
    drafts_KL, kept = draw(), count - 1
    order, others_KL = rng.permutation(count), draw()
    others_KL[kept] = drafts_KL[kept]
    equal_KL = np.repeat(drafts_KL[kept : kept + 1], count, axis=0)
    first = evaluate(drafts_KL)
    at = lambda parts, index: [part[index] for part in parts]  # noqa: E731
    return Probe(
        repeats=_same(evaluate(drafts_KL), first),
        order=_same(evaluate(drafts_KL[order]), at(first, order)),
        equals=_same(evaluate(equal_KL), at(first, np.full(count, kept))),
        neighbours=_same(at(evaluate(others_KL), kept), at(first, kept)),
    )


def _evaluator(program: Program, params: Any, rng: np.random.Generator):
    """tokens_KL -> arrays [K, ...]: predictions of the window, and its K and V."""
    network, window = program.network, program.grid.window_length
    start = START // program.grid.length * program.grid.length
    end = jnp.int32(start + window)
    capacity = -(-(start + window) // TILE) * TILE
    stored = jax.eval_shape(
        lambda tokens_T: network.prime(
            params, tokens_T, end, jnp.int32(0), end, window, capacity
        )[1],
        jax.ShapeDtypeStruct((capacity,), jnp.int32),
    )
    # Keys and values of any size will do; so will tokens, drawn as small numbers.
    cache = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape) * 4, a.dtype), stored
    )
    key = jnp.zeros((2,), jnp.uint32)

    @jax.jit
    def evaluate(params, tokens_KL, start, cache):
        hidden_KLE, added = network.forward(params, tokens_KL, start, end, cache)
        place_L = start + jnp.arange(window, dtype=jnp.int32)
        place_KL = jnp.broadcast_to(place_L[None], tokens_KL.shape)
        step_KL = jnp.zeros_like(place_KL)
        pred = predict(program, params, hidden_KLE, key, step_KL, place_KL)
        moved = [jnp.moveaxis(part, 1, 0) for part in jax.tree.leaves(added)]
        return [*pred, *moved]

    def on_host(tokens_KL: np.ndarray) -> list[np.ndarray]:
        found = evaluate(params, jnp.asarray(tokens_KL), jnp.int32(start), cache)
        return [np.asarray(part) for part in found]

    return on_host


def _same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """Whether two lists of arrays agree to the last bit."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))

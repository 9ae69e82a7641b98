"""The self-check of exact numerics: does a draft's slot in a call show in its bits?

Losslessness under `exact` rests on one property of the compiled model: inside one
executable a draft's result depends on that draft alone, not on its index and not on
what travels beside it. It holds on XLA's CPU backend; on another backend it is a
question, and this asks it.
"""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxdave.core.model_api import BlockStates
from jaxdave.core.spec import DecodeSpec
from jaxdave.decoding.block_states import max_block_states
from jaxdave.engine.placement import placement_of
from jaxdave.models.attention import TILE
from jaxdave.runtime.compilation import compile_options
from jaxdave.runtime.meshes import split_specs
from jaxdave.runtime.platform import in_32_bits
from jaxdave.sampling.predictions import predict

PROBED_START = TILE - 1
"""About where the probed window begins: it crosses the edge of a tile of keys."""


class SlotProbe(NamedTuple):
    """Which arrangements of drafts gave equal bits.

    Attributes:
        repeats: The same drafts twice.
        order: The drafts permuted.
        equals: One draft in every slot.
        neighbours: One draft kept, all others changed.
    """

    repeats: bool
    order: bool
    equals: bool
    neighbours: bool

    @property
    def holds(self) -> bool:
        """True if drafts cannot change a decision on this backend."""
        return all(self)


_PROBES: dict[tuple, SlotProbe] = {}
_LOCK = threading.Lock()


@in_32_bits()
def slot_probe(spec: DecodeSpec, params: Any, seed: int = 0) -> SlotProbe:
    """Evaluate random drafts in several arrangements and compare bits.

    Tokens, scores, keys and values are compared. The four arrangements are those under
    which batched kernels are known to differ. Done once per spec, dtype and backend of
    a process.

    Args:
        spec: What is decoded, e.g. `decoder.spec`.
        params: The model's parameters; on a mesh the check runs there.
        seed: Draws the drafts.

    Returns:
        What was equal.

    Example:
        >>> import jaxdave
        >>> model = jaxdave.load("sdar-1m")
        >>> config = jaxdave.DecodeConfig(numerics="exact", max_new_tokens=8)
        >>> decoder = jaxdave.Sampler(model, config).decoder
        >>> jaxdave.slot_probe(decoder.spec, model.params).holds
        True
    """
    dtypes = tuple(str(leaf.dtype) for leaf in jax.tree.leaves(params))
    placement = placement_of(params)
    placement.check_one_process("a check of bits")
    key = (spec, dtypes, jax.default_backend(), placement.mesh, seed)
    with _LOCK:
        if key not in _PROBES:
            _PROBES[key] = _probe(placement.spec_of(spec), params, seed)
        return _PROBES[key]


class _Slots(NamedTuple):
    """How a spec evaluates several sequences of tokens in one call.

    Attributes:
        count: Slots of a call, K.
        length: Tokens of a slot, L.
        forward: (params, tokens_KL, start, end, cache) -> (hidden_KLE, what the slots
            add to the cache [N, K, L, ...] or None).
    """

    count: int
    length: int
    forward: Callable[..., tuple[jax.Array, Any]]


def _slots(spec: DecodeSpec) -> _Slots:
    """Whole windows; or chains of two blocks where distinct blocks are evaluated."""
    layout, evaluate_blocks = spec.layout, spec.model.evaluate_blocks
    if evaluate_blocks is None:
        return _Slots(spec.num_states, layout.window_length, spec.model.forward)
    # Slot k is a chain of two block states: 2k in block 0 of the window, and 2k + 1 in
    # block 1, whose ancestor is 2k. An odd number of states leaves a spare one, which
    # repeats the first slot's tokens.
    size = max_block_states(spec.num_states, spec.used_length // layout.block_length)
    count = size // 2
    index_M = jnp.arange(size, dtype=jnp.int32)
    block_M = jnp.where(index_M < 2 * count, index_M % 2, 0)
    is_left_MJ = jnp.arange(layout.num_blocks)[None] < block_M[:, None]
    chain_MJ = jnp.where(is_left_MJ, index_M[:, None] - 1, index_M[:, None])

    def forward(params, tokens_KL, start, end, cache):
        # [K, 2 P] -> [M, P]: one row per block state, as a decode passes them.
        tokens_MP = tokens_KL.reshape(-1, layout.block_length)
        spare_MP = jnp.tile(tokens_MP[:1], (size - 2 * count, 1))
        tokens_MP = jnp.concatenate([tokens_MP, spare_MP])
        states = BlockStates(tokens_MP, block_M, chain_MJ)
        hidden_MPE, cache_states = evaluate_blocks(params, states, start, end, cache)

        def by_slot(a):
            return a[: 2 * count].reshape(*tokens_KL.shape, *a.shape[2:])

        return by_slot(hidden_MPE), jax.tree.map(jax.vmap(by_slot), cache_states)

    return _Slots(count, 2 * layout.block_length, forward)


def _probe(spec: DecodeSpec, params: Any, seed: int) -> SlotProbe:
    slots = _slots(spec)
    count, rng = slots.count, np.random.default_rng(seed)

    def draw() -> np.ndarray:
        shape = slots.count, slots.length
        return rng.integers(0, spec.model.vocab_size, shape, np.int32)

    def at(arrays: list[np.ndarray], index) -> list[np.ndarray]:
        return [array[index] for array in arrays]

    # One executable for all arrangements. Two compilations of a function may differ in
    # bits, which would say nothing about slots.
    evaluate = _evaluator(spec, slots, params, rng)
    # The last slot is the one that is kept: where a kernel handles the remainder of a
    # division separately, it is in there.
    drafts_KL, fixed = draw(), count - 1
    order, others_KL = rng.permutation(count), draw()
    others_KL[fixed] = drafts_KL[fixed]
    equal_KL = np.repeat(drafts_KL[fixed : fixed + 1], count, axis=0)
    first = evaluate(drafts_KL)
    return SlotProbe(
        repeats=_same_bits(evaluate(drafts_KL), first),
        order=_same_bits(evaluate(drafts_KL[order]), at(first, order)),
        equals=_same_bits(evaluate(equal_KL), at(first, np.full(count, fixed))),
        neighbours=_same_bits(at(evaluate(others_KL), fixed), at(first, fixed)),
    )


def _evaluator(
    spec: DecodeSpec, slots: _Slots, params: Any, rng: np.random.Generator
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """tokens_KL -> arrays [K, ...]: predictions of the slots, their keys and values."""
    model, window = spec.model, spec.layout.window_length
    # Decodes hand the start over at run time, and it is an argument here too: as a
    # constant it could be compiled to other code.
    start = PROBED_START // spec.layout.block_length * spec.layout.block_length
    end = jnp.int32(start + window)
    capacity = -(-(start + window) // TILE) * TILE

    placement, whole = placement_of(params), PartitionSpec()
    specs, cache_spec = split_specs(params), placement.state_specs(spec, True).cache

    def cache_of(params, tokens_T):
        begin, first = end, jnp.int32(0)
        return model.prefill(params, tokens_T, begin, first, end, window, capacity)[1]

    shapes = jax.eval_shape(
        placement.program(cache_of, (specs, whole), cache_spec),
        params,
        jax.ShapeDtypeStruct((capacity,), jnp.int32),
    )
    # Keys and values of any size will do; so will tokens, drawn as small numbers.
    cache = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape) * 4, a.dtype), shapes
    )
    key = jnp.zeros((2,), jnp.uint32)

    def evaluate(params, tokens_KL, start, cache):
        hidden_KLE, added = slots.forward(params, tokens_KL, start, end, cache)
        position_L = start + jnp.arange(slots.length, dtype=jnp.int32)
        position_KL = jnp.broadcast_to(position_L[None], tokens_KL.shape)
        step_KL = jnp.zeros_like(position_KL)
        pred = predict(spec, params, hidden_KLE, key, step_KL, position_KL)
        by_slot = [jnp.moveaxis(part, 1, 0) for part in jax.tree.leaves(added)]
        return list(pred), by_slot

    # What slots add to the cache is [K, N, L, ...], and split as the cache is.
    added_spec = PartitionSpec(None, *cache_spec)
    program = placement.program(
        evaluate, (specs, whole, whole, cache_spec), (whole, added_spec)
    )
    compiled = jax.jit(program, compiler_options=compile_options())

    def on_host(tokens_KL: np.ndarray) -> list[np.ndarray]:
        pred, added = compiled(params, jnp.asarray(tokens_KL), jnp.int32(start), cache)
        return [np.asarray(array) for array in [*pred, *added]]

    return on_host


def _same_bits(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    """True if two lists of arrays agree to the last bit."""
    # Bytes, as == holds for 0.0 and -0.0 and fails for NaN.
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))

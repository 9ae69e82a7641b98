"""Stand-ins for a model: a network that is a hash table, and tiny random transformers.

The hash network's logits at a position depend on the position and on every token up to
the end of its block, and on nothing else. Its cache holds the tokens themselves.
`dense_logits` computes the same in numpy, from a whole canvas, without a cache.
"""

import dataclasses
import functools
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import BlockStates, KVCache, ModelFns
from jaxdave.engine import decoders, generation
from jaxdave.engine.generation import generate
from jaxdave.models import transformer
from jaxdave.models.attention import TILE
from jaxdave.models.prefill import PrefillChunks, chunked_prefill, chunked_recheck
from jaxdave.models.shadow_masks import split_shadow

ROWS, SIZE, MASK, PAD, STOP = 16, 13, 12, 11, 10
CHUNK = 6
CONFIG = ModelConfig(
    name="toy", family="sdar", num_layers=1, hidden=2, inter=2, heads=1, kv_heads=1,
    head_dim=2, rotary_dim=2, vocab_rows=ROWS, vocab_size=SIZE, mask_id=MASK,
    pad_id=PAD, stop_ids=(STOP,), max_positions=512,
)  # fmt: skip
TINY = ModelConfig(
    name="tiny", family="sdar", num_layers=2, hidden=32, inter=64, heads=4, kv_heads=2,
    head_dim=8, rotary_dim=8, vocab_rows=40, vocab_size=37, mask_id=36, pad_id=35,
    stop_ids=(34,), qk_norm=True, max_positions=512,
)  # fmt: skip


class Weights(NamedTuple):
    """Numbers that make one hash network out of many.

    fixed, context: size of the part that ignores the tokens, and of the part that does
    not; peak: size of a gap of 40 to 71; mask: bias of every id that must never come
    out; stop: bias of the stop id. Multiples of 1/8, so that sums are exact. fuzz: the
    numerical error of logits of block states, a hash of their seat (their index in the
    call); those of prefill chunks have none.
    """

    salt: jax.Array
    fixed: jax.Array
    context: jax.Array
    peak: jax.Array
    mask: jax.Array
    stop: jax.Array
    fuzz: jax.Array


def weights(
    salt: int = 0, *, fixed=8.0, context=4.0, peak=0.0, mask=0.0, stop=-64.0, fuzz=0.0
) -> Weights:
    """A hash network; by default its drafts are right about half of the time."""
    sizes = (jnp.float32(x) for x in (fixed, context, peak, mask, stop, fuzz))
    return Weights(jnp.uint32(salt * 7919 + 1), *sizes)


VARIANTS = {
    "table": {},
    "chaotic": dict(fixed=0.0, context=8.0),
    "fixed": dict(fixed=16.0, context=0.0),
    "ties": dict(fixed=0.0, context=0.0),
    "forbidden": dict(mask=128.0),
    "saturated": dict(fixed=0.0, context=0.0, peak=1.0),
    "stops": dict(stop=1.0),
}


def mix(x):
    """A hash of uint32 arrays, numpy's or JAX's."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def token_hash(token, place):
    """What one token adds to the hash of its block."""
    return mix(mix(token * np.uint32(31) + np.uint32(5)) + place)


def table(net: Weights, context_R1, place_R1, id_1X, as_float):
    """Logits [R, X] of context hashes and positions, exact in float32."""
    golden = np.uint32(0x9E3779B9)
    scale = np.float32(1 / 1024)
    unit = lambda h: as_float(mix(h + id_1X * golden) >> np.uint32(22)) * scale  # noqa: E731
    home = mix(place_R1 + net.salt)
    moved = mix(context_R1 + home)
    logits = net.fixed * unit(home) + net.context * unit(moved)
    # Three positions of four keep their peak whatever the context.
    stays = as_float((moved & np.uint32(3)) != np.uint32(0)) > np.float32(0)
    source = as_where(stays, home, moved)
    gap = np.float32(40) + as_float(mix(source) >> np.uint32(27))
    hit = as_float(source % np.uint32(STOP) == id_1X)
    logits = logits + net.peak * gap * hit
    never = (id_1X == np.uint32(MASK)) | (id_1X >= np.uint32(SIZE))
    stop = as_float(id_1X == np.uint32(STOP))
    return logits + net.mask * as_float(never) + net.stop * stop


def as_where(flag, a, b):
    """`where` of either library."""
    return (np if isinstance(flag, np.ndarray) else jnp).where(flag, a, b)


FAST_PREFILL_SEAT = np.uint32(1 << 20)
"""The seat number of a state that the fast prefill has evaluated."""


@functools.cache
def network(length: int, chunk: int = CHUNK) -> ModelFns:
    """The hash network of a block length; its parameters are `Weights`."""

    def forward(params, tokens_KL, start, end, cache: KVCache):
        del end
        size, total = tokens_KL.shape[1], cache.k.shape[1]
        place_L = (start + jnp.arange(size, dtype=jnp.int32)).astype(jnp.uint32)
        place_T = jnp.arange(total, dtype=jnp.uint32)
        old_T = token_hash(cache.k[0, :, 0, 0].astype(jnp.uint32), place_T)
        before_T = place_T < start.astype(jnp.uint32)
        prefix = jnp.sum(jnp.where(before_T, old_T, np.uint32(0)), dtype=jnp.uint32)
        new_KL = token_hash(tokens_KL.astype(jnp.uint32), place_L[None])
        count = tokens_KL.shape[0]
        block_KC = jnp.sum(new_KL.reshape(count, -1, length), -1, dtype=jnp.uint32)
        seen_KC = prefix + jnp.cumsum(block_KC, axis=1, dtype=jnp.uint32)
        context_KL = jnp.repeat(seen_KC, length, axis=1)
        at_KL = jnp.broadcast_to(place_L[None], context_KL.shape)
        hidden = vectors(context_KL, at_KL, as_masked(new_KL, place_L[None]))
        stored = tokens_KL[None, :, :, None, None]
        return hidden, KVCache(stored, stored)

    def evaluate_blocks(params, states: BlockStates, start, end, cache: KVCache):
        del end
        size, total = states.chain_MJ.shape[1] * length, cache.k.shape[1]
        place_T = jnp.arange(total, dtype=jnp.uint32)
        old_T = token_hash(cache.k[0, :, 0, 0].astype(jnp.uint32), place_T)
        before_T = place_T < start.astype(jnp.uint32)
        prefix = jnp.sum(jnp.where(before_T, old_T, np.uint32(0)), dtype=jnp.uint32)
        place_JP = (start + jnp.arange(size, dtype=jnp.int32)).reshape(-1, length)
        place_MP = place_JP.astype(jnp.uint32)[states.block_M]
        new_MP = token_hash(states.tokens_MP.astype(jnp.uint32), place_MP)
        block_M = jnp.sum(new_MP, axis=1, dtype=jnp.uint32)
        seen_MJ = jnp.arange(states.chain_MJ.shape[1])[None] <= states.block_M[:, None]
        chain_MJ = jnp.where(seen_MJ, block_M[states.chain_MJ], np.uint32(0))
        context_M = prefix + jnp.sum(chain_MJ, axis=1, dtype=jnp.uint32)
        context_MP = jnp.broadcast_to(context_M[:, None], place_MP.shape)
        seat_M1 = jnp.arange(1, new_MP.shape[0] + 1, dtype=jnp.uint32)[:, None]
        seat_MP = jnp.broadcast_to(seat_M1, new_MP.shape)
        hidden = vectors(context_MP, place_MP, as_masked(new_MP, place_MP), seat_MP)
        stored = states.tokens_MP[None, :, :, None, None]
        return hidden, KVCache(stored, stored)

    def logits(params, hidden_RE, first):
        ids = (first + jnp.arange(chunk, dtype=jnp.int32)).astype(jnp.uint32)
        as_float = lambda a: a.astype(jnp.float32)  # noqa: E731
        exact = table(params, hidden_RE[:, :1], hidden_RE[:, 1:2], ids[None], as_float)
        return exact + numerical_error(params, hidden_RE, ids[None])

    def empty_cache(params, capacity):
        del params
        zero = jnp.zeros((1, capacity, 1, 1), jnp.int32)
        return KVCache(zero, zero)

    def logits_at(params, hidden_RE, ids_RM):
        ids, as_float = ids_RM.astype(jnp.uint32), lambda a: a.astype(jnp.float32)
        return table(params, hidden_RE[:, :1], hidden_RE[:, 1:2], ids, as_float)

    def fast_prefill(*args):
        hidden_LE, cache = prefill(*args)
        # As if computed in a seat that no block state ever has.
        return hidden_LE.at[:, np.array([2, 5])].set(FAST_PREFILL_SEAT), cache

    chunks = PrefillChunks(forward, TILE, lambda params: VECTOR)
    prefill = chunked_prefill(chunks, empty_cache)
    plain = ModelFns(
        forward=forward,
        prefill=prefill,
        logits=logits,
        logits_at=logits_at,
        vocab_rows=ROWS,
        vocab_size=SIZE,
        suppressed_ids=(MASK,),
        head_chunk=chunk,
        evaluate_blocks=evaluate_blocks,
        recheck=chunked_recheck(chunks),
        fast_prefill=fast_prefill,
    )
    return split_shadow(plain)


VECTOR = jax.ShapeDtypeStruct((6,), jnp.uint32)
"""What the hash network makes of a position."""


def as_masked(hash_KL, place_L):
    """What the hash of all tokens gains when one of them turns into a mask."""
    return token_hash(np.uint32(MASK), place_L) - hash_KL


def vectors(context, place, gain, seat=None):
    """Vectors [..., 6] of two halves: the network's own, and its shadow's.

    seat: the index of a block state in its call, from 1; 0: not from such a call.
    """
    seat = jnp.zeros_like(context) if seat is None else seat
    parts = context, place, seat, context + gain, place, seat
    return jnp.stack(parts, axis=-1)


def numerical_error(net: Weights, hidden_RE, id_1X):
    """The error of logits [R, X] that comes from where in a call they were computed."""
    home_R1 = mix(hidden_RE[:, :1] + hidden_RE[:, 1:2] * np.uint32(77))
    share = mix(home_R1 + mix(hidden_RE[:, 2:3] * np.uint32(991) + id_1X))
    unit = (share >> np.uint32(8)).astype(jnp.float32) * np.float32(2**-23) - 1
    return net.fuzz * unit * (hidden_RE[:, 2:3] > 0).astype(jnp.float32)


def dense_logits(net: Weights, canvas, places, length: int) -> np.ndarray:
    """Logits [places, ids] of a whole canvas: no cache, no window, no chunks."""
    canvas = np.asarray(canvas).astype(np.uint32)
    rows = np.asarray(places).astype(np.uint32)[:, None]
    hashes = token_hash(canvas, np.arange(len(canvas), dtype=np.uint32))
    ends = [(int(p) // length + 1) * length for p in places]
    context = np.array([[np.sum(hashes[:end], dtype=np.uint32)] for end in ends])
    ids = np.arange(ROWS, dtype=np.uint32)[None]
    net = Weights(*(np.asarray(part) for part in net))  # pyright: ignore
    with np.errstate(over="ignore"):
        return table(net, context, rows, ids, lambda a: a.astype(np.float32))


@functools.cache
def tiny_params(seed: int):
    """Random weights of `TINY`."""
    return scaled(TINY, seed)


def scaled(config: ModelConfig, seed: int):
    """Random weights, scaled so that predictions vary."""
    params = transformer.init(config, seed)
    return jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, params)


def prompts_of(lengths, seed: int = 0, most: int = STOP) -> list[list[int]]:
    """Random prompts of the given lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, most, n).tolist() for n in lengths]


def build(policy, draft_steps, length, room, **rest):
    """FreeDave on the hash network, under exact numerics unless said otherwise."""
    net = network(length)
    rest = {"numerics": "exact", **rest}
    return decoders.freedave(
        CONFIG,
        policy,
        draft_steps=draft_steps,
        block_length=length,
        max_new_tokens=room,
        network=net,
        **rest,
    )


def capped(decoder, cap):
    """The same compiled program, using at most `cap` of its drafts."""
    return dataclasses.replace(decoder, max_num_drafts=cap)


def text(row):
    """The parts of a result that no draft may change."""
    return row.token_ids, row.finish_reason, row.valid_tokens, row.steps


def texts(result):
    return [text(row) for row in result.completions]


def decode(decoder, params, prompts, **settings):
    """`generate`, and the canvases as they were left: (Result, tokens_BT)."""
    canvases = []

    def spy(rows, **kinds):
        canvases.append(np.asarray(rows.tokens_T))
        return _read_rows(rows, **kinds)

    with mock.patch.object(generation, "read_rows", spy):
        result = generate(decoder, params, prompts, **settings)
    return result, canvases[0]


_read_rows = generation.read_rows

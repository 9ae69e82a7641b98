"""From hidden states to predictions, a chunk of the vocabulary at a time.

Logits never exist for more than one chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.config import SamplingConfig, logit_scale
from jaxdave.core.model_api import ModelFns
from jaxdave.core.prediction import NEG_INF, Prediction
from jaxdave.runtime.platform import on_cpu
from jaxdave.sampling.distribution import (
    DistributionStats,
    distribution_stats,
    gap_margin_entropy,
    max_and_argmax,
    merge_stats,
)
from jaxdave.sampling.noise import gumbel


def chunk_logits(
    network: ModelFns, params, hidden_RE
) -> Callable[[jax.Array], jax.Array]:
    """logits(chunk index) -> [R, X], `NEVER` where an id may not be predicted."""
    chunk = network.chunk
    id_X = jnp.arange(chunk, dtype=jnp.int32)

    def logits(index):
        # The last chunk is moved back to fit; ids that it repeats do not count again.
        first = jnp.minimum(index * chunk, network.vocab_rows - chunk)
        ids = first + id_X
        raw = network.logits(params, hidden_RE, first)
        dead = (ids < index * chunk) | (ids >= network.vocab_size)
        dead |= jnp.isin(ids, jnp.asarray(network.suppressed_ids, jnp.int32))
        told = jnp.where(dead[None], NEG_INF, raw)
        is_even = network.vocab_rows % chunk == 0
        return told if is_even else jnp.roll(told, first - index * chunk, axis=1)

    return logits


def token_log_odds(logits, chunks: int, scale: float, ids_W) -> jax.Array:
    """Log of the odds of one id a row against all others, [W]; never saturated."""

    def fold(index, held):
        raw = logits(index)
        z = jnp.where(raw > NEG_INF, raw * scale, NEG_INF)
        id_X = index * z.shape[1] + jnp.arange(z.shape[1], dtype=jnp.int32)
        is_it = id_X[None] == ids_W[:, None]
        mine = jnp.max(jnp.where(is_it, z, NEG_INF), axis=1)
        others = jax.nn.logsumexp(jnp.where(is_it, NEG_INF, z), axis=1)
        return jnp.maximum(held[0], mine), jnp.logaddexp(held[1], others)

    low = jnp.full(ids_W.shape, NEG_INF)
    mine, others = fold_chunks(0, chunks, fold, (low, low))
    return mine - others


def kl_divergence(logits, chunks: int, scale: float) -> jax.Array:
    """KL [W] of the first half of the rows' distributions from the second half's."""

    def halves(index):
        raw = logits(index)
        z = jnp.where(raw > NEG_INF, raw * scale, NEG_INF)
        return jnp.split(z, 2)

    def fold(index, held):
        top, total, cross, then = held
        now_z, then_z = halves(index)
        new_top = jnp.maximum(top, jnp.max(now_z, axis=1))
        fade = jnp.exp(top - new_top)
        weight = jnp.exp(now_z - new_top[:, None])
        apart = jnp.where(now_z > NEG_INF, now_z - then_z, 0.0)
        total = total * fade + jnp.sum(weight, axis=1)
        cross = cross * fade + jnp.sum(weight * apart, axis=1)
        return new_top, total, cross, jnp.logaddexp(then, jax.nn.logsumexp(then_z, 1))

    size = jax.eval_shape(halves, jnp.int32(0))[0].shape[0]
    low, zero = jnp.full((size,), NEG_INF), jnp.zeros((size,), jnp.float32)
    top, total, cross, then = fold_chunks(0, chunks, fold, (low, zero, zero, low))
    return jnp.maximum(cross / total - (top + jnp.log(total)) + then, 0.0)


def num_chunks(network: ModelFns) -> int:
    """Chunks that the head is read in."""
    return -(-network.vocab_rows // network.chunk)


MAX_UNROLLED_CHUNKS = 8
"""Chunks off a CPU; more are a loop."""
TOP_P_CANDIDATES = 1024
"""Top-p without top-k looks at this many of the best tokens."""

LogitsFn = Callable[[jax.Array], jax.Array]


def sample_and_score(
    logits: LogitsFn,
    chunks: int,
    chunk: int,
    sampling: SamplingConfig,
    key_R: jax.Array,
) -> Prediction:
    """The token each row would take and its score.

    logits(chunk index) -> float32 [R, X], `NEVER` where an id may not be predicted or
    belongs to another chunk. key_R: PRNG keys [R, 2] of (request, step, position);
    unused at temperature 0. Equal values go to the lowest id.
    """
    scale = logit_scale(sampling)

    def tempered(index):
        raw = logits(index)
        return jnp.where(raw > NEG_INF, raw * scale, NEG_INF)

    rows = key_R.shape[0]
    floor_R = jnp.full((rows,), NEG_INF, jnp.float32)
    if sampling.filtered:
        floor_R = _filter_floor(tempered, chunks, chunk, rows, sampling)

    def best_of(index):
        z = tempered(index)
        y = z
        if sampling.noisy:
            y = jnp.where(
                z >= floor_R[:, None], z + gumbel(key_R, index, chunk), -jnp.inf
            )
            y = jnp.where(z > NEG_INF, y, -jnp.inf)
        return _Chunk(_best_of_chunk(y, z, index), distribution_stats(z))

    found = best_of(jnp.int32(0))
    if chunks > 1:
        found = fold_chunks(1, chunks, lambda i, held: _merge(held, best_of(i)), found)
    chosen, spread = found
    runner_R = jnp.where(chosen.runner_y > NEG_INF, chosen.runner_up, -1)
    gap, margin, entropy = gap_margin_entropy(spread)
    lead = chosen.y - chosen.runner_y if sampling.noisy else gap
    odds_R = chosen.z - chosen.others
    return Prediction(chosen.token, odds_R, gap, margin, entropy, runner_R, lead)


def fold_chunks(first: int, chunks: int, fold: Callable[[jax.Array, Any], Any], held):
    """fold(index, held) -> held for the chunks from `first` on.

    Few are spelled out where that is of use: what each reads then lies at a place that
    is known when the program is compiled, and a GPU reads it there instead of from a
    copy. A CPU would copy all the same, and all chunks at once, but for those that are
    arrays of their own (`matrices.Cut`), which any index picks.
    """
    if chunks > max_unrolled_chunks():
        return jax.lax.fori_loop(first, chunks, fold, held)
    for index in range(first, chunks):
        held = fold(jnp.int32(index), held)
    return held


def max_unrolled_chunks() -> int:
    """The most chunks that are not a loop."""
    return 1 if on_cpu() else MAX_UNROLLED_CHUNKS


class _Best(NamedTuple):
    """Noisy value, id and logit of the token taken; log-sum-exp of all others; noisy
    value and id of the best of those."""

    y: jax.Array
    token: jax.Array
    z: jax.Array
    others: jax.Array
    runner_y: jax.Array
    runner_up: jax.Array


class _Chunk(NamedTuple):
    best: _Best
    spread: DistributionStats


def _best_of_chunk(y, z, index) -> _Best:
    size = y.shape[1]
    top_R, local_R = max_and_argmax(y)
    chosen = jnp.arange(size, dtype=jnp.int32)[None] == local_R[:, None]
    others_R = jax.nn.logsumexp(jnp.where(chosen, NEG_INF, z), axis=1)
    told_R = jnp.max(jnp.where(chosen, z, -jnp.inf), axis=1) if y is not z else top_R
    runner_y, runner_R = max_and_argmax(jnp.where(chosen, -jnp.inf, y))
    ids = index * size + local_R, index * size + runner_R
    return _Best(top_R, ids[0], told_R, others_R, runner_y, ids[1])


def _merge(a: _Chunk, b: _Chunk) -> _Chunk:
    """The two chunks as one; of equal values the earlier one is the best."""
    return _Chunk(_merge_best(a.best, b.best), merge_stats(a.spread, b.spread))


def _merge_best(a: _Best, b: _Best) -> _Best:
    keep = a.y >= b.y
    y, token, z = (jnp.where(keep, x, w) for x, w in zip(a[:3], b[:3], strict=True))
    loser = jnp.where(keep, b.z, a.z)
    others = jnp.logaddexp(jnp.logaddexp(a.others, b.others), loser)
    # The runner is the best of one chunk or the second of the other; ids of `a` are
    # lower, so that equal values are its.
    from_a = jnp.where(keep, a.runner_y >= b.y, a.y >= b.runner_y)
    of_a = jnp.where(keep, a.runner_y, a.y), jnp.where(keep, a.runner_up, a.token)
    of_b = jnp.where(keep, b.y, b.runner_y), jnp.where(keep, b.token, b.runner_up)
    runner = (jnp.where(from_a, x, w) for x, w in zip(of_a, of_b, strict=True))
    return _Best(y, token, z, others, *runner)


def _filter_floor(
    tempered, chunks: int, chunk: int, rows: int, sampling: SamplingConfig
):
    """The lowest tempered logit that the filters keep, [R]."""
    most = min(sampling.top_k or TOP_P_CANDIDATES, chunks * chunk)

    def gather(index, held):
        top_RM, total_R = held
        z = tempered(index)
        total_R = jnp.logaddexp(total_R, jax.nn.logsumexp(z, axis=1))
        return jax.lax.top_k(jnp.concatenate([top_RM, z], axis=1), most)[0], total_R

    empty = jnp.full((rows, most), NEG_INF), jnp.full((rows,), NEG_INF)
    top_RM, total_R = fold_chunks(0, chunks, gather, empty)
    if sampling.top_k:
        total_R = jax.nn.logsumexp(top_RM, axis=1)
    share_RM = jnp.exp(top_RM - total_R[:, None])
    before_RM = jnp.cumsum(share_RM, axis=1) - share_RM
    # The first token stays whatever its share; the last kept is the one that crosses p.
    kept_RM = (before_RM < sampling.top_p) & (top_RM > NEG_INF)
    return jnp.min(jnp.where(kept_RM, top_RM, jnp.inf), axis=1)

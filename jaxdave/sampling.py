"""From hidden states to predictions, a chunk of the vocabulary at a time.

Logits never exist for more than one chunk.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.backend import on_cpu
from jaxdave.noise import gumbel
from jaxdave.spread import NEVER, Spread, features, highest, merged, spread_of
from jaxdave.types import Prediction

SPELLED_OUT = 8
"""Chunks off a CPU; more are a loop."""
NUCLEUS = 1024
"""Top-p without top-k looks at this many of the best tokens."""

LogitsFn = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Temperature and filters; top_k=0 and top_p=1 mean off.

    Filters are applied to the tempered logits before the noise (top-k, then top-p);
    the score is that of the unfiltered tempered distribution. Raises ValueError for a
    value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(
                f"temperature={self.temperature} must be 0 (the best token) or more"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1 (off)")

    @property
    def noisy(self) -> bool:
        return self.temperature > 0

    @property
    def filtered(self) -> bool:
        return self.noisy and (self.top_k > 0 or self.top_p < 1)


def scale_of(sampling: Sampling) -> float:
    """What logits are multiplied by before anything else."""
    return 1.0 / sampling.temperature if sampling.noisy else 1.0


def read(
    logits: LogitsFn, chunks: int, chunk: int, sampling: Sampling, key_R: jax.Array
) -> Prediction:
    """The token each row would take and its score.

    logits(chunk index) -> float32 [R, X], `NEVER` where an id may not be predicted or
    belongs to another chunk. key_R: PRNG keys [R, 2] of (request, step, position);
    unused at temperature 0. Equal values go to the lowest id.
    """
    scale = scale_of(sampling)

    def tempered(index):
        raw = logits(index)
        return jnp.where(raw > NEVER, raw * scale, NEVER)

    rows = key_R.shape[0]
    floor_R = jnp.full((rows,), NEVER, jnp.float32)
    if sampling.filtered:
        floor_R = _floor(tempered, chunks, chunk, rows, sampling)

    def best_of(index):
        z = tempered(index)
        y = z
        if sampling.noisy:
            y = jnp.where(
                z >= floor_R[:, None], z + gumbel(key_R, index, chunk), -jnp.inf
            )
            y = jnp.where(z > NEVER, y, -jnp.inf)
        return _Chunk(_best(y, z, index), spread_of(z))

    found = best_of(jnp.int32(0))
    if chunks > 1:
        found = over_chunks(1, chunks, lambda i, held: _merge(held, best_of(i)), found)
    chosen, spread = found
    runner_R = jnp.where(chosen.runner_y > NEVER, chosen.runner, -1)
    gap, margin, entropy = features(spread)
    lead = chosen.y - chosen.runner_y if sampling.noisy else gap
    odds_R = chosen.z - chosen.others
    return Prediction(chosen.token, odds_R, gap, margin, entropy, runner_R, lead)


def over_chunks(first: int, chunks: int, fold: Callable[[jax.Array, Any], Any], held):
    """fold(index, held) -> held for the chunks from `first` on.

    Few are spelled out where that is of use: what each reads then lies at a place that
    is known when the program is compiled, and a GPU reads it there instead of from a
    copy. A CPU would copy all the same, and all chunks at once, but for those that are
    arrays of their own (`matrices.Cut`), which any index picks.
    """
    if chunks > spelled_out():
        return jax.lax.fori_loop(first, chunks, fold, held)
    for index in range(first, chunks):
        held = fold(jnp.int32(index), held)
    return held


def spelled_out() -> int:
    """The most chunks that are not a loop."""
    return 1 if on_cpu() else SPELLED_OUT


class _Best(NamedTuple):
    """Noisy value, id and logit of the token taken; log-sum-exp of all others; noisy
    value and id of the best of those."""

    y: jax.Array
    token: jax.Array
    z: jax.Array
    others: jax.Array
    runner_y: jax.Array
    runner: jax.Array


class _Chunk(NamedTuple):
    best: _Best
    spread: Spread


def _best(y, z, index) -> _Best:
    size = y.shape[1]
    top_R, local_R = highest(y)
    chosen = jnp.arange(size, dtype=jnp.int32)[None] == local_R[:, None]
    others_R = jax.nn.logsumexp(jnp.where(chosen, NEVER, z), axis=1)
    told_R = jnp.max(jnp.where(chosen, z, -jnp.inf), axis=1) if y is not z else top_R
    runner_y, runner_R = highest(jnp.where(chosen, -jnp.inf, y))
    ids = index * size + local_R, index * size + runner_R
    return _Best(top_R, ids[0], told_R, others_R, runner_y, ids[1])


def _merge(a: _Chunk, b: _Chunk) -> _Chunk:
    """The two chunks as one; of equal values the earlier one is the best."""
    return _Chunk(_merge_best(a.best, b.best), merged(a.spread, b.spread))


def _merge_best(a: _Best, b: _Best) -> _Best:
    keep = a.y >= b.y
    y, token, z = (jnp.where(keep, x, w) for x, w in zip(a[:3], b[:3], strict=True))
    loser = jnp.where(keep, b.z, a.z)
    others = jnp.logaddexp(jnp.logaddexp(a.others, b.others), loser)
    # The runner is the best of one chunk or the second of the other; ids of `a` are
    # lower, so that equal values are its.
    from_a = jnp.where(keep, a.runner_y >= b.y, a.y >= b.runner_y)
    of_a = jnp.where(keep, a.runner_y, a.y), jnp.where(keep, a.runner, a.token)
    of_b = jnp.where(keep, b.y, b.runner_y), jnp.where(keep, b.token, b.runner)
    runner = (jnp.where(from_a, x, w) for x, w in zip(of_a, of_b, strict=True))
    return _Best(y, token, z, others, *runner)


def _floor(tempered, chunks: int, chunk: int, rows: int, sampling: Sampling):
    """The lowest tempered logit that the filters keep, [R]."""
    most = min(sampling.top_k or NUCLEUS, chunks * chunk)

    def gather(index, held):
        top_RM, total_R = held
        z = tempered(index)
        total_R = jnp.logaddexp(total_R, jax.nn.logsumexp(z, axis=1))
        return jax.lax.top_k(jnp.concatenate([top_RM, z], axis=1), most)[0], total_R

    empty = jnp.full((rows, most), NEVER), jnp.full((rows,), NEVER)
    top_RM, total_R = over_chunks(0, chunks, gather, empty)
    if sampling.top_k:
        total_R = jax.nn.logsumexp(top_RM, axis=1)
    share_RM = jnp.exp(top_RM - total_R[:, None])
    before_RM = jnp.cumsum(share_RM, axis=1) - share_RM
    # The first token stays whatever its share; the last kept is the one that crosses p.
    kept_RM = (before_RM < sampling.top_p) & (top_RM > NEVER)
    return jnp.min(jnp.where(kept_RM, top_RM, jnp.inf), axis=1)

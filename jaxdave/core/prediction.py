"""What a distribution looks like beside its best token: gap, margin, entropy.

Gathered a chunk of the vocabulary at a time, and relative to the second best logit, so
that nothing is lost however far the best is ahead.
"""

from typing import NamedTuple

import jax

NEG_INF = -1e30
"""The logit of what may not be predicted; finite, so that sums stay numbers."""


class Prediction(NamedTuple):
    """What the model says of each position.

    token, runner: int32, what the sampler takes, and would take next; -1: none at hand.
    The rest is of the unfiltered tempered distribution, float32, and never saturates.
    score: log of the odds of `token` against all others. gap: logit of the best token
    less that of the second. margin: -log(1 - (p_best - p_second)). entropy: nats. lead:
    by how much the sampler preferred `token` to the next, its noise included.
    """

    token: jax.Array
    score: jax.Array
    gap: jax.Array
    margin: jax.Array
    entropy: jax.Array
    runner_up: jax.Array
    lead: jax.Array


class ErrorBound(NamedTuple):
    """How far the numbers of a prediction may be off, each by its name.

    entropy: a share of it, as where nearly all is certain it is off by hardly anything.
    """

    score: jax.Array
    lead: jax.Array
    gap: jax.Array
    margin: jax.Array
    entropy: jax.Array

    @classmethod
    def every(cls, error: jax.Array) -> "ErrorBound":
        """All of them by as much."""
        return cls(*[error] * len(cls._fields))

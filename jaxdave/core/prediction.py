"""The model's predictions at each position, and bounds on their numerical error.

Summary statistics are gathered one chunk of the vocabulary at a time, so no array of
shape [positions, vocabulary] exists. They are relative to the second best logit, which
keeps full precision however confident the model is.
"""

from typing import NamedTuple

import jax

NEG_INF = -1e30
"""The logit of ids that may not be predicted; finite, so that sums never become NaN."""
NO_TOKEN = -1
"""Stands for a token that could not be predicted. Committed, it ends its row."""


class Prediction(NamedTuple):
    """The model's prediction at each position of a stretch of tokens.

    All statistics but `lead` are of the tempered distribution before top-k and top-p.
    They are stored as log-odds or logit differences, which do not saturate as
    probabilities in float32 do: scores of 17 and 60 both have probability 1.0.

    Attributes:
        token: The token that the sampler takes, int32 [W]; `NO_TOKEN` where there is
            none: no score is a finite number.
        score: Log-odds of `token` against all other ids, float32 [W].
        gap: Best logit minus second best logit, float32 [W].
        margin: -log(1 - (p_best - p_second)), float32 [W].
        entropy: Entropy in nats, float32 [W].
        runner_up: The token that the sampler would take next, int32 [W]; -1 where there
            is none.
        lead: By how much the sampler preferred `token` to `runner_up`, its noise
            included, float32 [W].
    """

    token: jax.Array
    score: jax.Array
    gap: jax.Array
    margin: jax.Array
    entropy: jax.Array
    runner_up: jax.Array
    lead: jax.Array


class HeadSummary(NamedTuple):
    """The best two ids of some part of the vocabulary, and sums over all its others.

    Arrays [R]; sums as in `sampling.distribution.DistributionStats`.

    Attributes:
        token: The id with the best logit, the lowest of equal ones, int32.
        runner_up: The id with the second best, int32.
        top: The best logit, float32.
        second: The second best logit, float32.
        rest: Sum of exp(z - second) over all but the best, float32.
        moment: Sum of (second - z) exp(z - second), float32.
    """

    token: jax.Array
    runner_up: jax.Array
    top: jax.Array
    second: jax.Array
    rest: jax.Array
    moment: jax.Array


class ErrorBound(NamedTuple):
    """Error bounds of the fields of a `Prediction`, and of routers, float32 scalars.

    Bounds are absolute, but relative for `entropy`, whose error vanishes with it.

    Attributes:
        score: Bound on the error of `Prediction.score`.
        lead: Bound on the error of `Prediction.lead`.
        gap: Bound on the error of `Prediction.gap`.
        margin: Bound on the error of `Prediction.margin`.
        entropy: Bound on the error of `Prediction.entropy`, as a share of the entropy.
        router: Bound on the error of a mixture's router logits.
    """

    score: jax.Array
    lead: jax.Array
    gap: jax.Array
    margin: jax.Array
    entropy: jax.Array
    router: jax.Array

    @classmethod
    def uniform(cls, error: jax.Array) -> "ErrorBound":
        """The same bound for every field.

        Args:
            error: The bound, a float32 scalar; 0 for exact numbers, infinity where
                nothing is known of the error.

        Returns:
            An `ErrorBound` with `error` in each field.
        """
        return cls(*[error] * len(cls._fields))

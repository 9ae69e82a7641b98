"""BGPO: a lower bound of the policy objective that is a sum over masks.

The ratio of two policies is estimated as exp(mean over masks of d), d what a mask says
of new minus old ELBO. Its gradient needs all masks at once; the bounds here are sums in
which each term holds one mask, so that gradients are added up mask by mask.

Axes: N masks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class RatioBounds(NamedTuple):
    """Bounds of the ratio exp(mean d) of new to old policy.

    At equal policies both are 1, and their gradients are that of the ratio.

    Attributes:
        lower: 1 + mean d, the tangent of exp, scalar.
        upper: mean exp(d), by Jensen's inequality, scalar.
    """

    lower: jax.Array
    upper: jax.Array


def ratio_bounds(new_N: jax.Array, old_N: jax.Array, share_N: jax.Array) -> RatioBounds:
    """Bound the ratio of two policies by sums over masks.

    Args:
        new_N: What each mask says under the parameters that are trained
            (`elbo.elbo_terms`), float32 [N].
        old_N: The same of those that have sampled, on the same masks, float32 [N].
        share_N: How much each mask counts; sums to 1, float32 [N].

    Returns:
        The bounds.

    Example:
        >>> half = jnp.array([0.5, 0.5])
        >>> low, high = ratio_bounds(jnp.array([1.0, -1.0]), jnp.zeros(2), half)
        >>> float(low) <= 1.0 <= float(high)
        True

    Source: BGPO, arXiv 2510.11683 (abstract; the formulas follow from its two
    properties, linear in the masks, equal in value and gradient on policy).
    """
    difference_N = new_N - old_N
    lower = 1.0 + jnp.sum(share_N * difference_N)
    return RatioBounds(lower, jnp.sum(share_N * jnp.exp(difference_N)))


def bgpo_objective(
    new_N: jax.Array, old_N: jax.Array, share_N: jax.Array, advantage: jax.Array
) -> jax.Array:
    """Compute BGPO's objective of one answer, to be maximised.

    Args:
        new_N: As in `ratio_bounds`.
        old_N: As in `ratio_bounds`.
        share_N: As in `ratio_bounds`.
        advantage: The answer's advantage, float32 scalar.

    Returns:
        float32 scalar, at most advantage * exp(mean d).

    Source: as in `ratio_bounds`.
    """
    lower, upper = ratio_bounds(new_N, old_N, share_N)
    return advantage * jnp.where(advantage >= 0, lower, upper)

"""Inequalities as equalities: H x <= h is H x + w = h with slack w >= 0.

For sets that are not easy to project on: the inequality becomes part of the constraint,
may then be sampled like it, and only w >= 0 is left to project on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.training.constrained.constraint import Residual
from jaxdave.training.constrained.projections import Projection, box, product


class Slacked(NamedTuple):
    """Parameters with the slack of their inequalities; itself a pytree of parameters.

    Attributes:
        params: x.
        slack: w, of the structure of the inequality's value.
    """

    params: Any
    slack: Any


def start_slack(params: Any, inequality: Residual) -> Slacked:
    """Add the slack that parameters leave.

    Args:
        params: x.
        inequality: From x to H x - h, which is to be <= 0.

    Returns:
        x and w = max(h - H x, 0).

    Example:
        >>> start_slack(jnp.array([1.0, 5.0]), lambda x: x - 3.0).slack.tolist()
        [2.0, 0.0]
    """
    slack = jax.tree.map(lambda excess: jnp.maximum(-excess, 0), inequality(params))
    return Slacked(params, slack)


def slack_residual(inequality: Residual, equality: Residual | None = None) -> Residual:
    """Build the residual of an inequality, and of an equality beside it.

    Args:
        inequality: From x to H x - h.
        equality: From x to A x - b; None for none.

    Returns:
        From `Slacked` to H x + w - h, or to the pair of it and A x - b.
    """

    def residual(slacked: Slacked) -> Any:
        excess = inequality(slacked.params)
        left = jax.tree.map(lambda e, w: e + w, excess, slacked.slack)
        return left if equality is None else (left, equality(slacked.params))

    return residual


def project_slacked(project: Projection) -> Projection:
    """Build the projection of parameters with slack.

    Args:
        project: That of the parameters.

    Returns:
        The projection onto X and w >= 0.
    """
    return product(Slacked(project, box(0.0, float("inf"))))

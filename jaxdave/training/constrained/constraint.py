"""Samples of a linear constraint E[A(zeta) x - b] = 0, as a method is told of them.

A sample is a function from parameters to the residual A(zeta) x - b, an array or a
pytree of arrays. Its transpose A(zeta)' comes from its derivative, so a constraint is
written down once, as what it says of the parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Residual = Callable[[Any], Any]
"""A sample of the constraint: from parameters to A(zeta) x - b, affine in them."""


class ConstraintSamples(NamedTuple):
    """What one step needs of the constraint.

    A step is unbiased if the three are drawn independently: E[A(zeta)' A(zeta)] is not
    A'A, and the multipliers of a step have already seen the sample that moved them. If
    the constraint is known, the three are the same (`known`).

    Attributes:
        dual: Moves the multipliers.
        transpose: Its A(zeta)' carries multipliers and penalty back to parameters.
        penalty: Its residual is what the penalty is on.
    """

    dual: Residual
    transpose: Residual
    penalty: Residual


def known(residual: Residual) -> ConstraintSamples:
    """Say that a constraint is known: every sample of it is the constraint itself.

    Args:
        residual: From parameters to A x - b.

    Returns:
        The samples.
    """
    return ConstraintSamples(residual, residual, residual)


def pull_back(residual: Residual, params: Any, weights: Any) -> Any:
    """Apply the transpose of a sample: A(zeta)' w.

    Args:
        residual: The sample.
        params: Parameters; only their structure, shapes and dtypes matter.
        weights: w, of the residual's structure.

    Returns:
        A pytree of the structure of `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> total = lambda x: jnp.sum(x) - 1.0
        >>> pull_back(total, jnp.zeros(2), jnp.float32(3.0)).tolist()
        [3.0, 3.0]
    """
    value, transpose = jax.vjp(residual, params)
    cast = jax.tree.map(lambda w, r: w.astype(r.dtype), weights, value)
    return transpose(cast)[0]


def augmented_pull(
    samples: ConstraintSamples, params: Any, multipliers: Any, penalty: Any
) -> Any:
    """Estimate the constraint's part of an augmented Lagrangian's gradient.

    Args:
        samples: Samples of the constraint.
        params: Parameters x.
        multipliers: y.
        penalty: Weight rho of the quadratic penalty.

    Returns:
        A(zeta_1)' (y + rho (A(zeta_2) x - b)), with zeta_1 of `samples.transpose` and
        zeta_2 of `samples.penalty`; of the structure of `params`.
    """
    residual = samples.penalty(params)
    weights = jax.tree.map(lambda y, r: y + penalty * r, multipliers, residual)
    return pull_back(samples.transpose, params, weights)

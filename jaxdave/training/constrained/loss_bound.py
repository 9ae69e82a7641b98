"""A bound on an expected loss, E[loss(x, zeta)] <= limit, as a constraint.

With slack it is the equality E[loss(x, zeta)] - limit + w = 0, 0 <= w <= limit, as no
loss is negative. A loss is not linear in the parameters, so the methods of this package
are given at step t its linearisation at their iterate,

    c(x) ~ c(x_t) + J_t (x - x_t),  J_t the derivative of c at x_t:

residuals are those of the loss itself, and J_t' carries multipliers back. Each is an
unbiased sample of what it stands for, but J_t changes from step to step where the
theory has one matrix A: its rates, and that multipliers below a bound suffice, are
shown for linear constraints only. The loss of x_t counts, not that of the centre z_t.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.training.constrained.constraint import ConstraintSamples, Residual
from jaxdave.training.constrained.projections import Projection, box, product
from jaxdave.training.constrained.slack import Slacked, slack_residual

LossFn = Callable[..., jax.Array]
"""(parameters, *sample) -> a loss that is never negative, a scalar."""


def loss_residual(loss: LossFn, limit: Any, *sample: Any) -> Residual:
    """Build a sample of the constraint.

    Args:
        loss: The loss.
        limit: What its expectation is to be at most.
        *sample: What the loss is of, such as a batch and a key.

    Returns:
        From `Slacked` parameters to loss - limit + w.

    Example:
        >>> residual = loss_residual(lambda x, data: (x - data) ** 2, 1.0, 3.0)
        >>> float(residual(Slacked(jnp.float32(1.0), jnp.float32(0.5))))
        3.5
    """
    return slack_residual(lambda params: loss(params, *sample) - limit)


def draw_loss_bound(
    loss: LossFn, limit: Any, samples: tuple[Any, Any, Any]
) -> ConstraintSamples:
    """Build what one step is told of the constraint from three independent samples.

    Args:
        loss: The loss.
        limit: What its expectation is to be at most.
        samples: Three tuples, each what `loss` takes after the parameters.

    Returns:
        The samples: of the multipliers' step, of the transpose and of the penalty.
    """
    dual, transpose, penalty = (loss_residual(loss, limit, *one) for one in samples)
    return ConstraintSamples(dual, transpose, penalty)


def start_loss_bound(params: Any, value: Any, limit: Any) -> Slacked:
    """Add the slack that parameters leave.

    Args:
        params: Parameters.
        value: An estimate of their expected loss, a scalar.
        limit: What it is to be at most.

    Returns:
        The parameters with w = limit - value, or 0 where the bound does not hold.
    """
    return Slacked(params, jnp.clip(limit - jnp.asarray(value), 0, limit))


def project_loss_bound(project: Projection, limit: Any) -> Projection:
    """Build the projection of parameters with the slack of a bound.

    Args:
        project: That of the parameters.
        limit: What the expected loss is to be at most.

    Returns:
        The projection onto X and 0 <= w <= limit.
    """
    return product(Slacked(project, box(0.0, limit)))

"""The methods to compare with: SGD on a quadratic penalty, and plain linearised ALM.

Both take `update(grads, state, params, constraints=samples)`, as `smoothed_lagrangian`
does, and project onto X.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdave.training.constrained.constraint import (
    ConstraintSamples,
    augmented_pull,
)
from jaxdave.training.constrained.projections import Projection
from jaxdave.training.constrained.transformation import NO_PARAMS, Transformation


class MultiplierState(NamedTuple):
    """State of `linearized_lagrangian`.

    Attributes:
        multipliers: y, of the structure of the constraint's residual.
    """

    multipliers: Any


def penalty_sgd(step: Any, *, weight: Any, project: Projection) -> Transformation:
    """Build projected SGD on f(x) + (weight/2) ||A x - b||^2.

    Where it converges, A x - b is about -y*/weight, not zero, y* the multipliers: the
    weight has to grow with the accuracy asked for, and the steps to shrink with it.

    Args:
        step: Step size of the parameters.
        weight: Weight of the penalty.
        project: The projection onto X.

    Returns:
        The transformation; it has no state.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: Any,
        state: optax.EmptyState,
        params: Any = None,
        *,
        constraints: ConstraintSamples,
        **extra_args: Any,
    ) -> tuple[Any, optax.EmptyState]:
        del extra_args
        if params is None:
            raise ValueError(NO_PARAMS)
        zeros = jax.tree.map(jnp.zeros_like, constraints.penalty(params))
        pull = augmented_pull(constraints, params, zeros, weight)
        return _projected_step(params, updates, pull, step, project), state

    return Transformation._make((init, update))


def linearized_lagrangian(
    primal_step: Any,
    dual_step: Any,
    *,
    penalty: Any,
    start_multipliers: Any,
    project: Projection,
) -> Transformation:
    """Build the linearised ALM without proximal centre and without safeguard.

    Args:
        primal_step: Step size of the parameters.
        dual_step: Step size of the multipliers.
        penalty: Weight rho of the quadratic penalty.
        start_multipliers: y_0, an array or a pytree as the constraint's residual.
        project: The projection onto X.

    Returns:
        The transformation; its state is a `MultiplierState`.
    """

    def init(params: Any) -> MultiplierState:
        del params
        return MultiplierState(jax.tree.map(jnp.asarray, start_multipliers))

    def update(
        updates: Any,
        state: MultiplierState,
        params: Any = None,
        *,
        constraints: ConstraintSamples,
        **extra_args: Any,
    ) -> tuple[Any, MultiplierState]:
        del extra_args
        if params is None:
            raise ValueError(NO_PARAMS)
        multipliers = jax.tree.map(
            lambda y, v: (y + dual_step * v).astype(y.dtype),
            state.multipliers,
            constraints.dual(params),
        )
        pull = augmented_pull(constraints, params, multipliers, penalty)
        moved = _projected_step(params, updates, pull, primal_step, project)
        return moved, MultiplierState(multipliers)

    return Transformation._make((init, update))


def _projected_step(
    params: Any, grads: Any, pull: Any, step: Any, project: Projection
) -> Any:
    """Difference to the parameters of a projected gradient step."""
    stepped = jax.tree.map(
        lambda x, g, a: (x - step * (g + a)).astype(x.dtype), params, grads, pull
    )
    return optax.tree.sub(project(stepped), params)

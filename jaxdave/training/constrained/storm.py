"""STORM: a gradient estimate of falling variance from two gradients at one sample.

    g_0 = the mean of N gradients at x_0
    g_t = grad f(x_t, xi_t) + (1 - alpha) (g_(t-1) - grad f(x_(t-1), xi_t))

In front of `smoothed_lagrangian` it needs T of order eps^-3 where that alone needs
eps^-4, if the constraint is known and the same sample can be had at two points
(oracle 2). Constraints that are only sampled, as in federated learning, are for
`smoothed_lagrangian` alone.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxdave.training.constrained.lagrangian import StepSizes, smoothed_lagrangian
from jaxdave.training.constrained.projections import Projection
from jaxdave.training.constrained.transformation import NO_PARAMS, Transformation


class StormState(NamedTuple):
    """State of `storm`.

    Attributes:
        count: Number of updates so far, int32 scalar.
        estimate: g, of the structure of the parameters.
        previous_params: The parameters of the update before: where the second gradient
            is to be taken.
    """

    count: jax.Array
    estimate: Any
    previous_params: Any


def storm_momentum(horizon: Any, scale: float = 1.0) -> Any:
    """Choose alpha for T steps: scale T^(-2/3), at most 1.

    Args:
        horizon: T.
        scale: Its factor.

    Returns:
        alpha. The talk gives none; the order is that of STORM's own theory.

    Example:
        >>> round(float(storm_momentum(1000)), 4)
        0.01

    Source: A. Cutkosky, F. Orabona, "Momentum-Based Variance Reduction in Non-Convex
    SGD", arXiv 1905.10018.
    """
    return jnp.minimum(1.0, scale * jnp.asarray(horizon, float) ** (-2 / 3))


def start_batch(horizon: int, power: float = 1 / 6) -> int:
    """Choose the number N of samples of the first estimate for T steps.

    Args:
        horizon: T.
        power: N = T^power rounded up. The talk has 1/6. With 1/3 the squared error of
            the start, which lasts 1/alpha = T^(2/3) steps, adds as little to the mean
            square of the whole run as the rate allows.

    Returns:
        N.

    Example:
        >>> start_batch(4096), start_batch(4096, 1 / 3)
        (4, 16)
    """
    # The rounding of the power must not cost another sample.
    return max(1, math.ceil(horizon**power * (1 - 1e-9)))


def storm(momentum: Any) -> Transformation:
    """Build the estimator as a transformation of gradients.

    `update(grads, state, params, previous_grads=...)` takes the gradients of one sample
    at `params` and at `state.previous_params`. In the first update `grads` is the mean
    over the start's samples, and `previous_grads` does not count.

    Args:
        momentum: alpha in (0, 1]; 1 is plain SGD.

    Returns:
        The transformation; its state is a `StormState`, its updates are g.

    Raises:
        ValueError: If alpha is out of its range.

    Example:
        >>> estimator = storm(0.5)
        >>> state = estimator.init(jnp.zeros(()))
        >>> for grad, previous in ((4.0, 0.0), (3.0, 2.0)):
        ...     g, state = estimator.update(
        ...         jnp.float32(grad), state, jnp.zeros(()),
        ...         previous_grads=jnp.float32(previous),
        ...     )
        >>> float(g)  # 3 + 0.5 (4 - 2)
        4.0

    Source: Cutkosky, Orabona, arXiv 1905.10018.
    """
    if not isinstance(momentum, Tracer) and not 0 < momentum <= 1:
        raise ValueError(f"momentum is {momentum}; it must be > 0 and <= 1")

    def init(params: Any) -> StormState:
        return StormState(
            count=jnp.zeros((), jnp.int32),
            estimate=jax.tree.map(jnp.zeros_like, params),
            previous_params=jax.tree.map(jnp.asarray, params),
        )

    def update(
        updates: Any,
        state: StormState,
        params: Any = None,
        *,
        previous_grads: Any,
        **extra_args: Any,
    ) -> tuple[Any, StormState]:
        del extra_args
        if params is None:
            raise ValueError(NO_PARAMS)
        estimate = jax.tree.map(
            lambda new, old, g: jnp.where(
                state.count == 0, new, new + (1 - momentum) * (g - old)
            ).astype(g.dtype),
            updates,
            previous_grads,
            state.estimate,
        )
        return estimate, StormState(state.count + 1, estimate, params)

    return Transformation._make((init, update))


def storm_lagrangian(
    momentum: Any,
    steps: StepSizes,
    *,
    proximal_weight: Any,
    penalty: Any,
    multiplier_bound: Any,
    start_multipliers: Any,
    project: Projection,
) -> Transformation:
    """Chain `storm` and `smoothed_lagrangian`.

    `update(grads, state, params, previous_grads=..., constraints=known(residual))`
    takes the gradients of one sample at `params` and at `state[0].previous_params`.

    Args:
        momentum: STORM's alpha (`storm_momentum`).
        steps: eta, tau and beta; of order T^(-1/3) for T steps.
        proximal_weight: mu; the talk calls it lambda here.
        penalty: rho; the talk has 1.
        multiplier_bound: M_y; infinity is the talk's, whose STORM form has no
            safeguard.
        start_multipliers: y_0.
        project: The projection onto X.

    Returns:
        The transformation; its state is a pair of `StormState` and `LagrangianState`.

    Raises:
        ValueError: If a number is out of its range.

    Source: Huang, Zhang, Alacaoglu, arXiv 2504.07607, and the authors' talk.
    """
    chained = optax.chain(
        storm(momentum),
        smoothed_lagrangian(
            steps,
            proximal_weight=proximal_weight,
            penalty=penalty,
            multiplier_bound=multiplier_bound,
            start_multipliers=start_multipliers,
            project=project,
        ),
    )
    return Transformation._make(chained)

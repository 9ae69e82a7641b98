"""Stochastic smoothed and linearised augmented Lagrangian, multipliers safeguarded.

Minimise E[f(x, xi)] over x in X subject to E[A(zeta) x - b] = 0, where only unbiased
estimates of grad f(x) and of A x - b can be had (oracle 1). With
K(x, y, z) = f(x) + <A x - b, y> + (rho/2) ||A x - b||^2 + (mu/2) ||x - z||^2 a step is

    y <- y + eta v,  v an estimate of A x - b
    y <- 0           if ||y|| >= M_y (the safeguard)
    x <- Proj_X(x - tau G),  G an estimate of grad_x K(x, y, z)
    z <- z + beta (x - z)

The variance of G is proportional to ||y||^2, which the safeguard keeps bounded. With
exact estimates and no bound this is the smoothed ALM, whose potential
K(x, y, z) - 2 d(y, z) + 2 Psi(z), d(y, z) = min over x in X of K, never rises; a reset
at a bound high enough does not raise it either. A projected step of a noisy gradient is
biased, so the analysis has in K's place its Moreau envelope,
phi(x, y, z) = min over u in X of K(u, y, z) + (lambda/2) ||u - x||^2.

mu has to exceed the Lipschitz constant l of grad f, or K is not convex in x. M_y has to
exceed the norm of the multipliers at the solution, or y is reset for ever.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from jaxdave.training.constrained.constraint import (
    ConstraintSamples,
    augmented_pull,
)
from jaxdave.training.constrained.projections import Projection
from jaxdave.training.constrained.transformation import NO_PARAMS, Transformation


class StepSizes(NamedTuple):
    """The three step sizes of a step; numbers, or scalars under jit.

    Attributes:
        dual: eta, of the multipliers.
        primal: tau, of the parameters.
        center: beta in (0, 1], of the proximal centre.
    """

    dual: Any
    primal: Any
    center: Any


class LagrangianState(NamedTuple):
    """State of `smoothed_lagrangian`.

    Attributes:
        multipliers: y, of the structure of the constraint's residual.
        center: z, of the structure of the parameters.
        resets: How often the multipliers were reset, int32 scalar.
    """

    multipliers: Any
    center: Any
    resets: jax.Array


def scale_steps(steps: StepSizes, horizon: Any, power: float) -> StepSizes:
    """Scale step sizes with the number of steps T that will be made.

    Args:
        steps: Step sizes at T = 1.
        horizon: T.
        power: All are divided by T to this power; 1/2 is the theory's for
            `smoothed_lagrangian`, 1/3 for it with `storm`.

    Returns:
        The step sizes.

    Example:
        >>> scale_steps(StepSizes(1.0, 2.0, 4.0), 16, 1 / 2)
        StepSizes(dual=0.25, primal=0.5, center=1.0)

    Source: Huang, Zhang, Alacaoglu, arXiv 2504.07607, and the authors' talk.
    """
    return StepSizes(*(step / horizon**power for step in steps))


def safeguard(multipliers: Any, bound: Any) -> tuple[Any, jax.Array]:
    """Reset multipliers whose norm has reached a bound.

    Args:
        multipliers: y, a pytree; its norm is over all of it.
        bound: M_y.

    Returns:
        y, or zeros if ||y|| >= M_y, and whether it was reset, bool scalar. Multipliers
        that are not numbers any more are reset too.
    """
    is_reset = ~(optax.tree.norm(multipliers) < bound)
    kept = jax.tree.map(lambda y: jnp.where(is_reset, 0, y), multipliers)
    return kept, is_reset


def smoothed_lagrangian(
    steps: StepSizes,
    *,
    proximal_weight: Any,
    penalty: Any,
    multiplier_bound: Any,
    start_multipliers: Any,
    project: Projection,
    center_follows: Literal["new", "old"] = "new",
) -> Transformation:
    """Build the dual-safeguarded stochastic smoothed, linearised ALM.

    `update(grads, state, params, constraints=samples)` takes an unbiased gradient of f
    at `params` and a `ConstraintSamples`. Updates are added to the parameters, as
    optax has it, and the sum lies in X, to the rounding of that sum: nothing may come
    after this transformation in a chain. Parameters must start in X.

    Args:
        steps: eta, tau and beta; of order T^(-1/2) for T steps (`scale_steps`).
        proximal_weight: mu, above the Lipschitz constant of grad f.
        penalty: rho >= 0.
        multiplier_bound: M_y > 0, above the norm of the solution's multipliers;
            infinity for no safeguard.
        start_multipliers: y_0, an array or a pytree as the constraint's residual.
        project: The projection onto X.
        center_follows: "new" moves z towards the x of after the step, "old" towards
            the one of before it. The talk writes its method without the safeguard, and
            that with STORM, in the first way, and the safeguarded one in the second.

    Returns:
        The transformation; its state is a `LagrangianState`.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> from jaxdave.training.constrained.constraint import known
        >>> from jaxdave.training.constrained.projections import box
        >>> method = smoothed_lagrangian(
        ...     StepSizes(dual=1.0, primal=0.2, center=0.5),
        ...     proximal_weight=2.0,
        ...     penalty=1.0,
        ...     multiplier_bound=10.0,
        ...     start_multipliers=jnp.zeros(()),
        ...     project=box(0.0, 1.0),
        ... )
        >>> total_is_one = known(lambda x: jnp.sum(x) - 1.0)
        >>> params = jnp.array([1.0, 1.0])
        >>> state = method.init(params)
        >>> for _ in range(200):  # minimise ||x||^2 / 2
        ...     updates, state = method.update(
        ...         params, state, params, constraints=total_is_one
        ...     )
        ...     params = optax.apply_updates(params, updates)
        >>> [round(x, 3) for x in params.tolist()]
        [0.5, 0.5]

    Source: Huang, Zhang, Alacaoglu, arXiv 2504.07607, and the authors' talk; where the
    talk leaves a choice (mu, M_y, the number of samples) the choice is as said above.
    The deterministic method is of J. Zhang, Z.-Q. Luo, "A Proximal Alternating
    Direction Method of Multiplier for Linearly Constrained Nonconvex Minimization"
    and its sequel on the global dual error bound.
    """
    _check_range("dual step", steps.dual, 0.0)
    _check_range("primal step", steps.primal, 0.0)
    _check_range("center step", steps.center, 0.0, 1.0)
    _check_range("proximal_weight", proximal_weight, 0.0)
    _check_range("penalty", penalty, 0.0, includes_lowest=True)
    _check_range("multiplier_bound", multiplier_bound, 0.0)
    if center_follows not in ("new", "old"):
        raise ValueError(
            f"center_follows is {center_follows!r}; give 'new' (the parameters after "
            "the step) or 'old' (before it)"
        )

    def init(params: Any) -> LagrangianState:
        return LagrangianState(
            multipliers=jax.tree.map(jnp.asarray, start_multipliers),
            center=jax.tree.map(jnp.asarray, params),
            resets=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: Any,
        state: LagrangianState,
        params: Any = None,
        *,
        constraints: ConstraintSamples,
        **extra_args: Any,
    ) -> tuple[Any, LagrangianState]:
        del extra_args
        if params is None:
            raise ValueError(NO_PARAMS)
        moved = jax.tree.map(
            lambda y, v: (y + steps.dual * v).astype(y.dtype),
            state.multipliers,
            constraints.dual(params),
        )
        multipliers, is_reset = safeguard(moved, multiplier_bound)
        pull = augmented_pull(constraints, params, multipliers, penalty)
        stepped = jax.tree.map(
            lambda x, g, a, z: (
                x - steps.primal * (g + a + proximal_weight * (x - z))
            ).astype(x.dtype),
            params,
            updates,
            pull,
            state.center,
        )
        new_params = project(stepped)
        center = jax.tree.map(
            lambda z, x: (z + steps.center * (x - z)).astype(z.dtype),
            state.center,
            new_params if center_follows == "new" else params,
        )
        resets = state.resets + is_reset.astype(jnp.int32)
        new_state = LagrangianState(multipliers, center, resets)
        return optax.tree.sub(new_params, params), new_state

    return Transformation._make((init, update))


def _check_range(
    name: str,
    value: Any,
    lowest: float,
    highest: float = float("inf"),
    *,
    includes_lowest: bool = False,
) -> None:
    """Check a number that is known when a method is built; scalars under jit pass."""
    if isinstance(value, Tracer):
        return
    is_above = value >= lowest if includes_lowest else value > lowest
    if not (is_above and value <= highest):
        sign = ">=" if includes_lowest else ">"
        limit = "" if highest == float("inf") else f" and <= {highest:g}"
        raise ValueError(f"{name} is {value}; it must be {sign} {lowest:g}{limit}")

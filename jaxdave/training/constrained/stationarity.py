"""How far a point is from stationary: the gradient of the Moreau envelope.

    Psi(z) = min over x in X, A x = b of f(x) + (mu/2) ||x - z||^2
    grad Psi(z) = mu (z - xbar(z)),  xbar(z) the minimiser

It is zero exactly at the stationary points of f on the feasible set, and it can be
computed where the set {x in X, A x = b} can be projected on and grad f is known.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxdave.training.constrained.projections import Projection


def proximal_point(
    gradient: Callable[[Any], Any],
    project_feasible: Projection,
    center: Any,
    proximal_weight: Any,
    num_steps: int = 60,
) -> Any:
    """Find xbar(z), the minimiser of f(x) + (mu/2) ||x - z||^2 on the feasible set.

    xbar is the fixed point of x <- Proj(z - grad f(x) / mu), which is a contraction by
    l/mu, with l the Lipschitz constant of grad f: the error falls by that factor a
    step.

    Args:
        gradient: grad f.
        project_feasible: The projection onto {x in X, A x = b}.
        center: z.
        proximal_weight: mu > l.
        num_steps: Number of steps; the default leaves 1e-18 of the error if mu = 2 l.

    Returns:
        xbar(z), of the structure of `center`.
    """

    def step(_: jax.Array, x: Any) -> Any:
        moved = jax.tree.map(
            lambda z, g: (z - g / proximal_weight).astype(z.dtype), center, gradient(x)
        )
        return project_feasible(moved)

    return jax.lax.fori_loop(0, num_steps, step, project_feasible(center))


def envelope_gradient(
    gradient: Callable[[Any], Any],
    project_feasible: Projection,
    center: Any,
    proximal_weight: Any,
    num_steps: int = 60,
) -> Any:
    """Compute grad Psi(z) = mu (z - xbar(z)).

    Args:
        gradient: grad f.
        project_feasible: The projection onto {x in X, A x = b}.
        center: z.
        proximal_weight: mu > l.
        num_steps: Steps of `proximal_point`.

    Returns:
        The gradient, of the structure of `center`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxdave.training.constrained.projections import box
        >>> nearest = box(1.0, 2.0)
        >>> at = lambda z: envelope_gradient(lambda x: x, nearest, jnp.float32(z), 2.0)
        >>> float(at(1.0)), float(at(2.0))  # f = x^2 / 2 on [1, 2]
        (0.0, 1.3333332538604736)

    Source: Huang, Zhang, Alacaoglu, arXiv 2504.07607, and the authors' talk.
    """
    nearest = proximal_point(
        gradient, project_feasible, center, proximal_weight, num_steps
    )
    difference = optax.tree.sub(center, nearest)
    return optax.tree.scale(proximal_weight, difference)


def stationarity(
    gradient: Callable[[Any], Any],
    project_feasible: Projection,
    center: Any,
    proximal_weight: Any,
    num_steps: int = 60,
) -> jax.Array:
    """Compute ||grad Psi(z)||.

    Args:
        gradient: grad f.
        project_feasible: The projection onto {x in X, A x = b}.
        center: z.
        proximal_weight: mu > l.
        num_steps: Steps of `proximal_point`.

    Returns:
        The norm over the whole pytree, a scalar.
    """
    return optax.tree.norm(
        envelope_gradient(
            gradient, project_feasible, center, proximal_weight, num_steps
        )
    )

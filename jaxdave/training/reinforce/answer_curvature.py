"""How curved a prompt's expected reward is at a network's parameters.

`curvature` has the log-linear policy in closed form. Here a policy is whatever gives
log-probabilities of answers, and second derivatives are products of the Hessian with
directions, so that no Hessian is laid out.

Two objectives. Where one answer is right and its likelihood is known, J is that
likelihood, and all is exact (`answer_likelihood`). Otherwise J is estimated from
answers drawn at the parameters: the importance-weighted rewards, whose derivatives
there are unbiased estimates (`sampled_reward`).

Axes: B answers, P prompts, G answers of a group, D parameters, M products.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

Objective = Callable[[Any], jax.Array]
"""Parameters -> scalar."""


def answer_likelihood(log_probs_of: Callable[[Any], jax.Array]) -> Objective:
    """Make J of a question with one right answer: the probability of that answer.

    Args:
        log_probs_of: Parameters -> the answer's log-probabilities, of its tokens or of
            all of it: what is added up, float of any shape.

    Returns:
        The objective.

    Source: the talk's setting (`curvature`), with the chain's likelihood.
    """
    return lambda params: jnp.exp(jnp.sum(log_probs_of(params)))


def sampled_reward(
    log_probs_of: Callable[[Any], jax.Array], params: Any, weights_B: jax.Array
) -> Objective:
    """Make the importance-weighted mean of rewards, J up to a constant.

    Its gradient at `params` is the policy gradient, and its Hessian the mean of
    w (Hessian log pi + gradient gradient'). With `leave_one_out` weights of answers
    that were drawn there, both are unbiased estimates of J's.

    Args:
        log_probs_of: Parameters -> log-probability of each answer, float [B].
        params: The parameters that the answers were drawn at.
        weights_B: A weight of each answer, float [B].

    Returns:
        The objective.
    """
    old_B = jax.lax.stop_gradient(log_probs_of(params))

    def objective(params: Any) -> jax.Array:
        return jnp.mean(weights_B * jnp.exp(log_probs_of(params) - old_B))

    return objective


def leave_one_out(rewards_PG: jax.Array) -> jax.Array:
    """Compare each reward with the mean of the others of its group.

    Unlike the mean of the whole group, that of the others is independent of the answer,
    so that estimates of derivatives have no bias.

    Args:
        rewards_PG: float [P, G], G at least 2.

    Returns:
        float [P, G].

    Example:
        >>> leave_one_out(jnp.array([[1.0, 0.0, 0.0]])).tolist()
        [[1.0, -0.5, -0.5]]
    """
    size = rewards_PG.shape[1]
    total_P1 = jnp.sum(rewards_PG, axis=1, keepdims=True)
    return rewards_PG - (total_P1 - rewards_PG) / (size - 1)


def hessian_product(objective: Objective, params: Any, direction: Any) -> Any:
    """Multiply the Hessian with a direction: the gradient's derivative along it.

    Args:
        objective: Twice differentiable.
        params: Where.
        direction: Of the structure of `params`.

    Returns:
        Of the same structure.
    """
    return jax.jvp(jax.grad(objective), (params,), (direction,))[1]


def curvature_along(objective: Objective, params: Any, direction: Any) -> jax.Array:
    """Compute the second derivative along a direction, v'Hv / v'v.

    Args:
        objective: Twice differentiable.
        params: Where.
        direction: Of the structure of `params`.

    Returns:
        Scalar; 0 along a direction of length 0.
    """
    square = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(direction))

    def slope(params: Any) -> jax.Array:
        return jax.jvp(objective, (params,), (direction,))[1]

    # Forward twice: a third of the work of a product with the Hessian.
    second = jax.jvp(slope, (params,), (direction,))[1]
    return second / jnp.where(square > 0, square, 1.0).astype(second.dtype)


class LargestCurvature(NamedTuple):
    """The eigenvalue of a Hessian that is largest in magnitude.

    Attributes:
        value: The eigenvalue, with its sign: its magnitude is the spectral norm.
        direction: Its eigenvector, of length 1 and of the structure of the parameters;
            0 where the Hessian times the start is.
        residual: ||H v - value v||, by which an eigenvalue is off at most.
    """

    value: jax.Array
    direction: Any
    residual: jax.Array


def largest_curvature(
    objective: Objective, params: Any, start: Any, num_products: int
) -> LargestCurvature:
    """Find the largest eigenvalue by Lanczos, with full orthogonalisation.

    Of the span of start, H start, H H start ... the vector whose quotient v'Hv is
    largest in magnitude is taken. The value never exceeds the spectral norm, and a pair
    of eigenvalues of opposite signs, which power iteration would mix, is told apart.

    Args:
        objective: Twice differentiable.
        params: Where.
        start: The first direction, of the structure of `params`. The gradient is a good
            one: where J is a likelihood it spans the rank-one part of the Hessian.
        num_products: Products with the Hessian, M.

    Returns:
        The eigenvalue and what belongs to it.
    """
    start_D, unravel = ravel_pytree(start)

    def product(way_D: jax.Array) -> jax.Array:
        return ravel_pytree(hessian_product(objective, params, unravel(way_D)))[0]

    def extend(bases, index):
        basis_MD, products_MD, way_D = bases
        # Twice is enough: once leaves the rounding of what it takes away.
        for _ in range(2):
            way_D = way_D - (basis_MD @ way_D) @ basis_MD
        way_D = _unit(way_D)
        product_D = product(way_D)
        basis_MD = basis_MD.at[index].set(way_D)
        products_MD = products_MD.at[index].set(product_D)
        return (basis_MD, products_MD, _unit(product_D)), None

    empty_MD = jnp.zeros((num_products, start_D.shape[0]), start_D.dtype)
    (basis_MD, products_MD, _), _ = jax.lax.scan(
        extend, (empty_MD, empty_MD, _unit(start_D)), jnp.arange(num_products)
    )
    small_MM = basis_MD @ products_MD.T
    values_M, vectors_MM = jnp.linalg.eigh((small_MM + small_MM.T) / 2)
    largest = jnp.argmax(jnp.abs(values_M))
    value, weights_M = values_M[largest], vectors_MM[:, largest]
    way_D = weights_M @ basis_MD
    residual = jnp.linalg.norm(weights_M @ products_MD - value * way_D)
    return LargestCurvature(value, unravel(way_D), residual)


def sampled_variance(rewards_PG: jax.Array) -> jax.Array:
    """Estimate the variance of a reward, p (1 - p) for 0 and 1, without bias.

    Args:
        rewards_PG: float [P, G], G at least 2.

    Returns:
        float [P].
    """
    return jnp.var(rewards_PG, axis=1, ddof=1)


def absolute_cosines(gradients_PD: jax.Array) -> jax.Array:
    """Compute how much the gradients of different prompts have in common.

    Args:
        gradients_PD: float [P, D].

    Returns:
        |cosine| of each pair of different prompts, float [P (P - 1) / 2]; 0 where a
        gradient is 0.
    """
    unit_PD = jax.vmap(_unit)(gradients_PD)
    rows, columns = jnp.triu_indices(len(unit_PD), k=1)
    return jnp.abs(unit_PD @ unit_PD.T)[rows, columns]


def _unit(way_D: jax.Array) -> jax.Array:
    """A vector of length 1, or 0."""
    # Scaled first: squares of gradients near p = 0 would be 0 in float32.
    largest = jnp.max(jnp.abs(way_D))
    scaled_D = way_D / jnp.where(largest > 0, largest, 1.0)
    norm = jnp.linalg.norm(scaled_D)
    return scaled_D / jnp.where(norm > 0, norm, 1.0)

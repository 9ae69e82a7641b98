"""Projections onto sets that are easy to project on, over pytrees.

A projection maps parameters to the nearest parameters in a convex set. Polyhedra have a
file of their own (`polyhedron`).

Axes: N coordinates, E the 2 N points where a coordinate reaches a bound.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Projection = Callable[[Any], Any]
"""From parameters, a pytree, to the nearest ones in a set, of the same structure."""


def whole_space(params: Any) -> Any:
    """Return parameters as they are: the projection where there is no set."""
    return params


def box(lower: Any, upper: Any) -> Projection:
    """Build the projection onto lower <= x <= upper.

    Args:
        lower: A number for all coordinates, or a pytree of numbers and arrays, of the
            structure of the parameters or a prefix of it; -inf for none.
        upper: The same; inf for none.

    Returns:
        The projection.

    Raises:
        ValueError: If a lower bound is above its upper bound.

    Example:
        >>> params = {"w": jnp.array([-3.0, 0.5]), "b": jnp.array(9.0)}
        >>> box(-1.0, {"w": 1.0, "b": 2.0})(params)["w"].tolist()
        [-1.0, 0.5]
    """
    if jax.tree.structure(lower) == jax.tree.structure(upper):
        jax.tree.map(_check_bounds, lower, upper)

    def project(params: Any) -> Any:
        return jax.tree.map(
            lambda x, low, high: jnp.clip(x, low, high).astype(x.dtype),
            params,
            _broadcast_prefix(lower, params),
            _broadcast_prefix(upper, params),
        )

    return project


def product(projections: Any) -> Projection:
    """Build the projection onto a product of sets.

    Args:
        projections: A pytree whose leaves are projections, of the structure of the
            parameters or a prefix of it: each gets the parameters below its place.

    Returns:
        The projection.

    Example:
        >>> project = product({"w": box(0.0, 1.0), "b": whole_space})
        >>> params = {"w": {"k": jnp.array(2.0)}, "b": jnp.array(2.0)}
        >>> jax.tree.map(float, project(params))
        {'b': 2.0, 'w': {'k': 1.0}}
    """

    def project(params: Any) -> Any:
        return jax.tree.map(lambda part, below: part(below), projections, params)

    return project


def box_section(lower_N: Any, upper_N: Any, weight_N: Any, total: Any) -> Projection:
    """Build the projection onto {lower <= x <= upper, weight . x = total}.

    The nearest point is clip(x - t weight) for the t at which the total is right, and
    that total falls with t, linearly between the 2 N points where a coordinate reaches
    a bound: these are sorted and searched, so the answer is exact to rounding.

    Args:
        lower_N: Finite lower bounds [N], of parameters that are one array.
        upper_N: Finite upper bounds [N].
        weight_N: Weights, none of them 0, [N].
        total: The weighted total.

    Returns:
        The projection.

    Raises:
        ValueError: If the set is empty, a bound is not finite or a weight is 0.

    Example:
        >>> project = box_section([0, 0], [1, 1], [1, 1], 1)
        >>> project(jnp.array([3.0, 2.5])).tolist()
        [0.75, 0.25]
    """
    bounds = [np.asarray(value, float) for value in (lower_N, upper_N, weight_N)]
    low, high, weight = np.broadcast_arrays(*bounds)
    _check_bounds(low, high)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and weight.all()):
        raise ValueError(
            "a section of a box needs finite bounds and weights other than 0; leave "
            "coordinates of weight 0 to a box of their own"
        )
    ends = np.sort(np.stack([weight * low, weight * high]), axis=0).sum(axis=1)
    slack = 1e-6 * (1 + np.abs(ends).max())
    if not ends[0] - slack <= total <= ends[1] + slack:
        raise ValueError(
            f"the total is {total}, but in the box it is between {ends[0]:g} and "
            f"{ends[1]:g}; no point has it"
        )
    return lambda params: project_box_section(params, low, high, weight, total)


def project_box_section(
    x_N: jax.Array, lower_N: Any, upper_N: Any, weight_N: Any, total: Any
) -> jax.Array:
    """Project onto {lower <= x <= upper, weight . x = total}, as `box_section` says.

    Args:
        x_N: The point, float [N].
        lower_N: Lower bounds [N].
        upper_N: Upper bounds [N].
        weight_N: Weights [N].
        total: The weighted total, which the box must allow.

    Returns:
        The nearest point, [N]. Works under jit and vmap.
    """
    low, high, weight = (
        jnp.asarray(v, x_N.dtype) for v in (lower_N, upper_N, weight_N)
    )

    def point_at(t: jax.Array) -> jax.Array:
        return jnp.clip(x_N - t * weight, low, high)

    def total_at(t: jax.Array) -> jax.Array:
        return jnp.sum(weight * point_at(t))

    t_E = jnp.sort(jnp.concatenate([(x_N - low) / weight, (x_N - high) / weight]))

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> Any:
        first, last = ends
        middle = (first + last) // 2
        is_left = total_at(t_E[middle]) >= total
        return jnp.where(is_left, middle, first), jnp.where(is_left, last, middle)

    num_points = t_E.shape[0]
    first, last = jax.lax.fori_loop(
        0, num_points.bit_length(), halve, (jnp.int32(0), jnp.int32(num_points - 1))
    )
    before, after = total_at(t_E[first]), total_at(t_E[last])
    is_flat = before <= after
    share = jnp.where(
        is_flat, 0, (before - total) / jnp.where(is_flat, 1, before - after)
    )
    share = jnp.clip(share, 0, 1)
    return point_at(t_E[first] + share * (t_E[last] - t_E[first]))


def _check_bounds(lower: Any, upper: Any) -> None:
    """Raise unless every lower bound is at most its upper bound, if they are known."""
    if isinstance(lower, Tracer) or isinstance(upper, Tracer):
        return
    low, high = np.asarray(lower), np.asarray(upper)
    if not np.all(low <= high):
        raise ValueError(
            f"a box has lower bounds {low} and upper bounds {high}; it needs "
            "lower <= upper everywhere"
        )


def _broadcast_prefix(prefix: Any, params: Any) -> Any:
    """Repeat the leaves of a prefix of a pytree's structure below their places."""
    return jax.tree.map(
        lambda value, below: jax.tree.map(lambda _: value, below), prefix, params
    )

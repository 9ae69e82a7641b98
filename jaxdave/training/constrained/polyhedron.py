"""The projection onto a polyhedron {H x <= h}, by the dual active-set method.

A point outside is moved onto the constraint that it violates most, along the
constraints that hold with equality by then; one whose multiplier would turn negative on
the way is let go. The multipliers' value rises with every move, so no set of
constraints comes twice, and the answer, from one last solution on its set, is exact to
rounding. What is inside is returned as it is.

Axes: M constraints, N coordinates.

Source: D. Goldfarb, A. Idnani, "A numerically stable dual method for solving strictly
convex quadratic programs", Mathematical Programming 27 (1983), with the identity for
its matrix.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxdave.training.constrained.projections import Projection


class _Search(NamedTuple):
    """State of the search.

    Attributes:
        multipliers_M: Multipliers, 0 outside the active set and the candidate.
        is_active_M: The active set: rows of H that are linearly independent.
        candidate: The violated constraint that is moved onto, or -1 for none.
        is_stuck: True if there is no point that satisfies all constraints.
        steps: Number of moves so far.
    """

    multipliers_M: jax.Array
    is_active_M: jax.Array
    candidate: jax.Array
    is_stuck: jax.Array
    steps: jax.Array


def polyhedron(matrix_MN: Any, bound_M: Any) -> Projection:
    """Build the projection onto {H x <= h}.

    Equalities are two rows of opposite sign.

    Args:
        matrix_MN: H [M, N], numbers; N is the number of all parameters, in the order of
            `jax.flatten_util.ravel_pytree`.
        bound_M: h [M].

    Returns:
        The projection, for arrays and pytrees. It has no reverse-mode derivative.

    Raises:
        ValueError: If shapes do not match, a number is not finite, a row is 0 or no
            point satisfies all constraints.

    Example:
        >>> project = polyhedron([[1.0, 1.0], [-1.0, 0.0]], [1.0, 0.0])
        >>> [round(x, 5) for x in project(jnp.array([2.0, 2.0])).tolist()]
        [0.5, 0.5]
    """
    matrix, bound = np.asarray(matrix_MN, float), np.asarray(bound_M, float)
    if matrix.ndim != 2 or bound.shape != matrix.shape[:1]:
        raise ValueError(
            f"H has the shape {matrix.shape} and h {bound.shape}; give [M, N] and [M]"
        )
    if not (np.isfinite(matrix).all() and np.isfinite(bound).all()):
        raise ValueError("H or h has a number that is not finite; leave such rows out")
    norms = np.linalg.norm(matrix, axis=1)
    if not norms.all():
        raise ValueError(f"row {int(norms.argmin())} of H is 0; leave it out")
    # Rows of length 1, so that the most violated is the farthest away.
    matrix, bound = matrix / norms[:, None], bound / norms
    with jax.ensure_compile_time_eval():
        start = jnp.zeros(matrix.shape[1], jnp.float32)
        nearest = np.asarray(project_polyhedron(start, matrix, bound))
    excess = (matrix @ nearest - bound).max(initial=0.0)
    if not excess <= 1e-4 * (1 + np.abs(bound).max(initial=0.0)):
        raise ValueError(
            f"no point satisfies H x <= h: the best found is {excess:g} outside; "
            "loosen h or leave rows out"
        )

    def project(params: Any) -> Any:
        x_N, unravel = ravel_pytree(params)
        is_narrow = jnp.finfo(x_N.dtype).bits < 32
        wide_N = x_N.astype(jnp.float32) if is_narrow else x_N
        return unravel(project_polyhedron(wide_N, matrix, bound).astype(x_N.dtype))

    return project


@jax.jit
@jax.default_matmul_precision("highest")
def project_polyhedron(x_N: jax.Array, matrix_MN: Any, bound_M: Any) -> jax.Array:
    """Project onto {H x <= h}, as `polyhedron` does, but without its checks.

    Args:
        x_N: The point, float32 or float64 [N].
        matrix_MN: H, rows of length 1, [M, N].
        bound_M: h [M].

    Returns:
        The nearest point [N], float of the dtype of `x_N`; if the set is empty, a point
        outside. Works under jit and vmap.
    """
    matrix, bound = jnp.asarray(matrix_MN, x_N.dtype), jnp.asarray(bound_M, x_N.dtype)
    count = matrix.shape[0]
    if count == 0:
        return x_N
    gram_MM = matrix @ matrix.T
    eps = jnp.finfo(x_N.dtype).eps
    size = 1 + jnp.max(jnp.abs(x_N)) + jnp.max(jnp.abs(bound))
    tolerance = 16 * eps * size

    def solve(is_active_M: jax.Array, right_M: jax.Array) -> jax.Array:
        """Solve with the active rows' products; 0 elsewhere."""
        both_MM = is_active_M[:, None] & is_active_M[None]
        system_MM = jnp.where(both_MM, gram_MM, jnp.eye(count, dtype=x_N.dtype))
        return jnp.linalg.solve(system_MM, jnp.where(is_active_M, right_M, 0))

    def point_of(multipliers_M: jax.Array) -> jax.Array:
        return x_N - matrix.T @ multipliers_M

    def excess_of(search: _Search) -> jax.Array:
        excess_M = matrix @ point_of(search.multipliers_M) - bound
        return jnp.where(search.is_active_M, -jnp.inf, excess_M)

    def goes_on(search: _Search) -> jax.Array:
        is_outside = jnp.max(excess_of(search)) > tolerance
        is_moving = (search.candidate >= 0) | is_outside
        return is_moving & ~search.is_stuck & (search.steps < 20 * (count + 1))

    def move(search: _Search) -> _Search:
        multipliers_M, is_active_M = search.multipliers_M, search.is_active_M
        excess_M = excess_of(search)
        worst = jnp.argmax(excess_M).astype(jnp.int32)
        row = jnp.where(search.candidate >= 0, search.candidate, worst)
        # How the active multipliers fall while the candidate's rises by 1, and how
        # fast the candidate's excess falls then.
        rate_M = solve(is_active_M, gram_MM[row])
        speed = gram_MM[row, row] - rate_M @ gram_MM[row]
        is_dependent = speed <= 64 * eps * count
        full = jnp.where(is_dependent, jnp.inf, excess_M[row] / speed)
        falls_M = is_active_M & (rate_M > 16 * eps)
        until_M = jnp.where(falls_M, multipliers_M / rate_M, jnp.inf)
        first_out = jnp.argmin(until_M)
        length = jnp.maximum(jnp.minimum(full, until_M[first_out]), 0)
        is_stuck = jnp.isinf(length)
        length = jnp.where(is_stuck, 0, length)
        is_full = full <= until_M[first_out]
        moved_M = multipliers_M - length * rate_M
        moved_M = moved_M.at[row].add(length)
        one_out_M = is_active_M.at[first_out].set(False)
        now_active_M = jnp.where(is_full, is_active_M.at[row].set(True), one_out_M)
        now_active_M = jnp.where(is_stuck, is_active_M, now_active_M)
        is_candidate_M = jnp.arange(count, dtype=jnp.int32) == row
        return _Search(
            jnp.where(now_active_M | is_candidate_M, jnp.maximum(moved_M, 0), 0),
            now_active_M,
            jnp.where(is_full, -1, row),
            is_stuck,
            search.steps + 1,
        )

    start = _Search(
        jnp.zeros(count, x_N.dtype),
        jnp.zeros(count, bool),
        jnp.int32(-1),
        jnp.array(False),
        jnp.int32(0),
    )
    found = jax.lax.while_loop(goes_on, move, start)
    # What rounding has gathered on the way is lost in one solution on the last set.
    return point_of(solve(found.is_active_M, matrix @ x_N - bound))

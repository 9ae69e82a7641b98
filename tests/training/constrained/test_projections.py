"""Projections, against all active sets of small polyhedra, and by what defines them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.training.constrained.polyhedron import polyhedron, project_polyhedron
from jaxdave.training.constrained.projections import (
    box,
    box_section,
    product,
    project_box_section,
    whole_space,
)


def nearest_by_all_active_sets(x, matrix, bound):
    """The nearest point of {H x <= h}: the best of all sets of active rows."""
    best = np.full(x.shape, np.inf)
    for count in range(min(matrix.shape) + 1):
        for rows in map(list, itertools.combinations(range(len(matrix)), count)):
            active = matrix[rows]
            multipliers = np.linalg.lstsq(
                active @ active.T, active @ x - bound[rows], rcond=None
            )[0]
            point = x - active.T @ multipliers
            is_inside = (matrix @ point <= bound + 1e-9).all()
            if is_inside and norm(point - x) < norm(best - x):
                best = point
    return best


def norm(x):
    return float(np.linalg.norm(x))


def random_polyhedra(rng, how_many, rows=6, coordinates=3):
    """Polyhedra that hold a point, some of them with rows twice, or flat."""
    for number in range(how_many):
        matrix = rng.normal(size=(rows, coordinates))
        inside = rng.normal(size=coordinates)
        slack = rng.exponential(size=rows) * (rng.random(rows) < 0.7)
        if number % 4 == 1:
            matrix[1], slack[1] = matrix[0], slack[0] + 0.3
        if number % 4 == 2:
            matrix[1], slack[:2] = -matrix[0], 0
        if number % 4 == 3:
            matrix = np.round(matrix)
            matrix[(matrix == 0).all(axis=1)] = 1
        matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        yield matrix, matrix @ inside + slack


def polyhedra_and_points(seed, how_many):
    rng = np.random.default_rng(seed)
    matrices, bounds = map(np.stack, zip(*random_polyhedra(rng, how_many), strict=True))
    return matrices, bounds, 4 * rng.normal(size=(how_many, 3))


def test_a_polyhedron_agrees_with_all_its_active_sets():
    matrices, bounds, points = polyhedra_and_points(0, 200)
    expected = map(nearest_by_all_active_sets, points, matrices, bounds)
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(project_polyhedron))(
            jnp.asarray(points), matrices, bounds
        )
        np.testing.assert_allclose(found, np.stack(list(expected)), atol=1e-9)


def test_a_polyhedron_in_float32_is_right_to_rounding():
    matrices, bounds, points = polyhedra_and_points(1, 100)
    expected = map(nearest_by_all_active_sets, points, matrices, bounds)
    found = jax.jit(jax.vmap(project_polyhedron))(
        jnp.asarray(points, jnp.float32), matrices, bounds
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.stack(list(expected)), atol=1e-3)


SECTION = box_section([-1] * 6, [1, 1, 2, 2, 1, 1], [1, -2, 1, 0.5, 1, 3], 1.5)
RNG = np.random.default_rng(2)
MATRIX = RNG.normal(size=(9, 6))
SETS = {
    "box": box(-1.0, np.array([0.5, 1, 1, 2, 2, 2], np.float32)),
    "section": SECTION,
    "polyhedron": polyhedron(MATRIX, np.ones(9)),
    "product": lambda x: jnp.concatenate(
        product((box(0.0, 1.0), polyhedron([[1.0, 1, 1]], [0.0])))((x[:3], x[3:]))
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_projections_are_idempotent_nonexpansive_and_nearest(name):
    project = jax.jit(jax.vmap(SETS[name]))
    points = 3 * RNG.normal(size=(200, 6)).astype(np.float32)
    nearest = np.asarray(project(points))
    np.testing.assert_allclose(project(nearest), nearest, atol=1e-5)
    moved = np.linalg.norm(nearest - nearest[::-1], axis=1)
    apart = np.linalg.norm(points - points[::-1], axis=1)
    assert (moved <= apart + 1e-5).all() and (moved < 0.9 * apart).any()
    # (x - p) . (q - p) <= 0 for every q of the set says that p is nearest to x.
    angles = np.einsum("kn,kjn->kj", points - nearest, nearest - nearest[:, None])
    assert angles.max() <= 1e-4


def test_what_is_inside_stays_bit_for_bit():
    inside = jnp.asarray(0.01 * RNG.normal(size=6), jnp.float32)
    for name in ("box", "polyhedron"):
        assert (jax.jit(SETS[name])(inside) == inside).all()


def test_a_section_agrees_with_the_polyhedron_of_its_rows():
    rng = np.random.default_rng(3)
    weight = np.array([1.0, -2, 0.5, 1])
    weight_unit = weight / norm(weight)
    matrix = np.concatenate([np.eye(4), -np.eye(4), [weight_unit, -weight_unit]])
    total = 0.7
    at_total = total / norm(weight)
    bound = np.concatenate([np.ones(4), np.ones(4), [at_total, -at_total]])
    with jax.enable_x64(True):
        points = jnp.asarray(3 * rng.normal(size=(100, 4)))
        exact = jax.jit(jax.vmap(lambda x: project_polyhedron(x, matrix, bound)))(
            points
        )
        section = jax.vmap(
            lambda x: project_box_section(x, -np.ones(4), np.ones(4), weight, total)
        )(points)
        np.testing.assert_allclose(section, exact, atol=1e-9)
        np.testing.assert_allclose(section @ weight, total, atol=1e-9)


def test_a_section_at_the_corner_of_its_box():
    for total, corner in ((2.0, [1.0, 1.0]), (-2.0, [-1.0, -1.0])):
        project = box_section([-1, -1], [1, 1], [1, 1], total)
        found = project(jnp.array([0.3, -5.0]))
        np.testing.assert_allclose(found, corner, atol=1e-6)


def test_pytrees_keep_their_structure_and_dtypes():
    params = {"w": {"k": jnp.full((2, 2), 3.0)}, "b": jnp.array([-3, 3], jnp.bfloat16)}
    found = box({"w": 0.0, "b": -1.0}, 2.0)(params)
    assert found["w"]["k"].tolist() == [[2.0, 2.0]] * 2
    assert found["b"].dtype == jnp.bfloat16 and found["b"].tolist() == [-1.0, 2.0]
    same = product({"w": whole_space, "b": box(0.0, 1.0)})(params)
    assert same["w"]["k"].tolist() == [[3.0, 3.0]] * 2
    halves = {"a": jnp.array(2.0), "b": jnp.array(2.0)}
    half_space = polyhedron([[1.0, 1.0]], [2.0])
    assert half_space(halves) == {"a": 1.0, "b": 1.0}
    found = half_space(jnp.array([2.0, 2.0], jnp.bfloat16))
    assert found.dtype == jnp.bfloat16 and found.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("matrix", "bound", "words"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], [0.0, -1.0], "no point"),
        ([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], [-1.0, 0.0, 0.0], "no point"),
        ([[0.0, 0.0]], [1.0], "row 0"),
        ([[np.nan, 0.0]], [1.0], "not finite"),
        ([[1.0, 0.0]], [1.0, 2.0], "shape"),
    ],
)
def test_polyhedra_that_cannot_be_are_refused(matrix, bound, words):
    with pytest.raises(ValueError, match=words):
        polyhedron(matrix, bound)


def test_boxes_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="lower <= upper"):
        box(1.0, 0.0)
    with pytest.raises(ValueError, match="no point"):
        box_section([0, 0], [1, 1], [1, 1], 3)
    with pytest.raises(ValueError, match="finite"):
        box_section([0, 0], [1, np.inf], [1, 1], 1)
    with pytest.raises(ValueError, match="weights other than 0"):
        box_section([0, 0], [1, 1], [1, 0], 1)

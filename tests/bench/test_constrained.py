"""What bench.constrained says of its problems, and how it fits slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import consensus, constrained
from bench.harness import constrained_problems as problems

SHAPE = (problems.BUDGETS, problems.COORDINATES)


@pytest.mark.parametrize("make", [problems.make_quadratic, problems.make_regression])
def test_problems_are_1_smooth_not_convex_and_sampled_without_bias(make):
    with jax.enable_x64(True):
        problem = make()
        points = np.random.default_rng(0).uniform(-1, 1, (30, *SHAPE))
        hessians = jax.jit(jax.vmap(jax.jacfwd(problem.gradient)))(points)
        size = SHAPE[0] * SHAPE[1]
        values = np.linalg.eigvalsh(np.asarray(hessians).reshape(-1, size, size))
        assert values.max() <= 1 + 1e-9 and values.min() < -0.02
        assert -values.min() <= 1
        keys = jax.random.split(jax.random.key(0), 20_000)
        point = jnp.asarray(points[0])
        drawn = jax.jit(jax.vmap(lambda key: problem.sample(point, key)))(keys)
        error = np.asarray(drawn.std(axis=0)) / len(keys) ** 0.5
        off = np.asarray(drawn.mean(axis=0) - problem.gradient(point))
        assert (abs(off) < 5 * error).all() and error.min() > 0


def test_the_feasible_set_holds_its_projections_and_the_sampled_one_is_unbiased():
    with jax.enable_x64(True):
        point = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE))
        nearest = jax.jit(problems.project_feasible)(point)
        assert abs(problems.exact_residual(nearest)).max() < 1e-9
        assert abs(nearest).max() <= 1
        keys = jax.random.split(jax.random.key(0), 20_000)
        drawn = jax.vmap(lambda key: problems.sampled_residual(key)(point))(keys)
        off = np.asarray(drawn.mean(axis=0) - problems.exact_residual(point))
        assert abs(off).max() < 5 * float(drawn.std()) / len(keys) ** 0.5


def test_a_power_law_has_its_slope_and_noise_an_interval():
    horizons = [2**k for k in range(8, 13)]
    power = np.asarray(horizons, float)[:, None] ** -0.25
    exact = constrained.fit_slope(horizons, np.repeat(3 * power, 4, axis=1))
    np.testing.assert_allclose(exact, [-0.25] * 3, atol=1e-9)
    rng = np.random.default_rng(0)
    noisy = [
        constrained.fit_slope(horizons, power * rng.lognormal(0, 0.3, (5, 32)))
        for _ in range(40)
    ]
    # 95 % of a few seeds' intervals is somewhat less.
    assert sum(slope.low < -0.25 < slope.high for slope in noisy) >= 32
    assert all(slope.high - slope.low > 0.02 for slope in noisy)


def test_runs_record_the_times_that_were_drawn():
    def runs(horizon, offset):
        """A run of 64 parts that keeps z after one step of each."""
        return constrained.run_seeds(
            problems.make_quadratic(),
            constrained.METHODS[-1],
            jnp.asarray(horizon, float),
            jnp.asarray(1.0),
            jnp.full((2, 64), offset, jnp.int32),
            jax.random.split(jax.random.key(0), 2),
        )

    with jax.enable_x64(True):
        last = runs(256, 4)
        np.testing.assert_array_equal(last.centers[:, -1], last.end)
        first = runs(256, 1)
        np.testing.assert_array_equal(first.end, last.end)
        assert (first.centers[:, 1:] != last.centers[:, :-1]).any()
        # The plain method's z is x: one step moves it by at most tau ||G||.
        steps = np.abs(first.centers[:, 1:] - last.centers[:, :-1])
        assert 0 < steps.mean() < 0.3


def test_what_does_not_match_is_said():
    def words(low, high):
        return constrained.compare(constrained.Slope(0.0, low, high), -0.25)

    assert "SHALLOWER" in words(-0.2, -0.1)
    assert "steeper" in words(-0.5, -0.3)
    assert "in the interval" in words(-0.3, -0.2)
    assert constrained.compare(constrained.Slope(0.0, 0.0, 0.0), None) == "-"


def test_the_agents_solution_is_the_minimiser_of_their_sum():
    slopes = consensus.CURVATURE_G[:, None] * (
        consensus.SOLUTION_N - consensus.TARGET_GN
    )
    np.testing.assert_allclose(slopes.sum(axis=0), 0, atol=1e-12)
    assert consensus.CURVATURE_G.sum() > 0 > consensus.CURVATURE_G.min()
    assert abs(consensus.SOLUTION_N).max() < 1, "no bound of the box is reached"

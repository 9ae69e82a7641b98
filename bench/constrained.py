"""Stationarity and feasibility against the number of steps, under linear constraints.

    python -m bench.constrained [--quick] [--out FILE]

Two nonconvex problems in 18 coordinates, three budgets and a box, noise in gradients
and (oracle 1) in the constraint. For every horizon T the step sizes are those of the
theory, with constants that were fixed before the first run. "stationarity" is
||grad Psi(z_t)||, for the methods without a centre ||grad Psi(x_t)||, averaged over 64
times t, one drawn in each 64th of a run by every seed (so over a t that is uniform),
and over seeds.
"slope" is that of its logarithm against log T, with a 95 % bootstrap interval over
seeds; the theory has upper bounds, of T^(-1/4) for A and T^(-1/3) for B. "violation" is
||A x_T - b|| at the end.

Method A draws its constraint three times a step, and so do the penalty and the plain
method (twice, if there are no multipliers); B knows the constraint and evaluates two
gradients a step. All take T samples of the gradient, B and its start N more.

Axes: K budgets, N coordinates of a budget, S seeds, R recorded times, H horizons.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench.harness import report
from bench.harness.constrained_problems import (
    BOX,
    BUDGETS,
    COORDINATES,
    Problem,
    exact_residual,
    make_quadratic,
    make_regression,
    project_feasible,
    sampled_residual,
)
from jaxdave.training.constrained.constraint import ConstraintSamples, known
from jaxdave.training.constrained.lagrangian import (
    StepSizes,
    scale_steps,
    smoothed_lagrangian,
)
from jaxdave.training.constrained.penalty import linearized_lagrangian, penalty_sgd
from jaxdave.training.constrained.stationarity import proximal_point
from jaxdave.training.constrained.storm import (
    start_batch,
    storm_lagrangian,
    storm_momentum,
)
from jaxdave.training.constrained.transformation import Transformation

# Fixed before the first run. Both objectives have l = 1, and the augmented Lagrangian
# is (l + mu + rho ||A||^2) = 4-smooth: at T = 2^8 the primal step is 1/4.
HORIZONS = tuple(2**power for power in range(8, 15))
QUICK_HORIZONS = (2**8, 2**10, 2**12)
SEEDS, QUICK_SEEDS = 32, 8
RECORDS = 64
PROXIMAL_WEIGHT, PENALTY, MULTIPLIER_BOUND = 2.0, 1.0, 10.0
STEPS_A = StepSizes(dual=4.0, primal=4.0, center=2.0)
STEPS_B = StepSizes(dual=1.6, primal=1.6, center=0.8)
MAX_START = 32
ENVELOPE_STEPS = 30


@dataclasses.dataclass(frozen=True)
class Method:
    """A method with its constants.

    Attributes:
        name: Its name in the table.
        build: From the horizon T to the transformation.
        slope: The theory's slope, None if it has none.
        start_power: N = T^start_power samples start STORM's estimate; None for a
            method without STORM.
        is_known: Whether the constraint is known.
    """

    name: str
    build: Callable[[jax.Array], Transformation]
    slope: float | None = None
    start_power: float | None = None
    is_known: bool = False

    def center(self, state: Any, x_KN: jax.Array) -> jax.Array:
        """Get z of a state, or the parameters if the method has no centre."""
        lagrangian = state[1] if self.start_power else state
        return getattr(lagrangian, "center", x_KN)


SMOOTHED: dict[str, Any] = dict(
    proximal_weight=PROXIMAL_WEIGHT,
    penalty=PENALTY,
    multiplier_bound=MULTIPLIER_BOUND,
    start_multipliers=np.zeros(BUDGETS),
    project=BOX,
)


def _method_a(horizon: jax.Array) -> Transformation:
    return smoothed_lagrangian(scale_steps(STEPS_A, horizon, 1 / 2), **SMOOTHED)


def _method_b(horizon: jax.Array) -> Transformation:
    steps = scale_steps(STEPS_B, horizon, 1 / 3)
    return storm_lagrangian(storm_momentum(horizon), steps, **SMOOTHED)


def _penalty(horizon: jax.Array) -> Transformation:
    primal = scale_steps(STEPS_A, horizon, 1 / 2).primal
    # The violation it leaves is of the order of 1 / weight.
    return penalty_sgd(primal, weight=horizon**0.25, project=BOX)


def _plain(horizon: jax.Array) -> Transformation:
    steps = scale_steps(STEPS_A, horizon, 1 / 2)
    zeros_K = np.zeros(BUDGETS)
    return linearized_lagrangian(
        steps.primal,
        steps.dual,
        penalty=PENALTY,
        start_multipliers=zeros_K,
        project=BOX,
    )


METHODS = (
    Method("A", _method_a, -1 / 4),
    Method("A, constraint known", _method_a, -1 / 4, is_known=True),
    Method("B, N = T^(1/6)", _method_b, -1 / 3, 1 / 6, is_known=True),
    Method("B, N = T^(1/3)", _method_b, -1 / 3, 1 / 3, is_known=True),
    Method("SGD with penalty T^(1/4)", _penalty),
    Method("plain linearised ALM", _plain),
)


class Run(NamedTuple):
    """What is kept of a run.

    Attributes:
        centers: z at the recorded times, [S, R, K, N].
        end: x_T, [S, K, N].
        resets: Resets of the multipliers, [S]; 0 for methods without a safeguard.
    """

    centers: jax.Array
    end: jax.Array
    resets: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_seeds(
    problem: Problem,
    method: Method,
    horizon: jax.Array,
    num_start: jax.Array,
    offset_SR: jax.Array,
    key_S: jax.Array,
) -> Run:
    """Run a method on all seeds at once; one program serves all horizons.

    Args:
        problem: The objective.
        method: The method.
        horizon: T, float scalar, a multiple of R.
        num_start: N of STORM, at most MAX_START.
        offset_SR: The step within each R-th of the run after which z is recorded,
            from 1. They differ between seeds, or one draw of the first of them, where
            z is far from stationary, would shift all seeds alike.
        key_S: Keys.

    Returns:
        The runs.
    """
    transformation = method.build(horizon)
    length = (horizon / offset_SR.shape[1]).astype(jnp.int32)

    def run_one(key: jax.Array, offset_R: jax.Array) -> Run:
        key_start, key_batch, key_run = jax.random.split(key, 3)
        start = jax.random.uniform(
            key_start, (BUDGETS, COORDINATES), float, minval=-1.0, maxval=1.0
        )
        batch = jax.vmap(lambda k: problem.sample(start, k))(
            jax.random.split(key_batch, MAX_START)
        )
        is_drawn = (jnp.arange(MAX_START, dtype=float) < num_start)[:, None, None]
        first_KN = jnp.sum(jnp.where(is_drawn, batch, 0), axis=0) / num_start

        def step(time: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[Any, Any]:
            x_KN, state = carry
            key_sample, *keys = jax.random.split(jax.random.fold_in(key_run, time), 4)
            grads, extra = problem.sample(x_KN, key_sample), {}
            if method.start_power:
                grads = jnp.where(time == 0, first_KN, grads)
                before = state[0].previous_params
                extra = {"previous_grads": problem.sample(before, key_sample)}
            samples = (
                known(exact_residual)
                if method.is_known
                else ConstraintSamples(*map(sampled_residual, keys))
            )
            updates, state = transformation.update(
                grads, state, x_KN, constraints=samples, **extra
            )
            return optax.apply_updates(x_KN, updates), state

        def record(carry: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            first, offset = part

            def step_and_keep(time: jax.Array, kept: Any) -> Any:
                carry, center = kept
                carry = step(time, carry)
                is_time = time + 1 == first + offset
                now = method.center(carry[1], carry[0])
                return carry, jnp.where(is_time, now, center)

            return jax.lax.fori_loop(
                first, first + length, step_and_keep, (carry, jnp.zeros_like(start))
            )

        first_R = jnp.arange(offset_SR.shape[1], dtype=jnp.int32) * length
        carry = (start, transformation.init(start))
        (end, state), centers = jax.lax.scan(record, carry, (first_R, offset_R))
        lagrangian = state[1] if method.start_power else state
        resets = getattr(lagrangian, "resets", jnp.int32(0))
        return Run(centers, end, resets)

    return jax.vmap(run_one)(key_S, offset_SR)


@functools.partial(jax.jit, static_argnums=0)
def measure_stationarity(
    problem: Problem, centers: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute ||grad Psi|| at points, and how far xbar is from solved.

    Args:
        problem: The objective.
        centers: Points, [S, R, K, N].

    Returns:
        The norms, [S, R], and the largest change by one more step of xbar's iteration.
    """

    def at(center: jax.Array) -> tuple[jax.Array, jax.Array]:
        nearest = proximal_point(
            problem.gradient, project_feasible, center, PROXIMAL_WEIGHT, ENVELOPE_STEPS
        )
        again = project_feasible(center - problem.gradient(nearest) / PROXIMAL_WEIGHT)
        norm = PROXIMAL_WEIGHT * jnp.linalg.norm(center - nearest)
        return norm, jnp.linalg.norm(again - nearest)

    norms, changes = jax.vmap(jax.vmap(at))(centers)
    return norms, jnp.max(changes)


class Measured(NamedTuple):
    """The figures of a method on a problem.

    Attributes:
        stationarity_HS: Mean over recorded times.
        late_HS: Mean over those in the second half of a run, where the way from the
            start no longer counts; not what the theory bounds.
        violation_HS: ||A x_T - b||.
        resets: Resets in all runs.
        unsolved: The largest error of xbar's iteration.
    """

    stationarity_HS: np.ndarray
    late_HS: np.ndarray
    violation_HS: np.ndarray
    resets: int
    unsolved: float


def measure(
    problem: Problem, method: Method, horizons: Sequence[int], num_seeds: int
) -> Measured:
    """Run a method on a problem at all horizons.

    Args:
        problem: The objective.
        method: The method.
        horizons: T.
        num_seeds: Number of seeds, the same ones for all methods.

    Returns:
        The figures.
    """
    keys = jax.random.split(jax.random.key(7), num_seeds)
    stationarity, late, violation, resets, unsolved = [], [], [], 0, 0.0
    for horizon in horizons:
        rng = np.random.default_rng(horizon)
        offsets = rng.integers(1, horizon // RECORDS + 1, (num_seeds, RECORDS))
        num_start = start_batch(horizon, method.start_power or 0.0)
        run = run_seeds(
            problem,
            method,
            jnp.asarray(horizon, float),
            jnp.asarray(num_start, float),
            jnp.asarray(offsets, jnp.int32),
            keys,
        )
        norms, change = measure_stationarity(problem, run.centers)
        stationarity.append(np.asarray(norms).mean(axis=1))
        late.append(np.asarray(norms)[:, RECORDS // 2 :].mean(axis=1))
        off = jax.vmap(exact_residual)(run.end)
        violation.append(np.linalg.norm(off, axis=1))
        resets += int(np.sum(run.resets))
        unsolved = max(unsolved, float(change))
    return Measured(
        np.stack(stationarity), np.stack(late), np.stack(violation), resets, unsolved
    )


TABLES = {
    "stationarity_HS": "stationarity",
    "late_HS": "stationarity in the second half of a run",
    "violation_HS": "violation at the end",
}
"""Titles of tables by the fields of `Measured`."""


class Slope(NamedTuple):
    """A slope of log value against log T with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def fit_slope(horizons: Sequence[int], value_HS: np.ndarray) -> Slope:
    """Fit the slope of the logarithm of means over seeds.

    Args:
        horizons: T.
        value_HS: Values of all seeds.

    Returns:
        The slope; its interval is of 2,000 bootstraps over seeds, drawn anew at every
        horizon.
    """
    rng = np.random.default_rng(0)
    num_horizons, num_seeds = value_HS.shape
    drawn = rng.integers(0, num_seeds, (2000, num_horizons, num_seeds))
    resampled = np.take_along_axis(value_HS[None], drawn, axis=2)

    def slopes(value: np.ndarray) -> np.ndarray:
        logs = np.log(horizons) - np.mean(np.log(horizons))
        return np.log(value.mean(axis=-1)) @ logs / (logs @ logs)

    low, high = np.percentile(slopes(resampled), [2.5, 97.5])
    return Slope(float(slopes(value_HS)), float(low), float(high))


def compare(slope: Slope, theory: float | None) -> str:
    """Say how a measured slope stands to the theory's, which is an upper bound."""
    if theory is None:
        return "-"
    if slope.low > theory:
        return f"SHALLOWER than {theory:.2f}: not as the theory has it"
    if slope.high < theory:
        return f"steeper than {theory:.2f}, as an upper bound allows"
    return f"{theory:.2f} lies in the interval"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Words of the command line; None takes those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench.constrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="3 horizons, 8 seeds")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    horizons = QUICK_HORIZONS if args.quick else HORIZONS
    num_seeds = QUICK_SEEDS if args.quick else SEEDS
    started = time.process_time()
    with jax.enable_x64(True):
        results = report.start_report(f"{num_seeds} seeds, float64")
        results.machine["commit"] = report.git_commit()
        print(f"commit: {results.machine['commit']}")
        for problem in (make_quadratic(), make_regression()):
            add_problem(results, problem, horizons, num_seeds)
    print(f"\n{time.process_time() - started:.0f} s of CPU")
    results.finish(args.out)


def add_problem(
    results: report.Report, problem: Problem, horizons: Sequence[int], num_seeds: int
) -> None:
    """Measure all methods on a problem and add its tables.

    Args:
        results: Gets the tables and claims.
        problem: The objective.
        horizons: T.
        num_seeds: Number of seeds.
    """
    measured = {
        method: measure(problem, method, horizons, num_seeds) for method in METHODS
    }
    for what in ("stationarity_HS", "late_HS", "violation_HS"):
        rows = []
        for method, figures in measured.items():
            value_HS = getattr(figures, what)
            slope = fit_slope(horizons, value_HS)
            row = {"method": method.name}
            for horizon, value_S in zip(horizons, value_HS, strict=True):
                row[f"T = {horizon}"] = f"{value_S.mean():.4f}"
            row["slope"] = str(slope)
            if what == "stationarity_HS":
                tail = fit_slope(horizons[-3:], value_HS[-3:])
                row["slope of the last three"] = str(tail)
                row["theory"] = compare(slope, method.slope)
            rows.append(row)
        results.add_table(f"{problem.name}: {TABLES[what]}", rows)
    unsolved = max(figures.unsolved for figures in measured.values())
    resets = sum(figures.resets for figures in measured.values())
    results.claims.append(
        report.Claim(
            f"{problem.name}: xbar is solved to {unsolved:.1e}", unsolved < 1e-6
        )
    )
    results.claims.append(
        report.Claim(
            f"{problem.name}: {resets} resets, the bound is above the multipliers",
            resets == 0,
        )
    )


if __name__ == "__main__":
    main()

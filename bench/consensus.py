"""Federated consensus with agents that come and go, against the number of steps.

    python -m bench.consensus [--quick] [--out FILE]

Eight agents in four coordinates agree on the minimiser of a sum of quadratics, of which
two are not convex; the sum is, so its minimiser is known. An agent is connected in a
round with probability 1/2 or 1; gradients are noisy or exact. Step sizes are of order
T^(-1/2). "distance" is that of the server's centre from the minimiser, "disagreement"
the root of sum_i ||x_i - x_0||^2, both at the end and as root mean squares over seeds;
slopes are against log T, with 95 % bootstrap intervals over seeds.

Axes: G agents, N coordinates, S seeds, H horizons.
"""

import argparse
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench.constrained import fit_slope
from bench.harness import report
from jaxdave.training.constrained.consensus import (
    disagreement,
    draw_connections,
    federated_gradient,
    start_federation,
    zero_multipliers,
)
from jaxdave.training.constrained.lagrangian import (
    StepSizes,
    scale_steps,
    smoothed_lagrangian,
)
from jaxdave.training.constrained.projections import box

# Fixed before the first run.
HORIZONS = tuple(2**power for power in range(8, 15, 2))
SEEDS = 32
AGENTS, COORDINATES = 8, 4
STEPS = StepSizes(dual=4.0, primal=2.5, center=2.0)
_RNG = np.random.default_rng(3)
CURVATURE_G = np.array([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, -0.2, -0.4])
TARGET_GN = _RNG.uniform(-0.8, 0.8, (AGENTS, COORDINATES))
SOLUTION_N = CURVATURE_G @ TARGET_GN / CURVATURE_G.sum()
# Probability of a connection, rounds of messages a step, noise of gradients.
CASES = ((0.5, 3, 0.0), (0.5, 1, 0.0), (0.5, 1, 0.5), (1.0, 1, 0.5))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def run_seeds(
    probability: float, rounds: int, noise: float, horizon: jax.Array, key_S: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run the method on all seeds at once.

    Args:
        probability: That an agent is connected in a round.
        rounds: Rounds of messages a step, 1 or 3.
        noise: Standard deviation of the gradients' noise.
        horizon: T, float scalar.
        key_S: Keys.

    Returns:
        Distances and disagreements at the end, and resets, [S].
    """
    start = start_federation(jnp.zeros(COORDINATES, float), AGENTS)
    method = smoothed_lagrangian(
        scale_steps(STEPS, horizon, 1 / 2),
        proximal_weight=2.0,
        penalty=1.0,
        multiplier_bound=20.0,
        start_multipliers=zero_multipliers(start),
        project=box(-1.0, 1.0),
    )

    def agent_gradient(x_N: jax.Array, data: Any) -> jax.Array:
        curvature, target_N, noise_N = data
        return curvature * (x_N - target_N) + noise_N

    def run_one(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def step(time: jax.Array, carry: Any) -> Any:
            federation, state = carry
            key_noise, key_who = jax.random.split(jax.random.fold_in(key, time))
            noise_GN = noise * jax.random.normal(key_noise, TARGET_GN.shape, float)
            data = (jnp.asarray(CURVATURE_G), jnp.asarray(TARGET_GN), noise_GN)
            updates, state = method.update(
                federated_gradient(agent_gradient, federation, data),
                state,
                federation,
                constraints=draw_connections(
                    key_who, AGENTS, probability, rounds=rounds
                ),
            )
            return optax.apply_updates(federation, updates), state

        steps = horizon.astype(jnp.int32)
        end, state = jax.lax.fori_loop(0, steps, step, (start, method.init(start)))
        distance = jnp.linalg.norm(state.center.server - SOLUTION_N)
        return distance, disagreement(end), state.resets

    return jax.vmap(run_one)(key_S)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Words of the command line; None takes those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench.consensus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="without T = 2^14")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    horizons = HORIZONS[:-1] if args.quick else HORIZONS
    started = time.process_time()
    rows, resets = [], 0
    with jax.enable_x64(True):
        results = report.start_report(f"{SEEDS} seeds, float64")
        results.machine["commit"] = report.git_commit()
        print(f"commit: {results.machine['commit']}")
        keys = jax.random.split(jax.random.key(0), SEEDS)
        for case in CASES:
            runs = [run_seeds(*case, jnp.asarray(t, float), keys) for t in horizons]
            resets += sum(int(run[2].sum()) for run in runs)
            for index, what in enumerate(("distance", "disagreement")):
                squares_HS = np.stack([np.asarray(run[index]) ** 2 for run in runs])
                # The slope of a root is half of that of the mean square.
                slope = fit_slope(horizons, squares_HS)
                half = type(slope)(*(value / 2 for value in slope))
                probability, rounds, noise = case
                row = {"p": probability, "rounds": rounds, "noise": noise, "at": what}
                for horizon, square_S in zip(horizons, squares_HS, strict=True):
                    row[f"T = {horizon}"] = f"{np.sqrt(square_S.mean()):.4f}"
                rows.append(row | {"slope": str(half)})
    results.add_table("consensus", rows)
    print(f"\n{time.process_time() - started:.0f} s of CPU")
    results.claims.append(report.Claim(f"{resets} resets", resets == 0))
    results.finish(args.out)


if __name__ == "__main__":
    main()

"""Fine-tuning under a constraint: learn a new kind of problem, and keep the old ones.

    python -m bench.constrained_tuning [--quick] [--runs FILE] [--out FILE]

The packaged `sdar-1m` answers word problems of 2 to 4 operations and list functions,
and fails at 5 operations. Objective: the masked-diffusion loss on problems of 5
operations. Constraint: the same loss on the old mixture is at most its value at the
start + 0.01 nats a token of the answers. All parameters are trained, by gradient steps
of a fixed size.

Why it is asked in this way. A constraint that is linear in the parameters and says the
same does not exist: the network was trained on the mixture until its loss was 0.0005,
so that its gradient there is about 0, and the bound linearised at the start allows
everything. So the loss itself is bounded, with slack, and at each step the methods get
its linearisation at their iterate (`constrained.loss_bound`). Their theory is of linear
constraints and does not cover this; nor is mu > l or M_y > ||y*|| known to hold.

Methods, all from the same start, with the same step and the same batches of the new
problems:

    unconstrained  SGD on the objective
    replay         SGD on objective + old loss: a fixed multiplier of 1
    penalty 1, 5   SGD on objective + weight/2 (old loss - limit + slack)^2
    A              smoothed, linearised ALM; three batches of the old mixture a step
    B              A with STORM; its constraint has to be known: it is the loss on 16
                   stored problems under fixed masks, and what is reported of it is
                   measured on others

Measured every fifth of a run: the losses on held-out problems, 48 new ones (skeletons
of the test side) and 64 of the old mixture (test side, 52 and 12), under fixed masks.
At the end: answers that are right of `words_long` (100, 5 operations), of `words_test`
(the first 100) and of `lists_test` (the first 100). "violation" is by how much the
held-out old loss exceeds its own start + 0.01, 0 if not. Means over three seeds with t
intervals (95 %, 2 degrees of freedom); a seed has problems, batches and masks of its
own.

Fixed before the first counted run: everything above and the constants below. Pilots on
seed 100 chose them: A with the step 0.1 gave NaN, and with 0.03, multiplier step 0.5,
penalty 2 and bound 20 its multiplier passed 12 and both losses stayed above 1.5; with
0.04, 0.1, 1 and 4 it was at 0.117 (new) and 0.188 (old) after 60 steps, after two
resets. Predictions: unconstrained forgets lists (under 50 %) and most words; replay
ends with both losses below 0.1; the penalties violate more than replay; A's violation
at the end is below the penalties', B's below A's.
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

from bench.harness import report
from bench.harness.tuning_problems import (
    MARGIN,
    POOL,
    Data,
    draw,
    loss_fn,
    make_data,
    measure,
    right_answers,
    rows,
    start_params,
)
from jaxdave.runtime.journal import journal_writer, read_journal
from jaxdave.training.constrained.constraint import known
from jaxdave.training.constrained.lagrangian import StepSizes, smoothed_lagrangian
from jaxdave.training.constrained.loss_bound import (
    draw_loss_bound,
    loss_residual,
    project_loss_bound,
    start_loss_bound,
)
from jaxdave.training.constrained.penalty import penalty_sgd
from jaxdave.training.constrained.projections import whole_space
from jaxdave.training.constrained.slack import Slacked
from jaxdave.training.constrained.storm import start_batch, storm_lagrangian

SEEDS, PILOT_SEED = (0, 1, 2), 100
STEPS, MEASURES = 80, 5
BATCH, STORED = 8, 16
STEP = 0.04
MULTIPLIER_STEP, PENALTY = 0.05, 1.0
PROXIMAL, CENTER = 0.5 / STEP, 0.5
MULTIPLIER_BOUND = 4.0
MOMENTUM = 0.3
METHODS = ("unconstrained", "replay", "penalty 1", "penalty 5", "A", "B")
T_95 = {2: 12.706, 3: 4.303}
"""Student's t by the number of seeds."""


def make_method(name: str, limit: Any) -> Any:
    """Make the update rule of a method.

    Args:
        name: One of `METHODS`.
        limit: What the old loss is to be at most.

    Returns:
        The transformation, of `Slacked` parameters.
    """
    project = project_loss_bound(whole_space, limit)
    if name in ("unconstrained", "replay"):
        return optax.sgd(STEP)
    if name.startswith("penalty"):
        weight = float(name.split()[1])
        return penalty_sgd(STEP, weight=weight, project=project)
    steps = StepSizes(dual=MULTIPLIER_STEP, primal=STEP, center=CENTER)
    settings: dict[str, Any] = {
        "proximal_weight": PROXIMAL,
        "penalty": PENALTY,
        "multiplier_bound": MULTIPLIER_BOUND,
        "start_multipliers": jnp.zeros((), jnp.float32),
        "project": project,
    }
    if name == "B":
        return storm_lagrangian(MOMENTUM, steps, **settings)
    return smoothed_lagrangian(steps, **settings)


@functools.cache
def make_chunk(name: str, steps: int) -> Any:
    """Make the compiled function of a part of a run.

    Args:
        name: The method.
        steps: Steps of the part.

    Returns:
        A function (data, slacked parameters, state, first step, key) -> (slacked,
        state).
    """
    loss, zero = loss_fn(), jnp.zeros((), jnp.float32)

    def gradient(slacked: Slacked, sample: Any) -> Slacked:
        return Slacked(jax.grad(loss)(slacked.params, *sample), zero)

    def step(index: jax.Array, carry: Any, data: Data, key: jax.Array) -> Any:
        slacked, state = carry
        method = make_method(name, data.limit)
        key_new, *keys_old = jax.random.split(jax.random.fold_in(key, index), 4)
        sample = draw(data.new, key_new, BATCH)
        grads, more = gradient(slacked, sample), {}
        one, two, three = (draw(data.old, key_old, BATCH) for key_old in keys_old)
        if name == "replay":
            grads = jax.tree.map(jnp.add, grads, gradient(slacked, one))
        if name == "B":
            stored = rows(data.old, 0, STORED), jax.random.key(13)
            more["constraints"] = known(loss_residual(loss, data.limit, *stored))
            more["previous_grads"] = gradient(state[0].previous_params, sample)
        elif name not in ("unconstrained", "replay"):
            more["constraints"] = draw_loss_bound(loss, data.limit, (one, two, three))
        updates, state = method.update(grads, state, slacked, **more)
        return optax.apply_updates(slacked, updates), state

    @jax.jit
    def chunk(
        data: Data, slacked: Slacked, state: Any, first: jax.Array, key: jax.Array
    ) -> Any:
        body = functools.partial(step, data=data, key=key)
        return jax.lax.fori_loop(first, first + steps, body, (slacked, state))

    return chunk


def start_state(name: str, data: Data, slacked: Slacked, horizon: int) -> Any:
    """The state of a method before its first step.

    Args:
        name: The method.
        data: What is trained on.
        slacked: The parameters.
        horizon: Steps of the run.

    Returns:
        The state; B's has the gradient of T^(1/3) batches as its first estimate.
    """
    state = make_method(name, data.limit).init(slacked)
    if name != "B":
        return state
    count = BATCH * start_batch(horizon, 1 / 3)
    grads = jax.grad(loss_fn())(
        slacked.params, rows(data.new, 0, count), jax.random.key(14)
    )
    estimate = Slacked(grads, jnp.zeros((), jnp.float32))
    started = state[0]._replace(count=jnp.ones((), jnp.int32), estimate=estimate)
    return (started, state[1])


def multiplier_of(name: str, state: Any) -> tuple[float, int]:
    """The multiplier and how often it was reset; (0, 0) without one."""
    if name not in ("A", "B"):
        return 0.0, 0
    lagrangian = state[1] if name == "B" else state
    return float(lagrangian.multipliers), int(lagrangian.resets)


def run(name: str, seed: int, steps: int, problems: int) -> dict[str, Any]:
    """One run of a method.

    Args:
        name: The method.
        seed: Of its problems, batches and masks.
        steps: How many.
        problems: Problems of each frozen set at the end; 0: none are decoded.

    Returns:
        What was measured, as JSON values.
    """
    data, params = make_data(seed), start_params()
    loss = float(data.limit) - MARGIN
    slacked = start_loss_bound(params, loss, data.limit)
    chunk = make_chunk(name, steps // MEASURES)
    state = start_state(name, data, slacked, steps)
    curve, multipliers, seconds, resets = [measure(params)], [0.0], [], 0
    for index in range(MEASURES):
        first = jnp.asarray(index * (steps // MEASURES), jnp.int32)
        started = time.process_time()
        slacked, state = jax.block_until_ready(
            chunk(data, slacked, state, first, jax.random.key(seed))
        )
        seconds.append(time.process_time() - started)
        curve.append(measure(slacked.params))
        multiplier, resets = multiplier_of(name, state)
        multipliers.append(multiplier)
    return {
        "method": name,
        "seed": seed,
        "steps": steps,
        "new": [one[0] for one in curve],
        "old": [one[1] for one in curve],
        "multiplier": multipliers,
        "slack": float(slacked.slack),
        "resets": resets,
        "right": right_answers(slacked.params, problems) if problems else {},
        # The first part may have compiled the program.
        "cpu_seconds_per_step": float(np.median(seconds)) * MEASURES / steps,
    }


def with_interval(values: Sequence[float], digits: int = 3) -> str:
    """The mean and half the width of its interval.

    Args:
        values: One for each seed.
        digits: After the point.

    Returns:
        "mean +- half".
    """
    mean = float(np.mean(values))
    if len(values) not in T_95:
        return f"{mean:.{digits}f}"
    half = T_95[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return f"{mean:.{digits}f} +- {half:.{digits}f}"


def summarise(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method.

    Args:
        runs: What `run` returned.

    Returns:
        The rows of the table.
    """
    table = []
    for name in METHODS:
        own = [one for one in runs if one["method"] == name]
        if not own:
            continue
        excess = [np.array(one["old"]) - one["old"][0] - MARGIN for one in own]
        row: dict[str, Any] = {
            "method": name,
            "new loss": with_interval([one["new"][-1] for one in own]),
            "old loss": with_interval([one["old"][-1] for one in own]),
            "violation at the end": with_interval([max(e[-1], 0) for e in excess]),
            "highest": with_interval([max(e.max(), 0) for e in excess]),
            "multiplier": with_interval([one["multiplier"][-1] for one in own], 2),
            "resets": " ".join(str(one["resets"]) for one in own),
        }
        for kind in own[0]["right"]:
            row[kind] = with_interval([one["right"][kind] for one in own], 2)
        cost = [one["cpu_seconds_per_step"] for one in own]
        row["CPU s a step"] = f"{np.median(cost):.2f}"
        table.append(row)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or what is left of it.

    Args:
        arguments: Words of the command line; None takes those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bench.constrained_tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps")
    parser.add_argument("--runs", type=Path, help="JSON lines; runs in it are kept")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    steps = 20 if args.quick else STEPS
    results = report.start_report("sdar-1m, float32")
    results.machine["commit"] = report.git_commit()
    runs = all_runs(SEEDS[:1] if args.quick else SEEDS, steps, args.runs)
    results.add_table(f"{steps} steps", summarise(runs))
    for name in METHODS:
        own = [one for one in runs if one["method"] == name]
        for kind in ("new", "old"):
            means = np.mean([one[kind] for one in own], axis=0)
            print(f"{name}, {kind}: " + " ".join(f"{mean:.3f}" for mean in means))
    results.finish(args.out)


def all_runs(
    seeds: Sequence[int], steps: int, file: Path | None
) -> list[dict[str, Any]]:
    """The runs of a file, and those that it lacks.

    Args:
        seeds: The seeds.
        steps: Of each run.
        file: JSON lines, which grow with every run; None: nothing is kept.

    Returns:
        All runs.
    """
    problems = 20 if steps < STEPS else 100
    if file is None:
        return [run(name, seed, steps, problems) for seed in seeds for name in METHODS]
    header = {"steps": steps, "constants": constants()}
    done = read_journal(file, header)
    with journal_writer(file, header) as write:
        for seed in seeds:
            names = {one["method"] for one in done if one["seed"] == seed}
            for name in METHODS:
                if name in names:
                    continue
                found = run(name, seed, steps, problems)
                write(found)
                done.append(found)
                print(name, seed, found["new"][-1], found["old"][-1], flush=True)
    return done


def constants() -> dict[str, Any]:
    """All constants of a run, so that a file of others is not gone on with."""
    return {
        "BATCH": BATCH,
        "STORED": STORED,
        "POOL": POOL,
        "MARGIN": MARGIN,
        "STEP": STEP,
        "MULTIPLIER_STEP": MULTIPLIER_STEP,
        "PENALTY": PENALTY,
        "PROXIMAL": PROXIMAL,
        "CENTER": CENTER,
        "MULTIPLIER_BOUND": MULTIPLIER_BOUND,
        "MOMENTUM": MOMENTUM,
    }


if __name__ == "__main__":
    main()

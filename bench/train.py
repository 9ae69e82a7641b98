"""A training step on a CPU beside the same matrix products alone.

    python -m bench.train [--quick] [--rounds 9] [--all-cores] [--out FILE]

A random model of 30M parameters (8 layers of 512 features, 4,096 ids), float32, AdamW.
The step is the trainer's own: masks, forward, backward, clipping, optimiser, compiled
as a whole. Beside it runs a program that does the step's products and nothing else,
each in the layout that this machine multiplies fastest
(`harness.training_products`). Both are timed in alternating rounds of one process; a
figure is the median of the ratios within a round, with a 95 % bootstrap interval. The
aim is at least 60 % of the products' rate.

The step takes its memory anew from the system every time, which counts as part of it;
the products write into memory that they keep. `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`
in the environment lets the step have it in huge pages.

XLA gets one thread, unless --all-cores is given: processor time of more threads that
wait for each other says little where other processes run. Processor time counts; wall
time stands beside it.

A second table has what settings of a step cost, each over the plain step in the same
rounds: rematerialisation, accumulation, logits of some columns at a time, bfloat16.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.harness import report, timing
from bench.harness.models import random_config
from bench.harness.training_products import (
    ORIENTATIONS,
    Orientation,
    fastest_orientations,
    products_alone,
    step_products,
)
from jaxdave.core.config import ModelConfig
from jaxdave.models import transformer
from jaxdave.training.data.token_batch import TokenBatch
from jaxdave.training.objective.objective_loss import make_objective_loss
from jaxdave.training.objective.objectives import Objective, llada_pretrain, sdar
from jaxdave.training.optimisers import OptimiserConfig, make_optimiser
from jaxdave.training.update import UpdateConfig, init_state, make_update

TARGET = 0.6
"""Of the rate of the products alone, at least."""

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
"""What XLA is told so that it computes with one thread."""

QUICK = dict(
    num_layers=1,
    hidden=64,
    inter=192,
    heads=4,
    kv_heads=2,
    head_dim=16,
    rotary_dim=16,
)
"""What `--quick` changes of the model: its figures say nothing, only that all runs."""


class Case(NamedTuple):
    """What is trained, and on how much.

    Attributes:
        name: as the table names it.
        objective: the loss.
        config: the model.
        rows: rows of a batch.
        length: tokens of a row.
    """

    name: str
    objective: Objective
    config: ModelConfig
    rows: int
    length: int

    @property
    def positions(self) -> int:
        """Positions of a row that the network sees."""
        return self.length * (1 if self.objective.layout == "in_place" else 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """How a step computes.

    Attributes:
        columns_at_once: as for `make_objective_loss`.
        remat: as for `make_objective_loss`.
        accumulate: as for `UpdateConfig`.
        dtype: as for `UpdateConfig`.
    """

    columns_at_once: int | None = None
    remat: bool = False
    accumulate: int = 1
    dtype: str = "float32"


SETTINGS = {
    "64 columns at once": Setting(columns_at_once=64),
    "remat": Setting(remat=True),
    "accumulate 2": Setting(accumulate=2),
    "bfloat16": Setting(dtype="bfloat16"),
}
"""Settings whose cost the second table has, by the name of its row."""


def make_cases(quick: bool) -> list[Case]:
    """The cases: both see 1,024 positions in a step.

    Args:
        quick: a small model and short rows instead.

    Returns:
        Full attention under masked diffusion, and block diffusion.
    """
    block_causal = dataclasses.replace(random_config("30M"), **(QUICK if quick else {}))
    full = dataclasses.replace(
        block_causal, attention="full", block_length=32, qk_norm=False
    )
    length = 32 if quick else 256
    return [
        Case("masked diffusion", llada_pretrain(), full, 4, length),
        Case("block diffusion", sdar(), block_causal, 2, length),
    ]


def make_step(case: Case, setting: Setting) -> Callable[[], Any]:
    """Compile a training step, as the trainer does.

    Args:
        case: what is trained.
        setting: how.

    Returns:
        A function without arguments that takes the next step of a run.
    """
    loss = make_objective_loss(
        case.config,
        case.objective,
        setting.columns_at_once,
        remat=setting.remat,
    )
    optimiser = make_optimiser(OptimiserConfig(), steps=10_000)
    update = make_update(
        loss,
        optimiser,
        UpdateConfig(accumulate=setting.accumulate, dtype=setting.dtype),
    )
    state = init_state(transformer.init(case.config, 0), optimiser, 0, ema=False)
    shape = case.rows, case.length
    tokens_BT = np.random.default_rng(0).integers(
        0, case.config.vocab_size - 1, shape, dtype=np.int32
    )
    batch = TokenBatch(tokens_BT, np.ones(shape, bool), np.zeros(shape, np.int32))
    batch = jax.tree.map(jnp.asarray, batch)
    compiled = jax.jit(update, donate_argnums=0).lower(state, batch, None).compile()

    def step():
        nonlocal state
        state, metrics = compiled(state, batch, None)
        return metrics

    return step


def time_pairs(functions: Sequence[Callable[[], Any]], rounds: int) -> np.ndarray:
    """Time functions in alternating rounds.

    Args:
        functions: what is timed.
        rounds: alternating rounds.

    Returns:
        Processor and wall seconds, [rounds, functions, 2].
    """
    wall = []

    def timer(function):
        def run() -> float:
            seconds = []
            wall.append(
                timing.time_call(lambda: seconds.append(timing.time_cores(function)))
            )
            return seconds[0]

        return run

    cores = timing.time_alternately([timer(function) for function in functions], rounds)
    # Wall times come in the order of the rounds, which is reversed in every other one.
    count = len(functions)
    by_turn = np.reshape(wall, (rounds + 1, count))
    by_turn[::2] = by_turn[::2, ::-1].copy()
    return np.stack([cores, by_turn[1:]], axis=-1)


def compare_with_products(
    case: Case, rounds: int, orientations: Sequence[Orientation] = ORIENTATIONS
) -> dict[str, Any]:
    """Time a step beside its products.

    Args:
        case: what is trained.
        rounds: alternating rounds.
        orientations: layouts that are tried for the products.

    Returns:
        A row of the first table.
    """
    products = step_products(case.config, case.rows, case.positions, case.length)
    fastest = fastest_orientations(products, jnp.float32, orientations)
    alone = products_alone(products, fastest, jnp.float32)
    seconds = time_pairs([make_step(case, Setting()), alone], rounds)
    # The rate of a step over that of the products.
    cores, wall = (
        timing.median_with_interval(seconds[:, 1, clock] / seconds[:, 0, clock])
        for clock in (0, 1)
    )
    step, products_s = np.median(seconds[..., 0], axis=0)
    flops = sum(product.flops for product in products)
    return {
        "loss": case.name,
        "rows x tokens": f"{case.rows} x {case.length}",
        "tokens/s": f"{case.rows * case.length / step:.0f}",
        "step s": float(step),
        "products s": float(products_s),
        "products GFLOP/s": flops / products_s / 1e9,
        "rate of products": str(cores),
        "by wall time": str(wall),
        "aim": f">= {TARGET} {'met' if cores.median >= TARGET else 'missed'}",
    }


def compare_settings(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Time steps of other settings beside the plain one.

    Args:
        case: what is trained.
        rounds: alternating rounds.

    Returns:
        Rows of the second table.
    """
    plain, rows = make_step(case, Setting()), []
    for name, setting in SETTINGS.items():
        seconds = time_pairs([plain, make_step(case, setting)], rounds)
        cores, wall = (
            timing.median_with_interval(seconds[:, 1, clock] / seconds[:, 0, clock])
            for clock in (0, 1)
        )
        rows.append(
            {
                "loss": case.name,
                "setting": name,
                "time over plain": str(cores),
                "by wall time": str(wall),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: the command line; None: that of the process.
    """
    parser = report.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="alternating repeats")
    parser.add_argument(
        "--quick", action="store_true", help="a small model, to see that all runs"
    )
    parser.add_argument(
        "--all-cores", action="store_true", help="let XLA use all threads"
    )
    args = parser.parse_args(arguments)
    if not args.all_cores:
        # Before the first computation, or it comes too late.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {ONE_THREAD}".strip()
    rounds = min(args.rounds, 2) if args.quick else args.rounds
    orientations = ORIENTATIONS[:1] if args.quick else ORIENTATIONS
    results, cases = report.start_report("random"), make_cases(args.quick)
    settings_of = cases[:1] if args.quick else cases
    results.add_table(
        "A training step and its products alone, median [95 %], processor time",
        [compare_with_products(case, rounds, orientations) for case in cases],
    )
    results.add_table(
        "Settings of a step, median [95 %], processor time",
        [row for case in settings_of for row in compare_settings(case, rounds)],
    )
    results.finish(args.out)


if __name__ == "__main__":
    main()

"""Curvature against reward variance in training, beside the talk's coefficients.

    python -m bench.curvature_in_training [--quick] [--runs FILE] [--out FILE]

The talk's table (Qwen2.5-Math-1.5B, GRPO): Pearson's coefficient of local curvature and
reward variance is 0.342 at the same iteration (p < 0.01) and -0.028 at different ones
(p = 0.18); the mean |cosine| of gradients of different prompts is 0.088, and 90 % of
the pairs are under 0.15. It does not define the curvature. This plan was fixed before
the run.

Curvature is the spectral norm of the Hessian of J_i, the expected reward of prompt i:
the quantity that the talk's lemma bounds by 4 X_max^2 p (1 - p).

1. Log-linear policy: 3 draws of 32 questions of 4 answers, 64 parameters shared by all
   questions, normal features of sizes 10^U(-1/4, 1/4), 200 exact steps of either update
   at the step size of its theorem. Norms, p (1 - p) and gradients are exact.
2. The demo's network: `sdar-1m`, which has learnt problems of 1 to 4 operations and
   answers nearly all of them rightly at temperature 1, and nearly none of 5. Supervised
   steps on problems of 5 (8 a step, Adam 3e-4) warm it up until the mean likelihood of
   16 others' reference answers is 0.3; then 8 steps of GRPO (advantages over their
   deviation, Adam 1e-4) on 24 such problems, 8 answers to each in every step,
   temperature 1, left to right, which makes log-probabilities exact. Two seeds: 0, 1.
   Measured before steps 0, 2, 4, 6 and after the last one. As in the talk's setting one
   answer counts as right: J_i is the likelihood of the reference answer, so that p,
   gradient and Hessian are exact and no noise of answers is in the curvature. The norm
   is the largest Ritz value of 3 products from the gradient; its residual is reported.
   The variance is p (1 - p), and K p (1 - p) / (K - 1) of the 8 graded answers of the
   step. How often a right answer is the reference is reported.

Shared noise is checked with a curvature from answers, |v'Hv| along the exact
eigenvector v, H that of the importance-weighted rewards (baseline: the mean of the
others): against the variance of the same answers, and of 8 independent ones.

Statistics (`harness.correlation`): the main one is Pearson's coefficient at the same
step, both figures less their mean over the prompts of the run and step; beside it ranks
(norms have a long tail), all values as they are, another step of the same prompt, and
another step of another prompt, which is what the talk's second figure may be. Intervals
are of 95 %, by bootstrap over prompts (questions), each with all its steps. No value is
left out.

A run is a JSON line of FILE and is not made again. `--quick` is one small run, and
shows only that everything runs.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.harness import correlation, report
from bench.harness.curvature_runs import Size, run
from jaxdave.runtime.journal import journal_writer, read_journal
from jaxdave.training.reinforce import curvature
from jaxdave.training.reinforce.advantages import Normalize
from jaxdave.training.reinforce.answer_curvature import absolute_cosines

DRAWS, QUESTIONS, ANSWERS, PARAMETERS = 3, 32, 4, 64
STEPS, QUICK_STEPS = 200, 10
UPDATES: dict[str, Normalize] = {"REINFORCE": "none", "GRPO": "std"}
SEEDS = (0, 1)
QUICK_SIZE = Size(prompts=3, group_size=4, steps=1, measure_every=1)
SMALL_COSINE = 0.15
"""The talk's: 90 % of pairs are under it."""


def log_linear_run(draw: int, update: str, num_steps: int) -> dict[str, np.ndarray]:
    """Run an update on questions that share all parameters.

    Args:
        draw: Index of the draw.
        update: A name in `UPDATES`.
        num_steps: Steps.

    Returns:
        Norms, variances and probabilities [S, Q], and the cosines of all steps.
    """
    rng = np.random.default_rng((draw, 64))
    size_Q = 10 ** rng.uniform(-0.25, 0.25, QUESTIONS)
    features_QAD = size_Q[:, None, None] * rng.normal(
        size=(QUESTIONS, ANSWERS, PARAMETERS)
    )
    reward_QA = jnp.asarray(np.tile(np.eye(ANSWERS)[0], (QUESTIONS, 1)))
    # Scores have their question's size, however many parameters there are.
    theta_D = rng.normal(size=PARAMETERS) / np.sqrt(PARAMETERS)
    features_QAD, theta_D = jnp.asarray(features_QAD), jnp.asarray(theta_D)
    met = curvature.ascend(
        features_QAD, reward_QA, theta_D, num_steps, normalize=UPDATES[update]
    )
    of_questions = jax.vmap(curvature.gradient, (0, 0, None))
    cosines_SN = jax.lax.map(
        lambda theta_D: absolute_cosines(
            of_questions(features_QAD, reward_QA, theta_D)
        ),
        met.theta_SD,
    )
    return {
        "norm": np.asarray(met.norm_SQ),
        "variance": np.asarray(met.variance_SQ),
        "p": np.asarray(met.p_SQ),
        "cosines": np.asarray(cosines_SN).ravel(),
    }


def coefficient_row(
    names: dict[str, str], first_RSP: np.ndarray, second_RSP: np.ndarray
) -> dict[str, Any]:
    """Correlate two figures.

    Args:
        names: What the row is of, by column.
        first_RSP: A figure, float [runs, steps, prompts].
        second_RSP: Another.

    Returns:
        A row of the table.
    """
    found = correlation.correlate(first_RSP, second_RSP)
    return {
        **names,
        "same step": str(found.same_step),
        "ranks": str(found.ranks),
        "as they are": str(found.raw),
        "another step": str(found.other_step),
        "another step and prompt": f"{found.unrelated:.3f}",
    }


def course_row(
    names: dict[str, str],
    p_RSP: np.ndarray,
    norm_RSP: np.ndarray,
    variance_RSP: np.ndarray,
    cosines_N: np.ndarray,
) -> dict[str, Any]:
    """Describe runs: how p has moved, curvature over variance, and gradients' cosines.

    Args:
        names: What the row is of, by column.
        p_RSP: Probabilities, float [runs, steps, prompts].
        norm_RSP: Norms.
        variance_RSP: p (1 - p).
        cosines_N: |cosine| of pairs of prompts.

    Returns:
        A row of the table.
    """
    varies = variance_RSP > 1e-6
    ratios = norm_RSP[varies] / variance_RSP[varies]
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    return {
        **names,
        "values": norm_RSP.size,
        "p before": round(float(p_RSP[:, 0].mean()), 3),
        "p after": round(float(p_RSP[:, -1].mean()), 3),
        "norm / variance, 10, 50, 90 %": f"{low:.3g}, {middle:.3g}, {high:.3g}",
        "mean |cosine|": f"{cosines_N.mean():.3f} +- {cosines_N.std():.3f}",
        f"under {SMALL_COSINE}": f"{np.mean(cosines_N < SMALL_COSINE):.0%}",
    }


def log_linear_rows(num_steps: int) -> tuple[list[dict], list[dict]]:
    """Measure the log-linear policy.

    Args:
        num_steps: Steps of a run.

    Returns:
        Rows of coefficients, and rows of the courses of runs.
    """
    coefficients, courses = [], []
    for update in UPDATES:
        runs = [log_linear_run(draw, update, num_steps) for draw in range(DRAWS)]
        norm, variance, p = (
            np.stack([one[name] for one in runs]) for name in ("norm", "variance", "p")
        )
        cosines = np.concatenate([one["cosines"] for one in runs])
        names = {"update": update}
        coefficients.append(coefficient_row(names, norm, variance))
        courses.append(course_row(names, p, norm, variance, cosines))
    return coefficients, courses


def network_rows(
    records: Sequence[dict[str, Any]],
) -> tuple[list[dict], list[dict], list[dict]]:
    """Make the tables of the network's runs.

    Args:
        records: `curvature_runs.run` of every seed.

    Returns:
        Rows of coefficients, the course of the runs, and what the exact figures rest
        on.
    """

    def of(name: str) -> np.ndarray:
        return np.array([[one[name] for one in r["measured"]] for r in records])

    pairs = [
        ("norm", "variance"),
        ("norm", "own variance"),
        ("sampled", "own variance"),
        ("sampled", "other variance"),
        ("sampled", "variance"),
    ]
    shown = {
        "norm": "spectral norm",
        "sampled": "|v'Hv| of 8 answers",
        "variance": "p (1 - p)",
        "own variance": "of the step's answers",
        "other variance": "of independent answers",
    }
    coefficients = [
        coefficient_row(
            {"curvature": shown[first], "variance": shown[second]},
            of(first),
            of(second),
        )
        for first, second in pairs
    ]
    course = course_row({}, of("p"), of("norm"), of("variance"), of("cosines").ravel())
    right = max(of("right").sum(), 1)
    basis = {
        "right answers": int(right),
        "of them the reference": f"{of('right as the reference').sum() / right:.1%}",
        "largest |share of right - p|": round(
            float(np.abs(of("rewards") - of("p")).max()), 3
        ),
        "mean of it": round(float(np.abs(of("rewards") - of("p")).mean()), 3),
        "largest residual / norm": f"{of('residual').max():.1g}",
        "mean p by step": " ".join(f"{p:.2f}" for p in of("p").mean(axis=(0, 2))),
        "mean reward by step": " ".join(
            f"{p:.2f}" for p in of("rewards").mean(axis=(0, 2))
        ),
        "groups with a variance": f"{np.mean(of('own variance') > 0):.0%}",
    }
    return coefficients, [course], [basis]


def network_runs(seeds: Sequence[int], size: Size, path: Path | None) -> list[dict]:
    """Make the runs that are not yet there.

    Args:
        seeds: Of the runs.
        size: How much is measured.
        path: Their JSON lines; None: they are not kept.

    Returns:
        Their records.
    """
    header = {"size": repr(size)}
    done = [] if path is None else read_journal(path, header)
    records = {record["seed"]: record for record in done}
    kept = contextlib.nullcontext() if path is None else journal_writer(path, header)
    with kept as write:
        for seed in seeds:
            if seed not in records:
                records[seed] = run(seed, size)
                if write is not None:
                    write(records[seed])
    return [records[seed] for seed in seeds]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Words of the command line; None takes those of this process.
    """
    parser = report.argument_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="one small run")
    parser.add_argument("--runs", type=Path, help="JSON lines, one a run")
    args = parser.parse_args(arguments)
    results = report.start_report("sdar-1m")
    with jax.enable_x64(True):
        coefficients, courses = log_linear_rows(QUICK_STEPS if args.quick else STEPS)
    results.add_table("Log-linear policy: curvature and p (1 - p)", coefficients)
    results.add_table("Log-linear policy: the runs", courses)
    seeds, size = (SEEDS[:1], QUICK_SIZE) if args.quick else (SEEDS, Size())
    records = network_runs(seeds, size, args.runs)
    coefficients, courses, basis = network_rows(records)
    results.add_table("Network: curvature and variance", coefficients)
    results.add_table("Network: the runs", courses)
    results.add_table("Network: what the exact figures rest on", basis)
    results.finish(args.out)


if __name__ == "__main__":
    main()

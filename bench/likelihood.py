"""Log-likelihoods of answers: the variational bound, its noise, one order, their cost.

    python -m bench.likelihood [--weights llada-1m] [--problems words_test]

"bound" is the mean over random orders of unmasking, estimated from `mc_num` samples;
"chain" is the one order from left to right.
"""

import statistics
import time
from typing import Any

import numpy as np

from bench.harness import report
from jaxdave.demo_tasks import problem_sets
from jaxdave.eval.likelihood import masks
from jaxdave.eval.likelihood.batching import Question, log_likelihoods
from jaxdave.eval.likelihood.score import make_scorer
from jaxdave.io import checkpoint

NUM_SAMPLES = (1, 8, 32, 128)
NUM_SEEDS = 8
BATCH_SIZE = 8


def read_questions(model: checkpoint.Model, name: str, limit: int) -> list[Question]:
    """Build the questions: the answers of the first problems, each after its prompt.

    Args:
        model: the model.
        name: a frozen test set.
        limit: number of problems.

    Returns:
        The questions.
    """
    codec = model.codec
    return [
        Question(
            tuple(codec.encode_prompt(problem.prompt)),
            tuple(codec.encode_text(problem.answer)),
        )
        for problem in problem_sets.load(name)[:limit]
    ]


class LikelihoodBench:
    """A model with questions and the scorer of both.

    Attributes:
        model: the model.
        questions: the questions.
        scorer: computes their log-likelihoods.
    """

    def __init__(self, weights: str, name: str, limit: int):
        """Load a model and its questions.

        Args:
            weights: name or folder of the model.
            name: a frozen test set.
            limit: number of problems.
        """
        self.model = checkpoint.load(weights)
        self.questions = read_questions(self.model, name, limit)
        self.scorer = make_scorer(self.model.config)

    def log_likelihoods(
        self, rule: masks.MaskRule, seed: int = 0, batch_size: int = BATCH_SIZE
    ) -> tuple[np.ndarray, float]:
        """Score all questions.

        Args:
            rule: how masks are drawn.
            seed: seed of the draws.
            batch_size: rows scored at once.

        Returns:
            Log-likelihoods in nats, `[questions]`, and the seconds that they took.
        """
        start = time.perf_counter()
        by_index = dict(
            log_likelihoods(
                self.scorer,
                self.model.params,
                self.questions,
                rule,
                seed=seed,
                batch_size=batch_size,
            )
        )
        values = np.array([by_index[index] for index in range(len(by_index))])
        return values, time.perf_counter() - start

    def measure(
        self, name: str, rule: masks.MaskRule
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Score all questions with several seeds.

        Args:
            name: name of the rule in the table.
            rule: how masks are drawn.

        Returns:
            A row of the table, and the log-likelihoods, `[seeds, questions]`.
        """
        self.log_likelihoods(rule)  # compiles
        runs = [self.log_likelihoods(rule, seed) for seed in range(NUM_SEEDS)]
        values = np.stack([scores for scores, _ in runs])
        tokens = statistics.mean(len(question.target) for question in self.questions)
        seconds = statistics.median(seconds for _, seconds in runs)
        return {
            "rule": name,
            "nats a token": round(float(values.mean()) / tokens, 4),
            "nats an answer": round(float(values.mean()), 3),
            "noise of one answer": round(float(np.median(values.std(axis=0))), 3),
            "ms an answer": round(1e3 * seconds / len(self.questions), 1),
        }, values


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--limit", type=int, default=16, help="answers")
    parser.add_argument("--problems", default="words_long", help="a frozen test set")
    args = parser.parse_args()
    results = report.start_report(args.weights)
    bench = LikelihoodBench(args.weights, args.problems, args.limit)
    bounds = [(f"bound, mc_num={count}", masks.bound(count)) for count in NUM_SAMPLES]
    measured = [bench.measure(*rule) for rule in [*bounds, ("chain", masks.chain)]]
    results.add_table(
        f"{args.limit} answers of {args.problems}", [row for row, _ in measured]
    )
    of_8, of_128 = measured[1][1], measured[3][1]
    few, many = of_8.mean(axis=1), of_128.mean(axis=1)
    # The standard error of the difference of the two means over the seeds.
    error = np.hypot(few.std(), many.std()) / np.sqrt(NUM_SEEDS)
    difference = abs(few.mean() - many.mean())
    alone, _ = bench.log_likelihoods(masks.bound(8), batch_size=1)
    batch_difference = float(np.abs(alone - of_8[0]).max())
    results.claims.extend(
        [
            report.Claim(
                f"8 and 128 samples agree: {difference:.3f} nats apart, "
                f"error {error:.3f}",
                bool(difference <= 4 * error + 1e-3),
            ),
            report.Claim(
                f"a row alone and {BATCH_SIZE} together: {batch_difference:.1e} nats "
                "apart",
                batch_difference < 1e-3,
            ),
        ]
    )
    results.finish(args.out)


if __name__ == "__main__":
    main()

"""Log-likelihoods of answers: the bound, its noise, one order, and what they cost.

python -m bench.likelihood [--weights llada-1m] [--problems words_test]
"""

import statistics
import time

import numpy as np

from bench.harness import common
from jaxdave.demo_tasks import problem_sets
from jaxdave.eval.likelihood import masks
from jaxdave.eval.likelihood.batching import Question, log_likelihoods
from jaxdave.eval.likelihood.score import make_scorer
from jaxdave.io import checkpoint

SAMPLES = (1, 8, 32, 128)
SEEDS = 8
ROWS = 8


def questions(model: checkpoint.Model, name: str, limit: int) -> list[Question]:
    """The answers of the first problems, each after its prompt."""
    codec = model.codec
    return [
        Question(
            tuple(codec.encode_prompt(problem.prompt)),
            tuple(codec.encode_text(problem.answer)),
        )
        for problem in problem_sets.load(name)[:limit]
    ]


class Bench:
    """A model, its questions, and the scorer of both."""

    def __init__(self, weights: str, name: str, limit: int):
        self.model = checkpoint.load(weights)
        self.questions = questions(self.model, name, limit)
        self.scorer = make_scorer(self.model.config)

    def values(self, rule: masks.MaskRule, seed: int = 0, rows: int = ROWS):
        """The log-likelihoods [questions], and the seconds that they took."""
        start = time.perf_counter()
        found = dict(
            log_likelihoods(
                self.scorer,
                self.model.params,
                self.questions,
                rule,
                seed=seed,
                batch_size=rows,
            )
        )
        values = np.array([found[index] for index in range(len(found))])
        return values, time.perf_counter() - start

    def row(self, name: str, rule: masks.MaskRule):
        """A row of the table, and the values of all seeds."""
        self.values(rule)  # compiles
        runs = [self.values(rule, seed) for seed in range(SEEDS)]
        values = np.stack([found for found, _ in runs])
        tokens = statistics.mean(len(one.target) for one in self.questions)
        return {
            "rule": name,
            "nats a token": round(float(values.mean()) / tokens, 4),
            "nats an answer": round(float(values.mean()), 3),
            "noise of one answer": round(float(np.median(values.std(axis=0))), 3),
            "ms an answer": round(
                1e3 * statistics.median(t for _, t in runs) / len(self.questions), 1
            ),
        }, values


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--limit", type=int, default=16, help="answers")
    parser.add_argument("--problems", default="words_long", help="a frozen test set")
    args = parser.parse_args()
    report = common.begin(args.weights)
    bench = Bench(args.weights, args.problems, args.limit)
    rules = [(f"bound, mc_num={count}", masks.bound(count)) for count in SAMPLES]
    made = [bench.row(*rule) for rule in [*rules, ("chain", masks.chain)]]
    report.table(f"{args.limit} answers of {args.problems}", [row for row, _ in made])
    few, many = made[1][1].mean(axis=1), made[3][1].mean(axis=1)
    error = np.hypot(few.std(), many.std()) / np.sqrt(SEEDS)
    away = abs(few.mean() - many.mean())
    alone, _ = bench.values(masks.bound(8), rows=1)
    apart = float(np.abs(alone - made[1][1][0]).max())
    report.claims.extend(
        [
            common.Claim(
                f"8 and 128 samples agree: {away:.3f} nats apart, error {error:.3f}",
                bool(away <= 4 * error + 1e-3),
            ),
            common.Claim(
                f"a row alone and {ROWS} together: {apart:.1e} nats apart", apart < 1e-3
            ),
        ]
    )
    report.finish(args.out)


if __name__ == "__main__":
    main()

"""Evaluate a task of your own: questions, answers, a grader, static against FreeDave.

    python examples/evaluate_own_task.py

The task is a list of pairs. The grader is jaxdave's for mathematics; any function of
(answer, reference) would do. Reported are right answers and tokens per network call,
with 95 % bootstrap intervals over the questions, and that the texts are the same.
"""

import argparse

import jaxdave
from jaxdave.eval.report.metrics import ratio_of_sums
from jaxdave.grading.extract import math_answer
from jaxdave.grading.math_equal import answers_equal

TASK = [
    ("Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?", "7"),
    ("Leo has 9 nuts. Leo eats 2 nuts. How many nuts are left?", "7"),
    ("Nora has 10 cards. Omar gives Nora 6 cards. How many cards are there now?", "16"),
    ("Ana has 12 coins. Then Ana loses 5 coins. How many coins are there now?", "7"),
]


def evaluate(sampler: jaxdave.Sampler) -> list[jaxdave.TextCompletion]:
    """Answer the questions and print a line of figures."""
    answers = sampler.batch([question for question, _ in TASK])
    right = [
        answers_equal(reference, math_answer(answer.text)) is True
        for answer, (_, reference) in zip(answers, TASK, strict=True)
    ]
    tokens = [answer.valid_tokens for answer in answers]
    calls = [answer.nfe.total for answer in answers]
    shown = "{:.2f} [{:.2f}, {:.2f}]".format(*ratio_of_sums(tokens, calls))
    print(f"{sum(right)} of {len(right)} right, {shown} tokens a call")
    return answers


def main() -> None:
    """Evaluate without drafts and with them."""
    parser = argparse.ArgumentParser(description="Evaluate a task of your own.")
    parser.add_argument("--model", default="sdar-1m")
    args = parser.parse_args()
    config = jaxdave.DecodeConfig(draft_steps=8, max_new_tokens=64)
    sampler = jaxdave.Sampler(jaxdave.load(args.model), config)
    print("static:   ", end="")
    plain = evaluate(sampler.undrafted())
    print("FreeDave: ", end="")
    drafted = evaluate(sampler)
    equal = sum(a.text == b.text for a, b in zip(plain, drafted, strict=True))
    print(f"{equal} of {len(TASK)} texts equal")


if __name__ == "__main__":
    main()

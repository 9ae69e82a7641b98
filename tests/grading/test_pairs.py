"""Labelled pairs of reference and answer; a file for each kind of text.

`answers.tsv` and `texts.tsv` were written before the graders were tuned on them, those
called held out after that; the others belong to faults that were found since. The
columns are the kind of pair, its label, the reference, and the answer inside a box, or
a whole text (with ⏎ for a line end).
"""

import importlib.util
from pathlib import Path

import pytest

from jaxdave.grading import extract, mathematics
from jaxdave.grading.math_equal import answers_equal

FOLDER = Path(__file__).parent / "pairs"
ANSWERS = (
    "answers.tsv",
    "held_out_answers.tsv",
    "held_out_answers_2.tsv",
    "more_answers.tsv",
)
IS_RIGHT = {"right": True, "wrong": False}
needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None,
    reason="needs math-verify (pip install math-verify)",
)


def load(name: str) -> list[list[str]]:
    lines = (FOLDER / name).read_text(encoding="utf-8").split("\n")
    return [line.split("\t") for line in lines if line]


def misgraded(name: str, template: str) -> list[tuple[str, ...]]:
    """The rows whose grade is not their label."""
    rows = load(name)
    texts = [template.format(text.replace("⏎", "\n")) for *_, text in rows]
    golds = [gold for _, _, gold, _ in rows]
    verdicts = mathematics.grade_math(golds, texts, extract.math_answer)
    return [
        (*row, verdict.extracted)
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict.correct != IS_RIGHT[row[1]]
    ]


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_spelling_and_value_decide(name: str) -> None:
    results = [(row, answers_equal(*row[2:])) for row in load(name)]
    undecided = [row for row, equal in results if equal is None]
    # A few of functions, roots of sums and powers are left to math-verify.
    assert len(undecided) <= 0.04 * len(results)
    assert not [row for row, e in results if e not in (None, IS_RIGHT[row[1]])]


@needs_math_verify
def test_boxed_answers() -> None:
    wrong = [
        misgraded(name, "$\\boxed{{{}}}$.") for name in (*ANSWERS, "functions.tsv")
    ]
    assert not sum(wrong, [])


@needs_math_verify
@pytest.mark.parametrize("name", ["texts.tsv", "held_out_texts.tsv"])
def test_texts(name: str) -> None:
    assert not misgraded(name, "{}")

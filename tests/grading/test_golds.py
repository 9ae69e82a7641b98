"""Whole benchmarks: every reference answer passes and no wrong answer does."""

import pytest
from helpers.benchmark_data import (
    CODE,
    COUNTS,
    DATA,
    MATH,
    block,
    boxed,
    gold_code,
    needs_data,
    opened,
    right,
    stub,
)

from jaxdave.eval.benchmarks import data
from jaxdave.eval.benchmarks.registry import TASKS


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", MATH)
def test_all_golds_of_mathematics(name: str) -> None:
    task, items = TASKS[name], TASKS[name].items(DATA)
    assert len(right(task, items, boxed)) == COUNTS[name]
    assert not right(task, items, lambda i: boxed(i, "+1"))
    assert not right(task, items, lambda _: "I do not know.")
    if name == "gsm8k":
        assert len(right(task, items, lambda i: i.gold)) == COUNTS[name]


@needs_data
@pytest.mark.slow
def test_math500_by_its_worked_solutions() -> None:
    task, items = TASKS["math500"], TASKS["math500"].items(DATA)
    solutions = [row["solution"] for row in data.load_rows("math500", DATA)]
    assert all(v.correct for v in task.grade(items, tuple(solutions)))


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", CODE)
def test_all_golds_and_stubs_of_code(name: str) -> None:
    task = opened(name)
    items = task.items(DATA)
    # Task 123's own reference takes up to 10 s on a busy machine.
    passed = len(right(task, items, lambda i: block(gold_code(i))))
    assert passed >= COUNTS[name] - (name == "mbpp")
    assert not right(task, items, lambda i: block(stub(i)))
    assert not right(task, items, lambda _: block("import sys\nsys.exit(0)"))


@needs_data
@pytest.mark.slow
def test_all_golds_as_published() -> None:
    task = opened("mbpp", as_published=True)
    golds = {item.question: item.gold for item in opened("mbpp").items(DATA)}

    def gold_block(item):
        return block(golds[item.question.split("\nYour code should")[0]])

    assert 495 <= len(right(task, task.items(DATA), gold_block)) <= 496

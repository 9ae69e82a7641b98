"""The folder of the benchmarks' files, and right and wrong answers to their items."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxdave.eval.benchmarks.registry import open_task, reference
from jaxdave.eval.types import Task
from jaxdave.grading.types import Item

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "gsm8k_test.jsonl").is_file(),
    reason=f"needs the benchmarks' files in {DATA}",
)
CODE = ("mbpp", "humaneval")
MATH = ("gsm8k", "math500", "aime2024")
COUNTS = {"gsm8k": 1319, "math500": 500, "aime2024": 30, "mbpp": 500, "humaneval": 164}
COUNTS |= {"demo-math": 500, "demo-code": 200}


def opened(name: str, **options) -> Task:
    """A benchmark that may run code."""
    return open_task(name, allow_code_execution=True, **options)


def right(
    task: Task, items: tuple[Item, ...], answer: Callable[[Item], str]
) -> list[str]:
    """The ids of the items that are right when `answer` gives their texts."""
    verdicts = task.grade(items, tuple(map(answer, items)))
    return [item.id for item, v in zip(items, verdicts, strict=True) if v.correct]


def block(code: str) -> str:
    """An answer with the code in a block."""
    return f"Here it is.\n```python\n{code}\n```\nThat is all."


def gold_code(item: Item) -> str:
    """The whole reference program."""
    return item.question + item.gold if "entry_point" in item.data else item.gold


def stub(item: Item) -> str:
    """The same functions, with nothing in them."""
    names = re.findall(r"def (\w+)", gold_code(item))
    return "\n".join(f"def {name}(*_, **__):\n    pass" for name in names)


def boxed(item: Item, more: str = "") -> str:
    """An answer that ends in the boxed reference, followed by `more`."""
    return f"So it is $\\boxed{{{reference(item)}{more}}}$."

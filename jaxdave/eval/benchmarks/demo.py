"""The demo's own benchmarks, and the protocol that its models were trained for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import extract_number, is_correct
from jaxdave.demo_tasks.problem import Problem
from jaxdave.eval.types import Preset, Prompt, Task
from jaxdave.grading.types import Item, Verdict

MAX_NEW_TOKENS = 64
"""Tokens for an answer; the longest reference of the test sets has 48."""


def _item_reader(name: str, problem_set: str) -> Callable[[Path | None], tuple]:
    """The `items` function of a task whose problems are in the package."""

    def read(_: Path | None) -> tuple[Item, ...]:
        return tuple(
            Item(
                id=f"{name}-{number}",
                question=problem.prompt,
                gold=problem.answer,
                data={"family": problem.family, "key": problem.key},
            )
            for number, problem in enumerate(problem_sets.load(problem_set))
        )

    return read


def _problem(item: Item) -> Problem:
    return Problem(item.data["family"], item.question, item.gold, item.data["key"])


def _grade(items: tuple[Item, ...], texts: tuple[str, ...]) -> tuple[Verdict, ...]:
    return tuple(_verdict(item, text) for item, text in zip(items, texts, strict=True))


def _verdict(item: Item, text: str) -> Verdict:
    is_number = item.data["family"] == "words"
    extracted = str(extract_number(text)) if is_number else text
    right = is_correct(_problem(item), text)
    return Verdict(right, extracted, "" if right else "not the reference answer")


# demo-code runs without --allow-code-execution: its grader runs a text only after it
# has passed a list of allowed syntax and names (`jaxdave.demo_tasks.grade`).
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "demo-math": Task(
            name="demo-math",
            kind="math",
            items=_item_reader("demo-math", "words_test"),
            grade=_grade,
        ),
        "demo-code": Task(
            name="demo-code",
            kind="code",
            items=_item_reader("demo-code", "lists_test"),
            grade=_grade,
        ),
    }
)
"""The demo's benchmarks by name."""


def _prompt(family: str, task: Task, item: Item) -> Prompt:
    return Prompt([{"role": "user", "content": item.question}])


def _settings(family: str, task: Task) -> Mapping[str, Any]:
    # A number and not "auto", so that a second run makes the same calls.
    return {"max_new_tokens": MAX_NEW_TOKENS, "draft_steps": 8, "threshold": 0.9}


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {"demo": Preset("demo", _prompt, _settings)}
)
"""The demo's protocol by name."""

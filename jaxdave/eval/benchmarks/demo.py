"""The demo's own benchmarks, and the protocol that its models were trained for."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import extract_number, is_correct
from jaxdave.demo_tasks.problem import Problem
from jaxdave.eval.types import Preset, Prompt, Task
from jaxdave.grading.types import Item, Verdict

ROOM = 64
"""Tokens for an answer; the longest of the frozen sets has 48."""


def _items(name: str, source: str):
    def read(_: Path | None) -> tuple[Item, ...]:
        return tuple(
            Item(
                f"{name}-{number}",
                p.prompt,
                p.answer,
                {"family": p.family, "key": p.key},
            )
            for number, p in enumerate(problem_sets.load(source))
        )

    return read


def _problem(item: Item) -> Problem:
    return Problem(item.data["family"], item.question, item.gold, item.data["key"])


def _graded(items: tuple[Item, ...], texts: tuple[str, ...]) -> tuple[Verdict, ...]:
    return tuple(_verdict(item, text) for item, text in zip(items, texts, strict=True))


def _verdict(item: Item, text: str) -> Verdict:
    is_number = item.data["family"] == "words"
    extracted = str(extract_number(text)) if is_number else text
    right = is_correct(_problem(item), text)
    return Verdict(right, extracted, "" if right else "not the reference answer")


# No --allow-code-execution is needed for demo-code: what is run has passed a list
# of allowed syntax and names (`jaxdave.demo_tasks.grade.is_allowed`).
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "demo-math": Task(
            "demo-math", "math", _items("demo-math", "words_test"), _graded
        ),
        "demo-code": Task(
            "demo-code", "code", _items("demo-code", "lists_test"), _graded
        ),
    }
)


def _prompt(family: str, task: Task, item: Item) -> Prompt:
    return Prompt([{"role": "user", "content": item.question}])


def _settings(family: str, task: Task) -> Mapping[str, Any]:
    # A number and not "auto", so that a second run makes the same calls.
    return {"max_new_tokens": ROOM, "draft_steps": 8, "threshold": 0.9}


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {"demo": Preset("demo", _prompt, _settings)}
)

"""Grading code: the program and its tests in the sandbox, several side by side."""

import builtins
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jaxdave.grading import extract
from jaxdave.grading.types import Item, Verdict
from jaxdave.sandbox.launcher import run_program

MOST_WORKERS = 8


class Program(NamedTuple):
    """What is run. kept: builtin names that the program is to define."""

    source: str
    tests: str
    kept: Collection[str] = ()
    seconds: float = 10.0


def grade(
    items: Sequence[Item],
    texts: Sequence[str],
    read: Callable[[Item, str], str],
    assemble: Callable[[Item, str], Program],
) -> tuple[Verdict, ...]:
    """The verdicts on texts, in their order.

    read(item, text): the code of a text. assemble(item, code): what is run of it.
    """
    codes = [read(item, text) for item, text in zip(items, texts, strict=True)]
    programs = [
        assemble(item, code) if code.strip() else None
        for item, code in zip(items, codes, strict=True)
    ]
    with ThreadPoolExecutor(min(MOST_WORKERS, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(_verdict, programs, codes))


def _verdict(program: Program | None, code: str) -> Verdict:
    if program is None:
        return Verdict(False, code, "no code")
    outcome = run_program(
        program.source,
        tests=program.tests,
        kept=program.kept,
        seconds=program.seconds,
    )
    return Verdict(outcome.passed, code, "" if outcome.passed else outcome.reason)


def mbpp(item: Item, code: str, seconds: float = 10.0) -> Program:
    """The program, then the setup code, which may need it, and the asserts."""
    tests = "\n".join((item.data["setup"], *item.data["tests"]))
    return Program(code, tests, _builtin_names(item.gold), seconds)


def humaneval(item: Item, code: str, seconds: float = 10.0) -> Program:
    """The prompt, then the program, which may be a body or all of it; `check` of it.

    A program that stands alone comes alone: the prompt's own function would be in its
    place where it forgot to define one.
    """
    entry = item.data["entry_point"]
    alone = _defines(code, entry)
    source = f"{_before(item.question, entry) if alone else item.question}\n{code}"
    tests = f"{item.data['test']}\ncheck({entry})"
    return Program(source, tests, (), seconds)


def published(item: Item, code: str, seconds: float = 3.0) -> Program:
    """As the paper's evaluation: one text, in which SystemExit counts as a pass."""
    whole = "\n".join((code, *item.data["tests"]))
    source = f"try:\n    exec({whole!r}, globals())\nexcept SystemExit:\n    pass"
    return Program(source, "", (), seconds)


def _defines(code: str, name: str) -> bool:
    return any(
        line.startswith((f"def {name}(", f"def {name} (")) for line in code.splitlines()
    )


def _before(prompt: str, entry: str) -> str:
    """What a prompt says before the function that is asked for."""
    return prompt[: prompt.rindex(f"def {entry}(")]


def _builtin_names(code: str) -> frozenset[str]:
    """The builtin names that a reference defines."""
    tree = extract.parsed(code)
    defined = {getattr(node, "name", "") for node in (tree.body if tree else ())}
    return frozenset(defined & set(dir(builtins)))

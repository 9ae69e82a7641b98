"""Grading of code: programs run with their tests in the sandbox, several at a time.

One `assemble_*` function for each benchmark puts an extracted code and the item's tests
together into the program that is run.
"""

import ast
import builtins
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jaxdave.grading import extract
from jaxdave.grading.types import Item, Verdict
from jaxdave.sandbox.launcher import run_program

MAX_WORKERS = 8


class CandidateProgram(NamedTuple):
    """A program and the tests that decide if it is correct.

    Attributes:
        source: The code of the program.
        tests: Code that runs after `source`, with its definitions and assertions about
            them; empty if `source` has its own.
        redefined_builtins: Names of builtins that the program is asked to define; the
            tests see its definitions of these, and Python's of all others.
        seconds: Time limit for both parts together.
    """

    source: str
    tests: str
    redefined_builtins: Collection[str] = ()
    seconds: float = 10.0


def grade_programs(
    items: Sequence[Item],
    texts: Sequence[str],
    extract_code: Callable[[Item, str], str],
    assemble: Callable[[Item, str], CandidateProgram],
) -> tuple[Verdict, ...]:
    """Grade texts that hold programs.

    Programs run in the sandbox, which is not a security boundary: grade the texts of an
    untrusted model inside a container.

    Args:
        items: The questions.
        texts: The texts to grade, one for each item.
        extract_code: Maps an item and a text to the code in it.
        assemble: Maps an item and a code that is not blank to the program that is run,
            e.g. `assemble_mbpp`.

    Returns:
        One verdict a text, in their order; `extracted` is the code.

    Raises:
        ValueError: If `items` and `texts` differ in length.

    Example:
        >>> data = {"setup": "", "tests": ["assert f(1) == 2"]}
        >>> item = Item("1", "Add one.", gold="", data=data)
        >>> texts = ["def f(x): return x + 1", "def f(x): return x"]
        >>> verdicts = grade_programs(
        ...     [item, item], texts, lambda item, text: text, assemble_mbpp
        ... )
        >>> [verdict.correct for verdict in verdicts]
        [True, False]
    """
    codes = [extract_code(item, text) for item, text in zip(items, texts, strict=True)]
    programs = [
        assemble(item, code) if code.strip() else None
        for item, code in zip(items, codes, strict=True)
    ]
    # Threads suffice: each of them only waits for a process.
    with ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(_verdict, programs, codes))


def _verdict(program: CandidateProgram | None, code: str) -> Verdict:
    """Run a program; None stands for a text without code."""
    if program is None:
        return Verdict(False, code, "no code")
    outcome = run_program(
        program.source,
        tests=program.tests,
        redefined_builtins=program.redefined_builtins,
        seconds=program.seconds,
    )
    return Verdict(outcome.passed, code, "" if outcome.passed else outcome.reason)


def assemble_mbpp(item: Item, code: str, seconds: float = 10.0) -> CandidateProgram:
    """Assemble an MBPP program: the code, then the item's setup code and assertions.

    The setup code comes after the program, as some of it uses what the program defines.

    Args:
        item: An item with the data "setup" (code) and "tests" (list of assertions).
        code: The extracted code.
        seconds: Time limit.

    Returns:
        The program to run.
    """
    tests = "\n".join((item.data["setup"], *item.data["tests"]))
    return CandidateProgram(code, tests, _defined_builtins(item.gold), seconds)


def assemble_humaneval(
    item: Item, code: str, seconds: float = 10.0
) -> CandidateProgram:
    """Assemble a HumanEval program: the prompt and the code, then a call of `check`.

    The code may be the body that continues the prompt, or a whole program. A whole
    program replaces the prompt's function and keeps only the imports before it: were
    the prompt's own definition left in, a program that forgets to define the function
    could run that one.

    Args:
        item: An item whose question is the prompt, with the data "entry_point" (name of
            the function) and "test" (code that defines `check`).
        code: The extracted code.
        seconds: Time limit.

    Returns:
        The program to run.
    """
    entry = item.data["entry_point"]
    prompt = item.question
    if _defines_function(code, entry):
        prompt = prompt[: prompt.rindex(f"def {entry}(")]
    tests = f"{item.data['test']}\ncheck({entry})"
    first, rest = _split_future_imports(code)
    return CandidateProgram(
        source=f"{first}{prompt}\n{rest}",
        tests=tests,
        redefined_builtins=(),
        seconds=seconds,
    )


def assemble_published(item: Item, code: str, seconds: float = 3.0) -> CandidateProgram:
    """Assemble a program as the paper's evaluation does, with its defect.

    Code and tests are one text, so that a program that exits early skips its tests; as
    SystemExit counts as a pass there, it passes.

    Args:
        item: An item with the data "tests" (list of assertions).
        code: The extracted code.
        seconds: Time limit.

    Returns:
        The program to run.

    Source:
        The evaluation code of FreeDave (arXiv 2510.00294).
    """
    whole = "\n".join((code, *item.data["tests"]))
    source = f"try:\n    exec({whole!r}, globals())\nexcept SystemExit:\n    pass"
    return CandidateProgram(
        source=source, tests="", redefined_builtins=(), seconds=seconds
    )


def _split_future_imports(code: str) -> tuple[str, str]:
    """Move `from __future__` imports out of a code, as they must be a program's first.

    Lines keep their places, so that a program's errors name the right ones.
    """
    tree = extract.parse_code(code)
    lines = code.split("\n")
    first: list[str] = []
    for node in tree.body if tree else ():
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            first.append(f"{ast.unparse(node)}\n")
            last = node.end_lineno or node.lineno
            lines[node.lineno - 1 : last] = [""] * (last - node.lineno + 1)
    return "".join(first), "\n".join(lines)


def _defines_function(code: str, name: str) -> bool:
    """True if the code defines a top-level function of this name.

    By lines and not by syntax, since the code of a model need not parse.
    """
    return any(
        line.startswith((f"def {name}(", f"def {name} (")) for line in code.splitlines()
    )


def _defined_builtins(code: str) -> frozenset[str]:
    """The names of builtins that a reference solution defines at its top level."""
    tree = extract.parse_code(code)
    names = {getattr(node, "name", "") for node in (tree.body if tree else ())}
    return frozenset(names & set(dir(builtins)))

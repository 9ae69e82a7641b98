"""The benchmarks by name.

`TASKS` has each in its usual form; its code tasks refuse to grade. `open_task` opens
one as a protocol has it, and with permission to run what a model wrote.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxdave.eval.benchmarks import demo, items
from jaxdave.eval.deviations import check_published
from jaxdave.eval.types import Task
from jaxdave.grading import extract, math_equal, mathematics, programs, quantities
from jaxdave.grading.types import Item, Verdict

Items = tuple[Item, ...]
Texts = tuple[str, ...]
Verdicts = tuple[Verdict, ...]

MATH = {
    "gsm8k": items.gsm8k,
    "math500": items.math500,
    "aime2024": items.aime2024,
}
"""Mathematics: by name, the function that makes items."""
CODE = {
    "mbpp": (items.mbpp, programs.assemble_mbpp),
    "humaneval": (items.humaneval, programs.assemble_humaneval),
}
"""Code: by name, the functions that make items and programs to run."""
NAMES = (*MATH, *CODE, *demo.TASKS)


def open_task(
    name: str,
    *,
    preset: str = "paper-2025",
    as_published: bool = False,
    allow_code_execution: bool = False,
) -> Task:
    """Return a benchmark as a protocol has it.

    Example:
        >>> open_task("demo-math").items(None)[0].id
        'demo-math-0'

    Args:
        name: One of `NAMES`.
        preset: Name of the protocol, which decides how answers are read and, for MBPP,
            which items there are.
        as_published: True for the files and rules of the paper's evaluation, with their
            defects.
        allow_code_execution: True to run code that a model wrote. Otherwise `grade` of
            a task that needs it raises ValueError.

    Returns:
        The benchmark.

    Raises:
        ValueError: The name is unknown, or the protocol has no published form.
    """
    if name not in NAMES:
        raise ValueError(f"task {name!r} is unknown; use one of {', '.join(NAMES)}")
    if name in demo.TASKS:
        return demo.TASKS[name]
    check_published(preset, as_published)
    file, make_item = _file_and_maker(name, preset, as_published)
    read = functools.partial(items.read_items, file, make_item)
    if name in MATH:
        extractor = extract.boxed_answer if as_published else extract.math_answer
        grade = functools.partial(_grade_math, extractor)
        return Task(name=name, kind="math", items=read, grade=grade)
    grade = (
        functools.partial(_grade_code, name, preset, as_published)
        if allow_code_execution
        else functools.partial(_refuse, name)
    )
    return Task(name=name, kind="code", items=read, grade=grade, runs_code=True)


def _file_and_maker(name: str, preset: str, as_published: bool):
    """The key of a benchmark's file, and the function that makes items of its rows."""
    if as_published:
        return f"genverse/{name}", items.published(name)
    if (name, preset) == ("mbpp", "sdar"):
        return "mbpp-sanitized", items.mbpp_sanitized
    return name, MATH[name] if name in MATH else CODE[name][0]


def reference(item: Item) -> str:
    """Return the reference answer of a mathematical item.

    Args:
        item: Item whose `gold` is an answer, or a worked solution that ends in
            "#### answer".

    Returns:
        The answer alone.
    """
    return extract.answer_after_hashes(item.gold) or item.gold


def _grade_math(
    extractor: Callable[[str], str], items: Items, texts: Texts
) -> Verdicts:
    golds = [reference(item) for item in items]
    verdicts = mathematics.grade_math(golds, texts, extractor)
    return tuple(map(_in_asked_scale, items, golds, verdicts))


def _in_asked_scale(item: Item, gold: str, verdict: Verdict) -> Verdict:
    """Accept `7 dozen` for 7 where the question is how many dozens there are."""
    number = quantities.without_asked_scale(item.question, verdict.extracted)
    if verdict.correct or number == verdict.extracted:
        return verdict
    right = math_equal.answers_equal(gold, number)
    return Verdict(True, verdict.extracted) if right else verdict


def _grade_code(
    name: str, preset: str, as_published: bool, items: Items, texts: Texts
) -> Verdicts:
    assemble = programs.assemble_published if as_published else CODE[name][1]
    extractor = code_extractor(name, preset, as_published=as_published)
    return programs.grade_programs(items, texts, extractor, assemble)


def _refuse(name: str, _: Items, __: Texts) -> Verdicts:
    raise ValueError(
        f"task {name} runs code that the model writes; say --allow-code-execution "
        "(allow_code_execution=True), best inside a container"
    )


def code_extractor(
    name: str, preset: str, *, as_published: bool = False
) -> Callable[[Item, str], str]:
    """Return the function that finds the code in an answer, as a protocol does.

    Which part of an answer counts is the protocol's; what a fence is, and that commands
    for a shell are no program, is read alike for all. The regular expression of the
    paper's evaluation is kept for its published form.

    Args:
        name: Name of the benchmark.
        preset: Name of the protocol.
        as_published: True for the defects of the paper's evaluation.

    Returns:
        Function (item, answer text) -> code.
    """
    if as_published:
        return _published_block
    if preset.startswith("paper-2025") or preset == "dllm-rl":
        return _last_block
    if (preset, name) == ("llada", "mbpp"):
        return _between_marks
    if (preset, name) == ("dream", "humaneval"):
        return _reachable_code
    return _first_block


def _published_block(_: Item, text: str) -> str:
    return extract.published_python_block(text)


def _last_block(_: Item, text: str) -> str:
    return extract.last_python_block(text)


def _first_block(_: Item, text: str) -> str:
    return extract.first_code_block(text)


def _between_marks(_: Item, text: str) -> str:
    return extract.begin_done_block(text)


def _reachable_code(item: Item, text: str) -> str:
    return extract.reachable_code(
        extract.first_code_block(text), item.data["entry_point"]
    )


TASKS: Mapping[str, Task] = MappingProxyType({name: open_task(name) for name in NAMES})
"""Every benchmark in its usual form, by name."""

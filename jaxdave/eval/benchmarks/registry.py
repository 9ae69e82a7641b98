"""The benchmarks by name.

`TASKS` has each in its usual form; its code tasks refuse to grade. `open_task` opens
one as a protocol has it, and with leave to run what a model wrote.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxdave.eval.benchmarks import demo, items
from jaxdave.eval.protocols.registry import check_published
from jaxdave.eval.types import Task
from jaxdave.grading import extract, mathematics, programs
from jaxdave.grading.types import Item, Verdict

Items = tuple[Item, ...]
Texts = tuple[str, ...]
Verdicts = tuple[Verdict, ...]

MATH = {
    "gsm8k": items.gsm8k,
    "math500": items.math500,
    "aime2024": items.aime2024,
}
CODE = {
    "mbpp": (items.mbpp, programs.assemble_mbpp),
    "humaneval": (items.humaneval, programs.assemble_humaneval),
}
NAMES = (*MATH, *CODE, *demo.TASKS)


def open_task(
    name: str,
    *,
    preset: str = "paper-2025",
    as_published: bool = False,
    allow_code_execution: bool = False,
) -> Task:
    """A benchmark as a protocol has it.

    preset: whose way of reading answers, and whose selection of items. as_published:
    the files and rules of the paper's evaluation, with their defects. Without
    allow_code_execution `grade` of a task that runs code raises ValueError.
    Raises ValueError for an unknown name, and for a protocol without a published form.
    """
    if name not in NAMES:
        raise ValueError(f"task {name!r} is unknown; use one of {', '.join(NAMES)}")
    if name in demo.TASKS:
        return demo.TASKS[name]
    check_published(preset, as_published)
    source, make = _source(name, preset, as_published)
    opened = functools.partial(items.read, source, make)
    if name in MATH:
        read = extract.boxed_answer if as_published else extract.math_answer
        return Task(name, "math", opened, functools.partial(_grade_math, read))
    graded = functools.partial(_grade_code, name, preset, as_published)
    refused = functools.partial(_refuse, name)
    return Task(name, "code", opened, graded if allow_code_execution else refused, True)


def _source(name: str, preset: str, as_published: bool):
    if as_published:
        return f"genverse/{name}", items.published(name)
    if (name, preset) == ("mbpp", "sdar"):
        return "mbpp-sanitized", items.mbpp_sanitized
    return name, MATH[name] if name in MATH else CODE[name][0]


def reference(item: Item) -> str:
    """The answer of a mathematical item: of a worked one, what stands after `####`."""
    return extract.answer_after_hashes(item.gold) or item.gold


def _grade_math(read: Callable[[str], str], asked: Items, texts: Texts) -> Verdicts:
    return mathematics.grade_math([reference(item) for item in asked], texts, read)


def _grade_code(
    name: str, preset: str, as_published: bool, asked: Items, texts: Texts
) -> Verdicts:
    assemble = programs.assemble_published if as_published else CODE[name][1]
    return programs.grade_programs(asked, texts, reader(name, preset), assemble)


def _refuse(name: str, _: Items, __: Texts) -> Verdicts:
    raise ValueError(
        f"task {name} runs code that the model writes; say --allow-code-execution "
        "(allow_code_execution=True), best inside a container"
    )


def reader(name: str, preset: str) -> Callable[[Item, str], str]:
    """What of a text is the code, as a protocol reads it."""
    if preset.startswith("paper-2025") or preset == "dllm-rl":
        return lambda _, text: extract.last_python_block(text)
    if (preset, name) == ("llada", "mbpp"):
        return lambda _, text: extract.begin_done_block(text)
    if (preset, name) == ("dream", "humaneval"):
        return _needed
    return lambda _, text: extract.first_code_block(text)


def _needed(item: Item, text: str) -> str:
    return extract.reachable_code(
        extract.first_code_block(text), item.data["entry_point"]
    )


TASKS: Mapping[str, Task] = MappingProxyType({name: open_task(name) for name in NAMES})

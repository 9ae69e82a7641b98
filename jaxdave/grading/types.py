"""The two records that every grader speaks in: a question and the grade of an answer.

Both are plain tuples of JSON types, so that they can be sent to other processes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Item(NamedTuple):
    """One question of a benchmark.

    Attributes:
        id: Unique within its task and the same in every run.
        question: The question as the benchmark's file has it, without a prompt format.
        gold: The reference answer as the benchmark's file has it; it may be a worked
            solution.
        data: What the grader needs in addition (tests, entry point), in JSON types.
    """

    id: str
    question: str
    gold: str
    data: Mapping[str, Any]


class Verdict(NamedTuple):
    """The grade of one text.

    Attributes:
        correct: True if the answer counts as correct.
        extracted: The part of the text that was taken for the answer; empty if there
            was none.
        reason: Why the answer is wrong; empty where it is correct.
    """

    correct: bool
    extracted: str
    reason: str = ""

"""What a benchmark is made of; every other module of this package speaks in these."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Item(NamedTuple):
    """One question of a benchmark.

    id: unique in its task, and the same in every run. gold: the reference answer as its
    file has it. data: what the grader needs beside it (tests, entry point), JSON types.
    """

    id: str
    question: str
    gold: str
    data: Mapping[str, Any]


class Verdict(NamedTuple):
    """A grade. extracted: what was taken for the answer; reason: why it is wrong."""

    right: bool
    extracted: str
    reason: str = ""

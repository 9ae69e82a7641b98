"""One problem, and the rule that splits problems into training and test."""

import dataclasses
import hashlib
import json
from typing import Any, Literal

TEST_PERCENT = 3

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt, its reference answer, and the skeleton that the split goes by.

    family: "words" or "lists". key: the problem without its wording, so that the same
    chain of operations told with other names falls on the same side of the split.
    data: what a report may want to group by, in JSON types.
    """

    family: str
    prompt: str
    answer: str
    key: str
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


def split_of(key: str) -> Split:
    """The side of a key: "test" for about 3 % of all keys, fixed by sha256."""
    digest = hashlib.sha256(key.encode()).digest()
    return "test" if int.from_bytes(digest[:4]) % 100 < TEST_PERCENT else "train"


def to_line(problem: Problem) -> str:
    """One line of JSON, without the line end."""
    fields = dataclasses.asdict(problem)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def from_line(line: str) -> Problem:
    """The problem of one line that `to_line` wrote."""
    return Problem(**json.loads(line))

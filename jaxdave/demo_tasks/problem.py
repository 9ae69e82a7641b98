"""The record of one problem, and the split of problems into training and test.

The split goes by a hash of the problem's content without its wording, so that it needs
no list of test problems and holds for every problem that could be generated.
"""

import dataclasses
import hashlib
import json
from typing import Any, Literal

TEST_PERCENT = 3

Split = Literal["train", "test"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt with its reference answer.

    Attributes:
        family: "words" or "lists".
        prompt: The text that a model is asked.
        answer: The reference answer, as a model should write it.
        key: The problem without its wording. The split goes by it, so that the same
            chain of operations about other people falls on the same side.
        data: What a report may group by, in JSON types.
    """

    # The names of the fields are the keys of the JSON lines in `data/`.
    family: str
    prompt: str
    answer: str
    key: str
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


def split_of(key: str) -> Split:
    """Return the side of the split that a key is on.

    Args:
        key: `Problem.key`.

    Returns:
        "test" for about 3 % of all keys, fixed by their sha256; else "train".

    Example:
        >>> split_of("words 3 add4 halve2")
        'train'
    """
    digest = hashlib.sha256(key.encode()).digest()
    return "test" if int.from_bytes(digest[:4]) % 100 < TEST_PERCENT else "train"


def to_line(problem: Problem) -> str:
    """Write a problem as one line of JSON.

    Args:
        problem: The problem.

    Returns:
        The line, without a line end.
    """
    fields = dataclasses.asdict(problem)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def from_line(line: str) -> Problem:
    """Read a problem from one line of JSON.

    Args:
        line: A line that `to_line` wrote.

    Returns:
        The problem.

    Example:
        >>> problem = Problem("words", "How many?", "#### 3", "words 3")
        >>> from_line(to_line(problem)) == problem
        True
    """
    return Problem(**json.loads(line))

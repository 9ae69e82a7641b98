"""Types of a benchmark and of an evaluation protocol, shared by this package."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxdave.eval.deviations import ProtocolDeviations
from jaxdave.grading.types import Item, Verdict
from jaxdave.io.chat_template import Messages


class Prompt(NamedTuple):
    """The input of a model for one question.

    Attributes:
        content: A conversation, which the chat template of the model is applied to, or
            a text that holds its markup already.
        answer_prefix: Opening of the answer, appended to the prompt. Graded is this
            text followed by what the model writes.
        max_tokens: Number of token ids that are kept of both, from the front; None
            keeps all of them.
    """

    content: Messages | str
    answer_prefix: str = ""
    max_tokens: int | None = None


class Task(NamedTuple):
    """A benchmark.

    Attributes:
        name: Name on the command line, such as "gsm8k".
        kind: "math" or "code"; decides the table that its results are printed in.
        items: Function (data folder or None) -> all items in the order of the file.
            Raises ValueError where the file is missing or is not the published one.
        grade: Function (items, answer texts) -> verdicts in the same order. It may
            start processes.
        runs_code: True if grading executes code that the model wrote.
    """

    name: str
    kind: Literal["math", "code"]
    items: Callable[[Path | None], tuple[Item, ...]]
    grade: Callable[[tuple[Item, ...], tuple[str, ...]], tuple[Verdict, ...]]
    runs_code: bool = False


def _no_deviations(family: str, task: Task) -> ProtocolDeviations:
    del family, task
    return ProtocolDeviations()


class Preset(NamedTuple):
    """A published evaluation protocol.

    In all three functions `family` is that of `ModelConfig.family`.

    Attributes:
        name: Name on the command line, such as "paper-2025".
        prompt: Function (family, task, item) -> prompt of that item. Raises ValueError
            where the protocol has none.
        settings: Function (family, task) -> keyword arguments of `DecodeConfig`
            (`max_new_tokens`, `block_length`, `temperature`, `top_k`, `top_p`, `cache`,
            `draft_steps`, ...) and `threshold` for the methods that take one. A key
            that is absent is left to the model's default.
        deviations: Function (family, task) -> what the protocol does besides its
            settings.
    """

    name: str
    prompt: Callable[[str, Task, Item], Prompt]
    settings: Callable[[str, Task], Mapping[str, Any]]
    deviations: Callable[[str, Task], ProtocolDeviations] = _no_deviations

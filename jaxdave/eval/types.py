"""What a benchmark is made of; every other module of this package speaks in these."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxdave.eval.protocols.deviations import Habits
from jaxdave.grading.types import Item, Verdict
from jaxdave.io.tokenizer import Messages


class Prompt(NamedTuple):
    """What a model is asked: a conversation, or a text with the markup in it.

    prefill: the opening of the answer; what is graded is this and all that follows.
    longest: token ids that are kept of all this, from the front; None: every one.
    """

    asked: Messages | str
    prefill: str = ""
    longest: int | None = None


class Task(NamedTuple):
    """A benchmark.

    items(data folder or None) -> all items, in the file's order; raises ValueError
    where the file is absent or another. grade(items, texts) -> verdicts in their order;
    it may use processes. runs_code: grading runs what the model wrote.
    """

    name: str
    kind: Literal["math", "code"]
    items: Callable[[Path | None], tuple[Item, ...]]
    grade: Callable[[tuple[Item, ...], tuple[str, ...]], tuple[Verdict, ...]]
    runs_code: bool = False


class Preset(NamedTuple):
    """A published protocol.

    prompt(family, task, item): what is asked; family: as in `ModelConfig.family`.
    settings(family, task): keywords for the decoders (`max_new_tokens`, `block_length`,
    `temperature`, `top_k`, `top_p`, `cache`), and `threshold`, `draft_steps` and
    `tokens_per_step` for those that take them; a key left out is the model's own.
    habits(family, task): all that it does beside.
    """

    name: str
    prompt: Callable[[str, Task, Item], Prompt]
    settings: Callable[[str, Task], Mapping[str, Any]]
    habits: Callable[[str, Task], Habits] = lambda family, task: Habits()

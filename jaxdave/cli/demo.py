"""`jaxdave demo`: static and FreeDave side by side on held-out problems."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxdave.engine.decode_config import DecodeConfig, LoadConfig

if TYPE_CHECKING:
    from jaxdave.demo_tasks.problem import Problem
    from jaxdave.engine.results import Completion, TextCompletion
    from jaxdave.engine.sampler import Sampler
    from jaxdave.io.tokenizer import Codec


MAX_NEW_TOKENS = 128
_EARLY, _LATE = (80, 140, 255), (255, 190, 60)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One problem decoded both ways.

    Attributes:
        problem: The problem.
        static: Its answer without drafts.
        freedave: Its answer with drafts.
        is_right: The answer is right.
    """

    problem: "Problem"
    static: "TextCompletion"
    freedave: "TextCompletion"
    is_right: bool

    @property
    def is_same(self) -> bool:
        """True if both texts are equal, token for token."""
        return self.static.token_ids == self.freedave.token_ids


def run(
    load: LoadConfig,
    config: DecodeConfig,
    count: int,
    console: Console | None = None,
) -> None:
    """Decode held-out problems of both families and print the comparison.

    Args:
        load: The model.
        config: What decides the decode.
        count: How many problems.
        console: Where to print; None: stdout.

    Raises:
        ValueError: The model, a setting or the count is bad.
    """
    problems = select_problems(count)
    from jaxdave.engine.sampler import Sampler
    from jaxdave.io import checkpoint

    model = checkpoint.load(load.model, dtype=load.dtype, quantize=load.quantize)
    room = min(MAX_NEW_TOKENS, model.max_new_tokens)
    sampler = Sampler(model, dataclasses.replace(config, max_new_tokens=room))
    console = console or Console(highlight=False)
    with console.status("decoding"):
        pairs = [decode(sampler, problem) for problem in problems]
    for pair in pairs:
        console.print(_panel(model.codec, pair))
    console.print(_table(pairs))
    console.print(_legend())
    console.print(summary(pairs), soft_wrap=True)


def select_problems(count: int) -> list["Problem"]:
    """The first held-out problems, at least half of them word problems.

    Args:
        count: How many.

    Returns:
        The problems.

    Raises:
        ValueError: The count is below 1 or above what there is.
    """
    from jaxdave.demo_tasks import problem_sets

    words, lists = problem_sets.load("words_test"), problem_sets.load("lists_test")
    max_count = 2 * min(len(words), len(lists))
    if not 1 <= count <= max_count:
        raise ValueError(f"problems={count} must be in 1..{max_count}; try 5")
    return words[: count - count // 2] + lists[: count // 2]


def decode(sampler: "Sampler", problem: "Problem") -> Pair:
    """One problem without drafts and with them.

    Args:
        sampler: The one with drafts.
        problem: The problem.

    Returns:
        Both answers, graded.
    """
    from jaxdave.demo_tasks.grade import is_correct

    static = sampler.undrafted()(problem.prompt)
    freedave = sampler(problem.prompt)
    return Pair(problem, static, freedave, is_correct(problem, freedave.text))


def coloured(codec: "Codec", completion: "Completion") -> Text:
    """The answer, each token in the colour of the call that committed it.

    Args:
        codec: Decodes the ids.
        completion: The answer.

    Returns:
        The coloured text.
    """
    from jaxdave.engine.sampler import split_text

    last = max(completion.committed_at, default=0) or 1
    pieces = split_text(codec, completion.token_ids)
    text = Text()
    for piece, call in zip(pieces, completion.committed_at, strict=True):
        text.append(piece, style=_colour(call / last))
    return text


def summary(pairs: Sequence[Pair]) -> str:
    """One line: what was equal, right and saved.

    Args:
        pairs: All problems.

    Returns:
        The line.
    """
    same = sum(pair.is_same for pair in pairs)
    right = sum(pair.is_right for pair in pairs)
    before = sum(pair.static.nfe.total for pair in pairs)
    after = sum(pair.freedave.nfe.total for pair in pairs)
    slow = sum(pair.static.seconds for pair in pairs)
    quick = sum(pair.freedave.seconds for pair in pairs)
    return (
        f"Texts equal: {same} of {len(pairs)}. Right: {right} of {len(pairs)}. "
        f"Calls: {before} static, {after} FreeDave ({before / after:.2f} times fewer). "
        f"Seconds: {slow:.2f} and {quick:.2f}, both in the program that carries drafts."
    )


def _panel(codec: "Codec", pair: Pair) -> Text:
    prompt = Text(f"{pair.problem.prompt}\n", style="bold")
    return prompt + coloured(codec, pair.freedave.completion) + Text("\n")


def _table(pairs: Sequence[Pair]) -> Table:
    table = Table()
    names = ("problem", "equal", "right", "calls", "FreeDave", "seconds", "FreeDave")
    for name in names:
        table.add_column(name, justify="left" if name == "problem" else "right")
    for number, pair in enumerate(pairs, start=1):
        static, freedave = pair.static, pair.freedave
        table.add_row(
            f"{number} {pair.problem.family}",
            "yes" if pair.is_same else "NO",
            "right" if pair.is_right else "wrong",
            str(static.nfe.total),
            str(freedave.nfe.total),
            f"{static.seconds:.3f}",
            f"{freedave.seconds:.3f}",
        )
    return table


def _legend() -> Text:
    text = Text("Colour of a token: committed in an ")
    text.append("early", style=_colour(0.0))
    text.append(" ... ")
    text.append("late", style=_colour(1.0))
    return text.append(" call of FreeDave.")


def _colour(part: float) -> str:
    mixed = (round(a + (b - a) * part) for a, b in zip(_EARLY, _LATE, strict=True))
    return f"rgb({','.join(map(str, mixed))})"

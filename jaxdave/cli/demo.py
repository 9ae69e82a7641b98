"""`jaxdave demo`: static and FreeDave side by side on held-out problems."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxdave.cli.generate import pieces
from jaxdave.engine.decode_config import DecodeConfig, check_config, make_decoder

if TYPE_CHECKING:
    from jaxdave.demo_tasks.problem import Problem
    from jaxdave.engine.results import Result, Row
    from jaxdave.io.checkpoint import Model
    from jaxdave.io.tokenizer import Codec


MAX_NEW_TOKENS = 128
_EARLY, _LATE = (80, 140, 255), (255, 190, 60)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One problem decoded both ways."""

    problem: "Problem"
    static: "Result"
    fast: "Result"
    is_right: bool

    @property
    def is_same(self) -> bool:
        """Whether both texts are equal, token for token."""
        return self.static.rows[0].token_ids == self.fast.rows[0].token_ids


def run(
    model: str | None,
    draft_steps: int,
    count: int,
    console: Console | None = None,
    quantize: str | None = None,
) -> None:
    """Decode `count` held-out problems of both families and print the comparison."""
    settings = DecodeConfig(model=model, draft_steps=draft_steps)
    check_config(settings)
    problems = chosen(count)
    from jaxdave.io import checkpoint

    loaded = checkpoint.load(model, quantize=quantize)
    room = min(MAX_NEW_TOKENS, loaded.max_new_tokens)
    settings = dataclasses.replace(settings, max_new_tokens=room)
    console = console or Console(highlight=False)
    with console.status("decoding"):
        pairs = [decode(loaded, settings, problem) for problem in problems]
    for pair in pairs:
        console.print(_panel(loaded.codec, pair))
    console.print(_table(pairs))
    console.print(_legend())
    console.print(summary(pairs), soft_wrap=True)


def chosen(count: int) -> list["Problem"]:
    """The first held-out problems: more than half of them word problems.

    Raises ValueError for a count below 1 or above what there is.
    """
    from jaxdave.demo_tasks import problem_sets

    words, lists = problem_sets.load("words_test"), problem_sets.load("lists_test")
    most = 2 * min(len(words), len(lists))
    if not 1 <= count <= most:
        raise ValueError(f"problems={count} must be in 1..{most}; try 5")
    return words[: count - count // 2] + lists[: count // 2]


def decode(model: "Model", settings: DecodeConfig, problem: "Problem") -> Pair:
    """One problem by static and by FreeDave, in programs of the same shapes."""
    from jaxdave.demo_tasks.grade import is_correct
    from jaxdave.engine.generation import generate

    prompt = model.codec.encode_prompt(problem.prompt)
    plain, fast = (
        generate(
            make_decoder(
                model.config, dataclasses.replace(settings, method=method), model.tables
            ),
            model.params,
            [prompt],
        )
        for method in ("static", "freedave")
    )
    answer = model.codec.decode(fast.rows[0].token_ids)
    return Pair(problem, plain, fast, is_correct(problem, answer))


def coloured(codec: "Codec", row: "Row") -> Text:
    """The answer, each token in the colour of the call that committed it."""
    last = max(row.committed_at, default=0) or 1
    text = Text()
    for piece, call in zip(pieces(codec, row.token_ids), row.committed_at, strict=True):
        text.append(piece, style=_colour(call / last))
    return text


def summary(pairs: Sequence[Pair]) -> str:
    """One line: what was equal, right and saved."""
    same = sum(pair.is_same for pair in pairs)
    right = sum(pair.is_right for pair in pairs)
    before = sum(pair.static.rows[0].nfe.total for pair in pairs)
    after = sum(pair.fast.rows[0].nfe.total for pair in pairs)
    slow = sum(pair.static.seconds for pair in pairs)
    quick = sum(pair.fast.seconds for pair in pairs)
    return (
        f"Texts equal: {same} of {len(pairs)}. Right: {right} of {len(pairs)}. "
        f"Calls: {before} static, {after} FreeDave ({before / after:.2f} times fewer). "
        f"Seconds: {slow:.2f} and {quick:.2f}, both in the program that carries drafts."
    )


def _panel(codec: "Codec", pair: Pair) -> Text:
    prompt = Text(f"{pair.problem.prompt}\n", style="bold")
    return prompt + coloured(codec, pair.fast.rows[0]) + Text("\n")


def _table(pairs: Sequence[Pair]) -> Table:
    table = Table()
    names = ("problem", "equal", "right", "calls", "FreeDave", "seconds", "FreeDave")
    for name in names:
        table.add_column(name, justify="left" if name == "problem" else "right")
    for number, pair in enumerate(pairs, start=1):
        plain, fast = pair.static, pair.fast
        table.add_row(
            f"{number} {pair.problem.family}",
            "yes" if pair.is_same else "NO",
            "right" if pair.is_right else "wrong",
            str(plain.rows[0].nfe.total),
            str(fast.rows[0].nfe.total),
            f"{plain.seconds:.3f}",
            f"{fast.seconds:.3f}",
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

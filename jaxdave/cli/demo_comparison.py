"""What the demo has measured of static and FreeDave, and what follows from it.

Plain data and pure functions: the terminal (`demo_view`) and the page (`demo_page`)
show the same.
"""

import dataclasses
import math
from collections.abc import Sequence

from jaxdave.cli.token_view import TokenView

EYE_SECONDS = 8.0
"""How long the slower decode is shown where no speed is given, at most."""
_ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """How one method has written the answer to the shown problem.

    Attributes:
        texts: The printable text of each token, the end token's included.
        calls: The network call that made each of them known, 0 for the prefill.
        ends: Seconds from the start of the decode to the end of each call.
    """

    texts: tuple[str, ...]
    calls: tuple[int, ...]
    ends: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Of the whole decode."""
        return self.ends[-1]

    def calls_until(self, seconds: float) -> int:
        """How many calls have ended by some time.

        Args:
            seconds: Since the start of the decode.

        Returns:
            The number of calls.
        """
        return sum(end <= seconds for end in self.ends)

    def views(self, num_calls: int) -> list[TokenView]:
        """The answer after some calls.

        Args:
            num_calls: How many have ended.

        Returns:
            All its positions, masked where their call has not ended.
        """
        return [
            TokenView(text, call if call < num_calls else None)
            for text, call in zip(self.texts, self.calls, strict=True)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """What one method has done over all problems.

    Attributes:
        states: States of the answer that a call checks, at most: 1 without drafts.
        right: Right answers.
        tokens: Tokens of all answers.
        calls: Network calls, all kinds.
        seconds: Median seconds of each problem, summed.
    """

    states: int
    right: int
    tokens: int
    calls: int
    seconds: float

    @property
    def tokens_per_call(self) -> float:
        """Tokens of text for each network call."""
        return self.tokens / self.calls

    @property
    def seconds_per_call(self) -> float:
        """What a call takes on average."""
        return self.seconds / self.calls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that the demo shows.

    Attributes:
        model: Name of the model.
        machine: What it ran on, such as "2 CPU cores".
        is_cpu: It ran on CPU cores.
        num_problems: Problems in the table.
        num_equal: Of these, those whose two texts are equal, token for token.
        repeats: Timings of each decode; their median counts.
        kind: What the shown problem is, such as "word problem".
        question: Its text.
        is_right: The answer to it is right.
        static: The decode of it without drafts.
        freedave: The decode of it with drafts.
        static_score: All problems without drafts.
        freedave_score: All problems with drafts.
    """

    model: str
    machine: str
    is_cpu: bool
    num_problems: int
    num_equal: int
    repeats: int
    kind: str
    question: str
    is_right: bool
    static: Track
    freedave: Track
    static_score: Score
    freedave_score: Score

    @property
    def seconds(self) -> float:
        """Of the slower decode of the shown problem."""
        return max(self.static.seconds, self.freedave.seconds)

    def moments(self) -> list[float]:
        """When something changes on a clock that both decodes start with.

        Returns:
            Seconds, ascending: the ends of the calls of both.
        """
        return sorted({*self.static.ends, *self.freedave.ends})


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table, in words.

    Attributes:
        name: What is counted.
        static: Its value without drafts.
        freedave: Its value with drafts.
        ratio: How they compare, or nothing.
    """

    name: str
    static: str
    freedave: str
    ratio: str = ""


def call_ends(
    durations: Sequence[float], num_calls: int, seconds: float
) -> tuple[float, ...]:
    """When each call of a decode has ended, on the clock of the whole decode.

    Calls that are run one by one take longer than in the loop on the device, so only
    their shares are taken.

    Args:
        durations: Seconds of each call, run one by one. Where they are not as many as
            the calls, as rechecks run with the call before them, all calls count alike.
        num_calls: Calls of the decode.
        seconds: Of the whole decode.

    Returns:
        Seconds from the start; the last is `seconds`.
    """
    if len(durations) != num_calls or not sum(durations) > 0:
        durations = [1.0] * num_calls
    scale = seconds / sum(durations)
    ends = [scale * sum(durations[: call + 1]) for call in range(num_calls - 1)]
    return (*ends, seconds)


def slowdown(speed: float | None, seconds: float) -> float:
    """How many times slower than measured a decode is shown.

    Args:
        speed: The user's, 0.1 for ten times slower; None: what the eye can follow.
        seconds: Of the slower decode.

    Returns:
        The factor; without a speed a round number, and never below 1.

    Raises:
        ValueError: The speed is not above 0, or not of this world.
    """
    if speed is not None:
        if not 1e-5 <= speed <= 1e3:
            raise ValueError(
                f"speed={speed} must be in 0.00001..1000, 1 is the measured speed; "
                "try 0.01"
            )
        return 1 / speed
    wanted = max(EYE_SECONDS / max(seconds, 1e-6), 1.0)
    size = 10.0 ** math.floor(math.log10(wanted))
    return max(step * size for step in _ROUND if step * size <= wanted)


def speed_words(factor: float) -> str:
    """How the shown speed compares with the measured one.

    Args:
        factor: How many times slower it is shown.

    Returns:
        A few words, such as "shown 500 times slower".
    """
    if factor == 1:
        return "shown at the measured speed"
    slower = factor > 1
    times = f"{factor if slower else 1 / factor:.3g}"
    # No exponents: they are no numbers to a newcomer.
    if "e" in times:
        times = f"{float(times):.0f}"
    return f"shown {times} times {'slower' if slower else 'faster'}"


def rows(comparison: Comparison) -> list[Row]:
    """The table.

    Args:
        comparison: What was measured.

    Returns:
        Its rows.
    """
    c, static, freedave = comparison, comparison.static_score, comparison.freedave_score
    count = c.num_problems
    return [
        Row(
            "answers right",
            f"{static.right} of {count}",
            f"{freedave.right} of {count}",
        ),
        Row("texts equal to static's", "", f"{c.num_equal} of {count}"),
        Row("states checked per call", "1", f"up to {freedave.states}"),
        Row(
            "network calls",
            str(static.calls),
            str(freedave.calls),
            times(static.calls, freedave.calls, "fewer", "more"),
        ),
        Row(
            "tokens per call",
            f"{static.tokens_per_call:.2f}",
            f"{freedave.tokens_per_call:.2f}",
            times(freedave.tokens_per_call, static.tokens_per_call, "more", "fewer"),
        ),
        Row(
            "milliseconds per call",
            f"{1e3 * static.seconds_per_call:.2f}",
            f"{1e3 * freedave.seconds_per_call:.2f}",
            times(
                freedave.seconds_per_call,
                static.seconds_per_call,
                "as long",
                "shorter",
            ),
        ),
        Row(
            "seconds",
            f"{static.seconds:.3f}",
            f"{freedave.seconds:.3f}",
            times(static.seconds, freedave.seconds, "faster", "slower"),
        ),
    ]


def table_title(comparison: Comparison) -> str:
    """What the table is of.

    Args:
        comparison: What was measured.

    Returns:
        A few words.
    """
    count = comparison.num_problems
    return f"All {count} problems" if count > 1 else "This problem"


def times(larger: float, smaller: float, above: str, below: str) -> str:
    """A ratio in words.

    Args:
        larger: What should be the larger number.
        smaller: What should be the smaller one.
        above: The word where it is.
        below: The word where it is not.

    Returns:
        Such as "3.14 times fewer".
    """
    ratio = larger / smaller
    if f"{ratio:.2f}" == "1.00":
        return "equal"
    return f"{max(ratio, 1 / ratio):.2f} times {above if ratio > 1 else below}"


def explanation(comparison: Comparison) -> list[str]:
    """What the table says, in sentences.

    Args:
        comparison: What was measured.

    Returns:
        Paragraphs of plain text: what is equal; what is saved, and why seconds and
        calls differ.
    """
    c = comparison
    static, freedave = c.static_score, c.freedave_score
    if c.num_equal == c.num_problems:
        equal = "FreeDave wrote the same texts as static, token for token."
    else:
        missed = c.num_problems - c.num_equal
        equal = (
            f"FreeDave wrote another text than static for {missed} of "
            f"{c.num_problems} problems."
        )
    if freedave.calls == static.calls:
        return [
            equal,
            "Both made as many network calls: "
            + (
                "no draft was accepted."
                if freedave.states > 1
                else "there are no drafts."
            ),
        ]
    calls = times(static.calls, freedave.calls, "fewer", "more")
    seconds = times(static.seconds, freedave.seconds, "faster", "slower")
    longer = freedave.seconds_per_call / static.seconds_per_call
    saved = (
        f"FreeDave made {calls} network calls than static and was {seconds}. The two "
        f"ratios differ because a call of FreeDave checks up to {freedave.states} "
        f"states of the answer at once: on this machine ({c.machine}) it takes "
        f"{1e3 * freedave.seconds_per_call:.2f} ms, one of static "
        f"{1e3 * static.seconds_per_call:.2f} ms ({longer:.2f} times as long)."
    )
    if c.is_cpu and longer > 1.05:
        saved += (
            " Few cores have to compute those states one after another; hardware that "
            "computes many at once gets closer to the ratio of calls."
        )
    return [equal, saved]


def method_words(comparison: Comparison) -> str:
    """How the seconds were measured.

    Args:
        comparison: What was measured.

    Returns:
        A sentence.
    """
    timed = (
        f"the median of {comparison.repeats} timings of each decode in turn"
        if comparison.repeats > 1
        else "one timing of each decode"
    )
    return (
        f"Measured with model {comparison.model}: each method in its own compiled "
        f"program, {timed}; compilation and first runs are left out."
    )

"""Decode the demo's problems without drafts and with them, and time both."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxdave.cli.demo_comparison import Comparison, Score, Track, call_ends
from jaxdave.cli.token_view import token_texts

if TYPE_CHECKING:
    from jaxdave.demo_tasks.problem import Problem
    from jaxdave.engine.results import TextCompletion
    from jaxdave.engine.sampler import Sampler
    from jaxdave.io.checkpoint import Model

REPEATS = 5
"""Timings of each decode, in turn with those of the other method."""
CALL_REPEATS = 3
"""Decodes of the shown problem whose calls are timed one by one."""
MAX_SECONDS = 10.0
"""Spent on the timings of a problem; of a slow model fewer are made, but one."""

_KINDS = {"words": "word problem", "lists": "list function"}


class Timed(NamedTuple):
    """One problem decoded both ways, with the seconds of the timings' median.

    Attributes:
        static: The answer without drafts.
        freedave: The answer with drafts.
        repeats: Timings of each.
    """

    static: "TextCompletion"
    freedave: "TextCompletion"
    repeats: int


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


def compare(
    model: "Model",
    static: "Sampler",
    freedave: "Sampler",
    problems: Sequence["Problem"],
    say: Callable[[str], None] = lambda message: None,
) -> Comparison:
    """Decode problems both ways.

    Args:
        model: The model of both.
        static: Decodes without drafts.
        freedave: Decodes with drafts.
        problems: The problems; the first is the one that is shown.
        say: Is told what is being done.

    Returns:
        What was measured.

    Raises:
        ValueError: The model's scores are not finite numbers.
    """
    from jaxdave.demo_tasks.grade import is_correct
    from jaxdave.engine.results import check_finite

    for sampler, name in ((static, "without drafts"), (freedave, "with drafts")):
        say(f"compiling the decoder {name}")
        sampler(problems[0].prompt)
    pairs = []
    for number, problem in enumerate(problems, start=1):
        say(f"decoding problem {number} of {len(problems)}")
        pair = _decode(static, freedave, problem.prompt)
        check_finite({number: pair.static.finish_reason})
        check_finite({number: pair.freedave.finish_reason})
        pairs.append(pair)
    say("timing the calls")
    first, shown = pairs[0], problems[0]
    tracks = [
        _track(sampler, shown.prompt, answer)
        for sampler, answer in ((static, first.static), (freedave, first.freedave))
    ]
    say("grading the answers")
    right = [
        [is_correct(problem, answer.text) for answer in pair[:2]]
        for problem, pair in zip(problems, pairs, strict=True)
    ]
    scores = [
        _score(sampler, [pair[side] for pair in pairs], [one[side] for one in right])
        for side, sampler in enumerate((static, freedave))
    ]
    machine, is_cpu = _machine()
    return Comparison(
        model=model.name,
        machine=machine,
        is_cpu=is_cpu,
        num_problems=len(problems),
        num_equal=sum(
            pair.static.token_ids == pair.freedave.token_ids for pair in pairs
        ),
        repeats=min(pair.repeats for pair in pairs),
        kind=_KINDS.get(shown.family, shown.family),
        question=shown.prompt,
        is_right=right[0][1],
        static=tracks[0],
        freedave=tracks[1],
        static_score=scores[0],
        freedave_score=scores[1],
    )


def _decode(static: "Sampler", freedave: "Sampler", prompt: str) -> Timed:
    """A prompt decoded by both in turn, until there are enough timings."""
    samplers = static, freedave
    for sampler in samplers:
        sampler(prompt)  # the first run of a prompt's bucket compiles and measures
    runs: list[list[TextCompletion]] = []
    start = time.perf_counter()
    while len(runs) < REPEATS and (not runs or _has_time(start, len(runs))):
        runs.append([sampler(prompt) for sampler in samplers])
    medians = [
        # A run that was measured, so that its seconds are those of its calls.
        sorted(answers, key=lambda answer: answer.seconds)[(len(runs) - 1) // 2]
        for answers in zip(*runs, strict=True)
    ]
    return Timed(medians[0], medians[1], len(runs))


def _has_time(start: float, num_runs: int) -> bool:
    """True if there is time for one more run like those before."""
    spent = time.perf_counter() - start
    return spent * (num_runs + 1) / num_runs < MAX_SECONDS


def _track(sampler: "Sampler", prompt: str, answer: "TextCompletion") -> Track:
    """How an answer came about, call by call."""
    timings: list[list[float]] = []
    begin, end_calls = len(sampler.encode(prompt)), []
    for _ in range(CALL_REPEATS):
        durations, end_call = _time_calls(
            sampler, prompt, begin + len(answer.token_ids)
        )
        timings.append(durations)
        end_calls.append(end_call)
    is_same = len({len(durations) for durations in timings}) == 1
    shares = [statistics.median(t) for t in zip(*timings, strict=is_same)]
    codec, completion = sampler.model.codec, answer.completion
    texts = token_texts(codec, answer.token_ids)  # pyright: ignore
    calls, num_calls = list(completion.committed_at), answer.nfe.total
    if answer.finish_reason == "stop":
        texts.append("<end>")
        calls.append(min(end_calls[-1], num_calls - 1))
    return Track(
        texts=tuple(text or "" for text in texts),
        calls=tuple(calls),
        ends=call_ends(shares if is_same else [], num_calls, answer.seconds),
    )


def _time_calls(sampler: "Sampler", prompt: str, end: int) -> tuple[list[float], int]:
    """Seconds of each call, run one by one, and the call that filled a position."""
    from jaxdave.engine.streaming import snapshots

    model = sampler.model
    ids = [sampler.encode(prompt)]
    durations, end_call = [], 0
    seen = snapshots(sampler.decoder, model.params, ids, seed=sampler.config.seed)
    start = time.perf_counter()
    for snapshot in seen:
        now = time.perf_counter()
        durations.append(now - start)
        start = now
        # An answer without an end token may fill its row to the last position.
        if (snapshot.tokens_BT[0, end : end + 1] == model.config.mask_id).any():
            end_call = snapshot.call + 1
    return durations, end_call


def _score(
    sampler: "Sampler", answers: Sequence["TextCompletion"], right: Sequence[bool]
) -> Score:
    return Score(
        states=max(sampler.decoder.spec.draft_steps),
        right=sum(right),
        tokens=sum(answer.valid_tokens for answer in answers),
        calls=sum(answer.nfe.total for answer in answers),
        seconds=sum(answer.seconds for answer in answers),
    )


def _machine() -> tuple[str, bool]:
    """What programs run on, in words, and whether that is a CPU."""
    import jax

    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return device.device_kind, False
    # Not all cores of the machine may be this process's.
    has_list = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_list else os.cpu_count() or 1
    return f"{cores} CPU core{'s' if cores > 1 else ''}", True

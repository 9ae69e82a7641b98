"""Grading of mathematical answers: by spelling and value, then by math-verify.

math-verify, which compares expressions by computer algebra, runs in worker processes. A
worker that takes too long over one answer is killed and replaced. Without the package
only spelling and value count.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxdave.grading.math_equal import answers_equal
from jaxdave.grading.types import Verdict
from jaxdave.runtime.interrupts import killed_on_interrupt, unbroken

SECONDS = 15.0
"""Time limit of math-verify for one answer."""
STARTUP_SECONDS = 120.0
"""Time limit for starting a worker, most of which is the import of sympy."""
MAX_WORKERS = 4
_WORKER = Path(__file__).parent / "math_verify_worker.py"
AnswerPair = tuple[str, str]
"""(reference answer, extracted answer)."""


def grade_math(
    golds: Sequence[str],
    texts: Sequence[str],
    extract_answer: Callable[[str], str],
    seconds: float = SECONDS,
) -> tuple[Verdict, ...]:
    r"""Grade mathematical texts.

    Args:
        golds: The reference answers.
        texts: The texts to grade, one for each reference.
        extract_answer: Maps a text to its answer, e.g. `extract.math_answer`.
        seconds: Time limit of math-verify for one answer; an answer that exceeds it is
            graded as wrong.

    Returns:
        One verdict a text, in their order.

    Raises:
        ValueError: If math-verify is installed but does not start, or `golds` and
            `texts` differ in length.

    Example:
        >>> from jaxdave.grading import extract
        >>> verdicts = grade_math(["0.5"], [r"\boxed{1/2}"], extract.math_answer)
        >>> verdicts[0].correct
        True
    """
    pairs = list(zip(golds, map(extract_answer, texts), strict=True))
    results = [answers_equal(gold, answer) for gold, answer in pairs]
    undecided = [index for index, equal in enumerate(results) if equal is None]
    # None stays None here only where math-verify took too long.
    verified = _verify_pairs([pairs[index] for index in undecided], seconds)
    for index, equal in zip(undecided, verified, strict=True):
        results[index] = equal
    return tuple(map(_verdict, pairs, results))


def _verdict(pair: AnswerPair, equal: bool | None) -> Verdict:
    """The verdict on a pair; None means that the comparison took too long."""
    gold, answer = pair
    if equal:
        return Verdict(True, answer)
    reason = f"not {gold}" if answer else "no answer"
    return Verdict(False, answer, "took too long" if equal is None else reason)


def _verify_pairs(pairs: Sequence[AnswerPair], seconds: float) -> list[bool | None]:
    """Compare pairs by math-verify; None where it took too long."""
    if not pairs or importlib.util.find_spec("math_verify") is None:
        return [False] * len(pairs)
    num_workers = min(MAX_WORKERS, os.cpu_count() or 1, len(pairs))
    shares = [pairs[start::num_workers] for start in range(num_workers)]
    with ThreadPoolExecutor(num_workers) as pool:
        results = list(
            pool.map(lambda share: list(_verify_share(share, seconds)), shares)
        )
    return [results[i % num_workers][i // num_workers] for i in range(len(pairs))]


def _verify_share(pairs: Sequence[AnswerPair], seconds: float) -> Iterator[bool | None]:
    """Compare pairs one after the other, in a new worker after each that died."""
    remaining = list(pairs)
    while remaining:
        with _start_worker() as process:
            if _ask(process, "", STARTUP_SECONDS) != "ready":
                raise ValueError(
                    "math-verify does not start; run `python -c 'import math_verify'` "
                    "and install what it misses"
                )
            reply = "1"
            # An empty reply: the worker is dead, and the rest needs another one.
            while remaining and reply:
                question = json.dumps(remaining.pop(0)) + "\n"
                reply = _ask(process, question, seconds)
                yield reply == "1" if reply else None


@contextlib.contextmanager
def _start_worker() -> Iterator[subprocess.Popen[str]]:
    """Start `math_verify_worker.py`, and kill it at the end."""
    # Without -P Python would put the folder of the file first on sys.path, and its
    # `types.py` would hide the module of the standard library.
    with contextlib.ExitStack() as stack:
        with unbroken("the start of math-verify"):
            process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
            stack.enter_context(killed_on_interrupt(process.pid))
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def _ask(process: subprocess.Popen[str], question: str, seconds: float) -> str:
    """Send a question and return the next line; empty if the process died."""
    assert process.stdin is not None and process.stdout is not None
    # A read from a pipe has no timeout, but it ends when the process does.
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        process.stdin.write(question)
        process.stdin.flush()
        return process.stdout.readline().strip()
    except BrokenPipeError:
        return ""
    finally:
        timer.cancel()

"""Grading mathematics: by spelling and value, and by math-verify for what is left.

math-verify runs in processes of its own, each of which is killed and started anew when
one answer takes too long. Without the package only spelling and value count.
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

from jaxdave.grading.math_equal import same
from jaxdave.grading.types import Verdict

SECONDS = 15.0
STARTING_SECONDS = 120.0
MOST_WORKERS = 4
Pair = tuple[str, str]


def grade(
    golds: Sequence[str],
    texts: Sequence[str],
    read: Callable[[str], str],
    seconds: float = SECONDS,
) -> tuple[Verdict, ...]:
    """The verdicts on texts, in their order.

    golds: the reference answers. read: what of a text is its answer. seconds: the most
    that math-verify may take over one answer; then it is wrong.
    """
    pairs = list(zip(golds, map(read, texts), strict=True))
    told = [same(gold, found) for gold, found in pairs]
    open_ones = [i for i, right in enumerate(told) if right is None]
    asked = _verified([pairs[i] for i in open_ones], seconds)
    late = {i: right for i, right in zip(open_ones, asked, strict=True)}
    return tuple(
        _verdict(pair, late.get(i, right))
        for i, (pair, right) in enumerate(zip(pairs, told, strict=True))
    )


def _verdict(pair: Pair, right: bool | None) -> Verdict:
    gold, found = pair
    if right:
        return Verdict(True, found)
    reason = f"not {gold}" if found else "no answer"
    return Verdict(False, found, "took too long" if right is None else reason)


def _verified(pairs: Sequence[Pair], seconds: float) -> list[bool | None]:
    """What math-verify says to each pair, None where it took too long."""
    if not pairs or importlib.util.find_spec("math_verify") is None:
        return [False] * len(pairs)
    workers = min(MOST_WORKERS, os.cpu_count() or 1, len(pairs))
    shares = [pairs[start::workers] for start in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        told = list(pool.map(lambda share: list(_asked(share, seconds)), shares))
    return [told[i % workers][i // workers] for i in range(len(pairs))]


def _asked(pairs: Sequence[Pair], seconds: float) -> Iterator[bool | None]:
    left = list(pairs)
    while left:
        with _verifier() as process:
            if _line(process, "", STARTING_SECONDS) != "ready":
                raise ValueError(
                    "math-verify does not start; run `python -c 'import math_verify'` "
                    "and install what it misses"
                )
            answer = "1"
            while left and answer:
                question = json.dumps(left.pop(0)) + "\n"
                answer = _line(process, question, seconds)
                yield answer == "1" if answer else None


@contextlib.contextmanager
def _verifier() -> Iterator[subprocess.Popen[str]]:
    # -P: the folder of the file holds modules named as those of the standard library.
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).parent / "math_verify_worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str], question: str, seconds: float) -> str:
    """The next line that the process says; empty where it died, or was ended."""
    assert process.stdin is not None and process.stdout is not None
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

"""Asks math-verify, line by line; run as a program, in a process that may be killed.

In: one JSON list [gold, found] a line. Out: a line "ready", then "1" or "0" for each.
"""

import json
import os
import sys

MEMORY_BYTES = 4 << 30
SECONDS = 5


def main() -> None:
    """Answer until the input ends."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _limit()
    from math_verify import parse, verify

    def right(gold: str, found: str) -> bool:
        one, other = (
            parse(f"\\boxed{{{text}}}", parsing_timeout=SECONDS)
            for text in (gold, found)
        )
        return bool(verify(one, other, timeout_seconds=SECONDS))

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        try:
            told = right(*json.loads(line))
        except BaseException:  # a time limit of math-verify is not an Exception
            told = False
        print(int(told), file=out, flush=True)


def _limit() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, OSError, ValueError):
        pass


if __name__ == "__main__":
    main()

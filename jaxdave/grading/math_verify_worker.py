"""A worker process that compares answers by math-verify, one pair a line.

`mathematics` starts this file by its path. The comparison has a process of its own,
because an expression such as `9^{9^{9^9}}` can use up all time and memory, and only a
process can be killed for certain.

Input: one JSON list [gold, answer] a line. Output: a line "ready", then a line "1" or
"0" for each input line.
"""

import json
import os
import sys

MEMORY_BYTES = 4 << 30
SECONDS = 5


def main() -> None:
    """Answer questions until the input ends."""
    # math-verify and sympy print warnings: only this duplicate still reaches the
    # parent's pipe, everything else that is printed goes to stderr.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _limit_memory()
    # After the limit, which then holds for what the import allocates too.
    from math_verify import parse, verify

    def equal(gold: str, answer: str) -> bool:
        gold_values, answer_values = (
            parse(f"\\boxed{{{text}}}", parsing_timeout=SECONDS)
            for text in (gold, answer)
        )
        return bool(verify(gold_values, answer_values, timeout_seconds=SECONDS))

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        try:
            result = equal(*json.loads(line))
        except BaseException:  # a time limit of math-verify is not an Exception
            result = False
        print(int(result), file=out, flush=True)


def _limit_memory() -> None:
    """Limit the address space, on systems that have such limits."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, OSError, ValueError):
        pass


if __name__ == "__main__":
    main()

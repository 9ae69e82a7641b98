"""A worker process that compares answers by math-verify, one pair a line.

`mathematics` starts this file by its path. The comparison has a process of its own,
because an expression such as `9^{9^{9^9}}` can use up all time and memory, and only a
process can be killed for certain.

math-verify takes numbers for equal that differ by less than some 1e-15, whatever their
size, and decimals that agree to six digits. What it finds equal is therefore evaluated
once more, to many digits, and must agree in relation to its size.

Input: one JSON list [gold, answer] a line. Output: a line "ready", then a line "1" or
"0" for each input line.
"""

import json
import os
import sys

MEMORY_BYTES = 4 << 30
SECONDS = 5
DIGITS = 60
"""Digits of the second evaluation."""
TOLERANCE = 1e-55
"""Largest relative difference of two equal values in that evaluation."""


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
        if not verify(gold_values, answer_values, timeout_seconds=SECONDS):
            return False
        return not (
            gold_values
            and answer_values
            and surely_differ(gold_values[0], answer_values[0])
        )

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        try:
            result = equal(*json.loads(line))
        except BaseException:  # a time limit of math-verify is not an Exception
            result = False
        print(int(result), file=out, flush=True)


def surely_differ(gold, answer) -> bool:
    """Check if two values that math-verify takes for equal differ after all.

    Args:
        gold: Value of the reference answer, as sympy has it.
        answer: Value of the other answer.

    Returns:
        True if numbers in the same place of both differ by more than `TOLERANCE` of
        their size; False if they do not, or where they cannot be evaluated.
    """
    import sympy

    if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
        return _numbers_differ(gold, answer)
    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Expr):
        return _numbers_differ(gold.rhs, answer)
    same_kind = type(gold) is type(answer) and isinstance(gold, sympy.Basic)
    if not same_kind or len(gold.args) != len(answer.args):
        return False
    if isinstance(gold, sympy.Set) and not isinstance(gold, sympy.Interval):
        return any(
            all(surely_differ(one, other) for other in answer.args) for one in gold.args
        )
    if isinstance(gold, (sympy.Tuple, sympy.Interval)):
        return any(map(surely_differ, gold.args, answer.args))
    return False


def _numbers_differ(gold, answer) -> bool:
    """Compare two expressions at one point, to many digits."""
    import sympy

    try:
        symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
        # No special point of any function; positive, as roots and logarithms need.
        point = {
            symbol: sympy.Rational(37 + 24 * i, 29 + 10 * i)
            for i, symbol in enumerate(symbols)
        }
        one, other = (
            sympy.N(sympy.nsimplify(value.subs(point), rational=True), DIGITS)
            for value in (gold, answer)
        )
        size = max(abs(one), abs(other))
        return bool(size.is_finite and abs(one - other) > TOLERANCE * size)
    except Exception:  # what cannot be evaluated is left to math-verify
        return False


def _limit_memory() -> None:
    """Limit the address space, on systems that have such limits."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, OSError, ValueError):
        pass


if __name__ == "__main__":
    main()

"""How often the loops of a compiled program turn, where the program tells."""

import re

from bench.hlo.text import Computation, Instruction, Program


def known_turns(
    program: Program, computation: Computation, loop: Instruction
) -> int | None:
    """How often a loop turns.

    XLA notes it for a GPU and a CPU. For a TPU it is read from the condition: a counter
    that goes up by one, as those of `lax.scan` and `lax.fori_loop` do, and is compared
    with a constant.

    Args:
        program: The program.
        computation: The computation that holds the loop.
        loop: The `while` instruction.

    Returns:
        Its turns; None where the program does not tell.
    """
    if loop.trip_count is not None:
        return loop.trip_count
    condition = program.called_by(loop, "condition")
    if condition is None:
        return None
    test = condition.root
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    counter, bound = (condition.by_name[name] for name in test.operands)
    last = _constant(condition, bound)
    if counter.opcode != "get-tuple-element" or last is None:
        return None
    carry = computation.by_name[loop.operands[0]]
    if carry.opcode != "tuple":
        return None
    first = _constant(
        computation, computation.by_name[carry.operands[counter.tuple_index]]
    )
    # A counter that starts elsewhere than at a constant is a loop over a known range
    # whose beginning was moved out of sight; `lax.scan` begins at 0.
    return last - (first or 0)


def _constant(computation: Computation, one: Instruction) -> int | None:
    """The whole number that an instruction stands for; None for anything else."""
    while one.opcode in ("copy", "bitcast", "convert"):
        one = computation.by_name[one.operands[0]]
    is_number = one.opcode == "constant" and re.fullmatch(r"-?\d+", one.arguments)
    return int(one.arguments) if is_number else None

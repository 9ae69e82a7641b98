"""What a fusion reads, writes and computes, from its fused computation.

A fusion computes what its result needs and no more: one that slices a stack reads the
slice, and one whose result is an updated slice of its operand writes the slice.
"""

import collections
import dataclasses
import math
import re

from bench.hlo.text import (
    ArrayType,
    Computation,
    Instruction,
    Program,
    arrays,
    num_bytes,
)

_SLICES = {"slice", "dynamic-slice", "gather"}
_REARRANGES = {"bitcast", "reshape", "transpose", "copy", "convert", "reverse"}
_MOVES = (
    _SLICES
    | _REARRANGES
    | {"parameter", "constant", "iota", "tuple", "get-tuple-element", "broadcast"}
    | {"concatenate", "pad", "dynamic-update-slice", "fusion"}
)
_PRODUCTS = {"dot", "convolution"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What an instruction reads, writes and computes.

    Attributes:
        reads: Operand -> elements of it that are read.
        gathers: Operands of which rows are looked up, and no more.
        updates: Result, by its place among the results -> (the operand that it updates
            in place, bytes of the part that is written).
        only_moves: Whether it moves numbers and computes nothing of them.
        operations: Multiplications and additions of its products.
    """

    reads: dict[int, float]
    gathers: frozenset[int] = frozenset()
    updates: dict[int, tuple[int, int]]
    only_moves: bool
    operations: int


def fusion_traffic(program: Program, computation: Computation) -> Traffic:
    """What a fused computation reads, writes and computes.

    Args:
        program: The program.
        computation: The fused computation.

    Returns:
        Its traffic.
    """
    in_place = {one.name for one in _updating(computation)}
    needed: dict[str, float] = collections.defaultdict(float)
    root = computation.root
    needed[root.name] = _elements(root)
    # Users come before what they use, so that a number is complete when it is reached.
    for one in reversed(computation.instructions):
        share = _capped(needed[one.name], one)
        if not share:
            continue
        operands = [computation.by_name[name] for name in one.operands]
        for operand, elements in zip(
            operands,
            _operand_needs(program, one, operands, share, in_place),
            strict=True,
        ):
            needed[operand.name] += elements
    reads = {
        number: _capped(needed[one.name], one)
        for number, one in computation.parameters.items()
    }
    return Traffic(
        reads=reads,
        gathers=frozenset(
            number
            for number, one in computation.parameters.items()
            if _is_looked_up(program, computation, one)
        ),
        updates=_updates(computation),
        only_moves=_only_moves(program, computation),
        operations=_operations(program, computation),
    )


def instruction_traffic(
    one: Instruction, operands: list[Instruction], layers: int = 1
) -> Traffic:
    """What an instruction reads, writes and computes that is no fusion.

    Args:
        one: The instruction.
        operands: Its operands.
        layers: A kernel that is given a stack of so many layers reads one of them.

    Returns:
        Its traffic.
    """
    reads: dict[int, float] = {
        number: _elements(operand) for number, operand in enumerate(operands)
    }
    updates: dict[int, tuple[int, int]] = {}
    if one.opcode in (*_SLICES, "slice-start"):
        reads[0] = one.results[0].size
    elif one.opcode == "dynamic-update-slice":
        reads[0] = 0
        updates[0] = 0, num_bytes(operands[1].type)
    elif one.opcode == "custom-call" and not one.is_library_product:
        # A kernel of our own, which updates what it shares with its operands.
        updates = {result: (operand, 0) for result, operand in _shared(one).items()}
        for number, operand in enumerate(operands):
            kind = operand.type
            if isinstance(kind, ArrayType) and kind.dims[:1] == (layers,):
                reads[number] /= layers
    return Traffic(
        reads=reads,
        gathers=frozenset({0} if one.opcode == "gather" else ()),
        updates=updates,
        only_moves=one.opcode in _MOVES | {"copy-start", "slice-start"},
        operations=product_operations(one, operands),
    )


def _shared(one: Instruction) -> dict[int, int]:
    """Result of a custom call -> the operand whose memory it takes."""
    text = one.attributes.partition("output_to_operand_aliasing={")[2]
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}\)", text)
    return {int(result or 0): int(operand) for result, operand in pairs}


def _is_looked_up(program: Program, computation: Computation, one: Instruction) -> bool:
    """Whether all that is done with an array is to gather rows of it."""

    def looks_up(user: Instruction) -> bool:
        called = program.called_by(user, "calls")
        if called is not None:
            number = user.operands.index(one.name)
            return _is_looked_up(program, called, called.parameters[number])
        if user.opcode in _REARRANGES:
            return _is_looked_up(program, computation, user)
        return user.opcode == "gather" and user.operands[0] == one.name

    users = computation.users[one.name]
    return bool(users) and all(map(looks_up, users))


def product_operations(instruction: Instruction, operands: list[Instruction]) -> int:
    """Multiplications and additions of a product.

    Args:
        instruction: A `dot`, a `convolution` or a library's product.
        operands: Its operands.

    Returns:
        Their number; 0 for anything else.
    """
    if instruction.opcode == "convolution":
        result = instruction.results[0].size
        # The kernel has one axis for output features; all others are summed over.
        labels = instruction.attributes.partition("dim_labels=")[2].partition(",")[0]
        kernel = labels.partition("_")[2].partition("->")[0]
        dims = next(arrays(operands[1].type)).dims
        outputs = dims[kernel.index("o")] if "o" in kernel else 1
        return 2 * result * math.prod(dims) // max(1, outputs)
    names = "lhs_contracting_dims", "lhs_contracting_dimensions"
    summed = [axis for name in names for axis in instruction.dims(name)]
    if not summed:
        return 0
    first = next(arrays(operands[0].type)).dims
    return 2 * instruction.results[0].size * math.prod(first[axis] for axis in summed)


def _elements(one: Instruction) -> int:
    return sum(kind.size for kind in arrays(one.type))


def _capped(needed: float, one: Instruction) -> float:
    return min(needed, _elements(one))


def _operand_needs(
    program: Program,
    one: Instruction,
    operands: list[Instruction],
    needed: float,
    in_place: set[str],
) -> list[float]:
    """How many elements of each operand are read for so many of the result."""
    sizes: list[float] = [_elements(operand) for operand in operands]
    share = needed / max(1, _elements(one))
    if one.opcode in _SLICES:
        return [needed, *sizes[1:]]
    if one.opcode == "dynamic-update-slice":
        rest = 0.0 if one.name in in_place else max(0.0, needed - sizes[1])
        return [rest, *sizes[1:]]
    if one.opcode == "broadcast":
        return [min(size, needed) for size in sizes]
    if one.opcode in ("tuple", "get-tuple-element"):
        return sizes
    if one.opcode == "fusion":
        called = program.called_by(one, "calls")
        assert called is not None
        inner = fusion_traffic(program, called).reads
        return [share * inner[index] for index in range(len(operands))]
    # Elementwise, or a product or a sum, which read all of their operands.
    is_elementwise = all(size in (1, _elements(one)) for size in sizes)
    if is_elementwise or one.opcode in ("concatenate", "pad"):
        return [share * size for size in sizes]
    return sizes


def _results(computation: Computation) -> list[Instruction]:
    """What computes each array of the result, without bitcasts around it."""
    root = computation.root
    parts = (
        [computation.by_name[name] for name in root.operands]
        if root.opcode == "tuple"
        else [root]
    )
    return [
        _without_bitcasts(computation, part)
        for part in parts
        for _ in arrays(part.type)
    ]


def _without_bitcasts(computation: Computation, one: Instruction) -> Instruction:
    while one.opcode == "bitcast":
        one = computation.by_name[one.operands[0]]
    return one


def _updating(computation: Computation) -> list[Instruction]:
    """The results that update a parameter in place."""
    return [
        one
        for one in _results(computation)
        if one.opcode == "dynamic-update-slice"
        and _without_bitcasts(computation, computation.by_name[one.operands[0]]).opcode
        == "parameter"
    ]


def _updates(computation: Computation) -> dict[int, tuple[int, int]]:
    updating = {one.name for one in _updating(computation)}
    found = {}
    for index, one in enumerate(_results(computation)):
        if one.name in updating:
            base = computation.by_name[one.operands[0]]
            parameter = _without_bitcasts(computation, base)
            update = computation.by_name[one.operands[1]]
            found[index] = int(parameter.arguments), num_bytes(update.type)
    return found


def _only_moves(program: Program, computation: Computation) -> bool:
    """Whether all but single numbers, such as indices, is moved only."""
    for one in computation.instructions:
        if _elements(one) > 1 and one.opcode not in _MOVES:
            return False
        called = program.called_by(one, "calls")
        if called is not None and not _only_moves(program, called):
            return False
    return True


def _operations(program: Program, computation: Computation) -> int:
    total = 0
    for one in computation.instructions:
        called = program.called_by(one, "calls")
        if called is not None:
            total += _operations(program, called)
        elif one.opcode in _PRODUCTS:
            operands = [computation.by_name[name] for name in one.operands]
            total += product_operations(one, operands)
    return total

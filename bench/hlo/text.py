"""The text of a compiled program, read into computations and instructions.

XLA prints what it has compiled as text (`compiled.as_text()`): computations, one of
which is the entry, each a list of instructions in the order in which they run. Only
what a reader of launches, copies and bytes needs is kept.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "tf32": 32}
_NUMBERED = re.compile(r"(?:[sufc]|f8e|f4e|f6e)(\d+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([^\]]*)\](?:\{([^}]*)\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_COMMENT = re.compile(r"/\*[^*]*\*/")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")


@dataclasses.dataclass(frozen=True)
class ArrayType:
    """The type of one array.

    Attributes:
        dtype: As XLA writes it, e.g. "bf16".
        dims: Its dimensions.
        memory_space: Where it lies: 0 is the device's memory; others are faster and
            small (on a TPU), or the host's.
    """

    dtype: str
    dims: tuple[int, ...]
    memory_space: int = 0

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Bytes without the padding of a device's tiles."""
        return -(-self.size * bits_of(self.dtype) // 8)


Type = ArrayType | tuple["Type", ...]
"""An array's type, or those of a tuple's parts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
        name: Its name, which is unique in the program.
        opcode: What it does, e.g. "fusion".
        type: The type of its result.
        operands: Names of its operands.
        arguments: The text between its parentheses: a parameter's number, a constant.
        attributes: The text behind the operands.
        called: Attribute -> the computation that it names; branches of a conditional
            are "branch 0" and so on.
        is_root: Whether its result is the computation's.
    """

    name: str
    opcode: str
    type: Type
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    called: tuple[tuple[str, str], ...]
    is_root: bool

    @property
    def op_name(self) -> str:
        """What the instruction was traced from; empty where XLA does not tell."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """Target of a custom call, e.g. a library's product; else empty."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def trip_count(self) -> int | None:
        """How often a loop's body runs; None where the compiler does not know."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(found[1]) if found else None

    @property
    def tuple_index(self) -> int:
        """Which part of a tuple a `get-tuple-element` is."""
        found = re.search(r"\bindex=(\d+)", self.attributes)
        assert found is not None, self.name
        return int(found[1])

    @property
    def results(self) -> list[ArrayType]:
        """The arrays that it writes, without what it has beside them to work in."""
        if isinstance(self.type, ArrayType):
            return [self.type]
        # The type of what is only started has the operands beside the results.
        if self.opcode == "copy-start":
            return list(arrays(self.type[0]))
        if self.opcode.endswith("-start") and self.opcode != "all-reduce-start":
            return list(arrays(self.type[1]))
        found = list(arrays(self.type))
        return found[:1] if self.is_library_product else found

    @property
    def is_library_product(self) -> bool:
        """Whether it is a product of cuBLAS, whose second result is room to work in."""
        return self.target.startswith("__cublas")

    def dims(self, attribute: str) -> tuple[int, ...]:
        """The numbers of an attribute such as `lhs_contracting_dims={1}`.

        Args:
            attribute: Its name; also one of a library product's settings.

        Returns:
            The numbers; none where there is no such attribute.
        """
        found = re.search(rf'{attribute}"?[=:][{{\[]([\d",]*)[}}\]]', self.attributes)
        return _numbers(found[1].replace('"', "")) if found else ()

    def calls(self, attribute: str) -> str | None:
        """The computation that an attribute names.

        Args:
            attribute: E.g. "body".

        Returns:
            The computation's name; None where there is no such attribute.
        """
        return dict(self.called).get(attribute)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
    """A list of instructions with one result.

    Attributes:
        name: Its name.
        instructions: In the order in which they run.
    """

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by their names."""
        return {one.name: one for one in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(one for one in self.instructions if one.is_root)

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """The parameters by their numbers."""
        return {
            int(one.arguments): one
            for one in self.instructions
            if one.opcode == "parameter"
        }

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Name of an instruction -> the instructions that have it as an operand."""
        found: dict[str, list[Instruction]] = {
            one.name: [] for one in self.instructions
        }
        for one in self.instructions:
            for operand in dict.fromkeys(one.operands):
                found[operand].append(one)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program.

    Attributes:
        entry: The name of the computation that it begins with.
        computations: All computations by name.
    """

    entry: str
    computations: dict[str, Computation]

    def called_by(self, instruction: Instruction, attribute: str) -> Computation | None:
        """The computation that an attribute of an instruction names.

        Args:
            instruction: The instruction.
            attribute: E.g. "body".

        Returns:
            The computation; None where there is no such attribute.
        """
        name = instruction.calls(attribute)
        return None if name is None else self.computations[name]


def bits_of(dtype: str) -> int:
    """The bits of one element.

    Args:
        dtype: As XLA writes it.

    Returns:
        Bits; a `pred` takes a whole byte.

    Raises:
        ValueError: The type is unknown.

    Example:
        >>> bits_of("bf16"), bits_of("s4"), bits_of("f8e4m3fn")
        (16, 4, 8)
    """
    if dtype in _BITS:
        return _BITS[dtype]
    if dtype.startswith("f8"):
        return 8
    found = _NUMBERED.match(dtype)
    if found is None:
        raise ValueError(f"type {dtype!r} is unknown; add it to hlo_text._BITS")
    return int(found[1])


def arrays(kind: Type) -> Iterator[ArrayType]:
    """The arrays of a type, those of nested tuples included.

    Args:
        kind: The type.

    Yields:
        One after another.
    """
    if isinstance(kind, ArrayType):
        yield kind
        return
    for part in kind:
        yield from arrays(part)


def num_bytes(kind: Type) -> int:
    """Bytes of all arrays of a type.

    Args:
        kind: The type.

    Returns:
        Their sum.
    """
    return sum(one.num_bytes for one in arrays(kind))


def parse_program(text: str) -> Program:
    """Read a compiled program.

    Args:
        text: What `compiled.as_text()` returns.

    Returns:
        The program.

    Raises:
        ValueError: There is no entry computation, or a line cannot be read.
    """
    computations: dict[str, Computation] = {}
    entry, name, lines = None, None, []
    for line in text.splitlines():
        if name is None:
            header = _HEADER.match(line)
            if header is None:
                continue
            name, lines = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}"):
            computations[name] = Computation(
                name=name, instructions=tuple(map(parse_instruction, lines))
            )
            name = None
        elif line.strip():
            lines.append(line)
    if entry is None:
        raise ValueError("the text has no ENTRY computation; give compiled.as_text()")
    return Program(entry=entry, computations=computations)


def parse_instruction(line: str) -> Instruction:
    """Read one line of a computation.

    Args:
        line: E.g. `  ROOT %add.1 = f32[8]{0} add(%a, %b)`.

    Returns:
        The instruction.

    Raises:
        ValueError: It is none.
    """
    head = _INSTRUCTION.match(line)
    if head is None:
        raise ValueError(f"{line[:60]!r} is no instruction; give compiled.as_text()")
    # Comments number the parts of long tuples.
    rest = _COMMENT.sub("", line[head.end() :])
    kind, rest = _split_type(rest)
    opcode, _, rest = rest.partition("(")
    end = _closing(rest)
    arguments, attributes = rest[:end], rest[end + 1 :]
    return Instruction(
        name=head[2],
        opcode=opcode.strip(),
        type=kind,
        operands=tuple(_OPERAND.findall(arguments)),
        arguments=arguments,
        attributes=attributes,
        called=tuple(_called(attributes)),
        is_root=bool(head[1]),
    )


def _called(attributes: str) -> Iterator[tuple[str, str]]:
    """(attribute, the computation that it names) of an instruction."""
    yield from _CALLED.findall(attributes)
    branches = _BRANCHES.search(attributes)
    names = _OPERAND.findall(branches[1]) if branches else ()
    for index, name in enumerate(names):
        yield f"branch {index}", name


def _split_type(text: str) -> tuple[Type, str]:
    """The type that a text begins with, and what follows it."""
    if not text.startswith("("):
        found = _ARRAY.match(text)
        if found is None:
            # Types without dimensions, e.g. of tokens.
            word, _, rest = text.partition(" ")
            return ArrayType(word.partition("[")[0], ()), rest
        dtype, dims, layout = found.groups()
        space = _MEMORY_SPACE.search(layout or "")
        kind = ArrayType(dtype, _numbers(dims), int(space[1]) if space else 0)
        return kind, text[found.end() :].lstrip()
    parts: list[Type] = []
    rest = text[1:]
    while not rest.startswith(")"):
        part, rest = _split_type(rest.lstrip(" ,"))
        parts.append(part)
    return tuple(parts), rest[1:].lstrip()


def _closing(text: str) -> int:
    """Where the parenthesis closes that was opened before the text."""
    depth = 1
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return index
    raise ValueError(f"{text[:60]!r} has no closing parenthesis")


def _numbers(text: str) -> tuple[int, ...]:
    # Bounded dynamic dimensions are written "<=8".
    return tuple(int(part.strip(" <=")) for part in text.split(",") if part.strip())

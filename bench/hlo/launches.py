"""What a program runs, as records: launches, what they read and write, how often."""

import dataclasses
from typing import Any

from bench.hlo.text import ArrayType, Instruction


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an array comes from.

    Attributes:
        argument: The argument of the program that it is, or is a part of.
        is_copy: Whether a launch has copied it from there.
    """

    argument: int
    is_copy: bool = False


Origins = Any
"""An `Origin`, or None for what was computed; of a tuple, a tuple of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """What a launch reads of one operand.

    Attributes:
        origin: Where the operand comes from; None for what was computed.
        elements: How many elements.
        num_bytes: How many bytes of the device's memory.
        is_gather: Whether rows of it are looked up, by indices that are computed.
    """

    origin: Origin | None
    elements: float
    num_bytes: float
    is_gather: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """An instruction that the device is given to run.

    Attributes:
        instruction: The instruction.
        reads: What it reads, once.
        written: Bytes that it writes to the device's memory, once.
        largest: The largest of its results that is not an update in place.
        only_moves: Whether it moves numbers and computes nothing of them.
        operations: Multiplications and additions of its products, once.
        copied: The argument that it copies a large part of; None: none.
        executions: How often it runs.
        count: Launches that one execution counts as: 0 inside a command buffer, which
            is one itself.
    """

    instruction: Instruction
    reads: tuple[Read, ...] = ()
    written: float = 0
    largest: ArrayType | None = None
    only_moves: bool = False
    operations: int = 0
    copied: int | None = None
    executions: float = 1
    count: int = 1

    @property
    def read(self) -> float:
        """Bytes that it reads of the device's memory, once."""
        return sum(one.num_bytes for one in self.reads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detour:
    """A loop whose number of turns is not known, or a branch, and how it was counted.

    Attributes:
        name: Name of the loop or conditional, and which part of it.
        op_name: What it was traced from.
        executions: How often it was counted.
        launches: Launches of one execution.
    """

    name: str
    op_name: str
    executions: float
    launches: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """What a part of a program runs.

    Attributes:
        launches: All launches that were counted.
        host_waits: How often the host must learn something from the device before it
            can go on: conditions of loops and choices of branches.
        detours: Loops whose number of turns is not known, and branches.
    """

    launches: tuple[Launch, ...] = ()
    host_waits: float = 0
    detours: tuple[Detour, ...] = ()

    @property
    def count(self) -> float:
        """Launches in all executions."""
        return sum(one.count * one.executions for one in self.launches)

    @property
    def operations(self) -> float:
        """Multiplications and additions of all products."""
        return sum(one.operations * one.executions for one in self.launches)

    @property
    def read(self) -> float:
        """Bytes that are read in all executions."""
        return sum(one.read * one.executions for one in self.launches)

    @property
    def written(self) -> float:
        """Bytes that are written in all executions."""
        return sum(one.written * one.executions for one in self.launches)

    def read_of(self, arguments: frozenset[int]) -> float:
        """Bytes that are read of some arguments where they lie.

        Args:
            arguments: Their numbers.

        Returns:
            Bytes in all executions, without what is read of copies.
        """
        return sum(
            read.num_bytes * one.executions
            for one in self.launches
            for read in one.reads
            if read.origin is not None
            and read.origin.argument in arguments
            and not read.origin.is_copy
        )

    def copied_of(self, arguments: frozenset[int]) -> float:
        """Bytes of copies that are made of some arguments.

        Args:
            arguments: Their numbers.

        Returns:
            Bytes that such launches write, in all executions.
        """
        return sum(
            one.largest.num_bytes * one.executions
            for one in self.launches
            if one.copied in arguments and one.largest is not None
        )

    def times(self, executions: float) -> "Trace":
        """The same, run several times.

        Args:
            executions: How often.

        Returns:
            What runs then.
        """
        if not executions:
            return Trace()
        return Trace(
            launches=tuple(
                dataclasses.replace(one, executions=one.executions * executions)
                for one in self.launches
            ),
            host_waits=self.host_waits * executions,
            detours=tuple(
                dataclasses.replace(one, executions=one.executions * executions)
                for one in self.detours
            ),
        )

    def __add__(self, other: "Trace") -> "Trace":
        """What both run."""
        return Trace(
            launches=self.launches + other.launches,
            host_waits=self.host_waits + other.host_waits,
            detours=self.detours + other.detours,
        )

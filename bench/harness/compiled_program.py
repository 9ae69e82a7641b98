"""Figures of a compiled program: launches, copies, collectives, bytes and least time.

All are counted over executions: what stands in the body of a loop counts as often as it
runs. What a layer costs is the difference of two models of different depth.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

from bench.hlo.launches import Launch, Trace
from bench.hlo.text import Instruction, Program
from bench.hlo.thunks import HostLaunches
from jaxdave.runtime.machine import Machine

LARGE = 2**20
"""Bytes from which on an array is large."""

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
"""Operations that move data between devices."""

_COPY_KINDS = ("weights", "cache", "copy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What a round, or a part of it, costs.

    Attributes:
        launches: Kernels, copies, library calls and collectives.
        host_launches: The same, a command buffer being one.
        buffers: Command buffers.
        buffered: Launches that are in command buffers.
        host_waits: How often the host waits for a value of the device.
        weights_read: Bytes of weights that are read where they lie.
        cache_read: Bytes of the KV cache that are read where it lies.
        other_read: Bytes that are read of copies and of what was computed.
        written: Bytes that are written.
        weights_copied: Bytes of weights that are written elsewhere.
        operations: Multiplications and additions of products.
        collectives: Number of collectives.
        collective_bytes: Bytes of their results.
    """

    launches: float = 0
    host_launches: float = 0
    buffers: float = 0
    buffered: float = 0
    host_waits: float = 0
    weights_read: float = 0
    cache_read: float = 0
    other_read: float = 0
    written: float = 0
    weights_copied: float = 0
    operations: float = 0
    collectives: float = 0
    collective_bytes: float = 0

    @property
    def read(self) -> float:
        """All bytes that are read."""
        return self.weights_read + self.cache_read + self.other_read

    def combine(
        self, other: "Counts", rule: Callable[[float, float], float]
    ) -> "Counts":
        """Combine each count with another's.

        Args:
            other: The other counts.
            rule: (own, other's) -> the combined one.

        Returns:
            Combined counts.
        """
        names = [field.name for field in dataclasses.fields(self)]
        return Counts(
            **{name: rule(getattr(self, name), getattr(other, name)) for name in names}
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargeArray:
    """A large array that launches write.

    Attributes:
        kind: "weights" or "cache" for copies of those, "copy" for what else is moved
            only, "computed" for the rest.
        num_bytes: Bytes of one.
        executions: How often it is written.
        array: Its type and dimensions.
        instruction: The instruction's name, without its number.
        op_name: What it was traced from.
        source: Path of the argument that is copied; empty for others.
    """

    kind: str
    num_bytes: int
    executions: float
    array: str
    instruction: str
    op_name: str
    source: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """Collectives of one kind.

    Attributes:
        kind: E.g. "all-reduce".
        executions: How many there are.
        num_bytes: Bytes of all results.
        largest: Bytes of the largest result.
    """

    kind: str
    executions: float
    num_bytes: float
    largest: int


def count(
    program: Program,
    trace: Trace,
    weights: frozenset[int],
    cache: frozenset[int],
    host: HostLaunches | None = None,
) -> Counts:
    """Sum up what a trace costs.

    Args:
        program: The program that was traced.
        trace: What is run.
        weights: Numbers of the arguments that are weights.
        cache: Numbers of the arguments that are the KV cache.
        host: What the host launches; None: no command buffers.

    Returns:
        The sums.
    """
    weights_read, cache_read = trace.read_of(weights), trace.read_of(cache)
    moved = collectives(program, trace.launches)
    return Counts(
        launches=trace.count,
        host_launches=trace.count if host is None else host.launches,
        buffers=0 if host is None else host.buffers,
        buffered=0 if host is None else host.buffered,
        host_waits=trace.host_waits,
        weights_read=weights_read,
        cache_read=cache_read,
        other_read=trace.read - weights_read - cache_read,
        written=trace.written,
        weights_copied=trace.copied_of(weights),
        operations=trace.operations,
        collectives=sum(one.executions for one in moved),
        collective_bytes=sum(one.num_bytes for one in moved),
    )


def per_layer(
    deep: Counts, shallow: Counts, num_deep: int, num_shallow: int
) -> tuple[Counts, Counts]:
    """Tell a layer's costs from those of a round outside the layers.

    Args:
        deep: Counts of a model of `num_deep` layers.
        shallow: Counts of one of `num_shallow` layers, fewer.
        num_deep: Layers.
        num_shallow: Layers.

    Returns:
        (counts of one layer, counts outside the layers).

    Example:
        >>> deep, shallow = Counts(launches=100), Counts(launches=60)
        >>> [part.launches for part in per_layer(deep, shallow, 4, 2)]
        [20.0, 20.0]
    """
    between = num_deep - num_shallow
    layer = deep.combine(shallow, lambda many, few: (many - few) / between)
    outside = deep.combine(layer, lambda many, one: many - num_deep * one)
    return layer, outside


def large_arrays(
    launches: Iterable[Launch],
    paths: Mapping[int, str],
    weights: frozenset[int],
    cache: frozenset[int],
    least: int = LARGE,
) -> list[LargeArray]:
    """List large arrays that are written, copies of weights first.

    Args:
        launches: What is run.
        paths: Number of an argument -> its path.
        weights: Numbers of the arguments that are weights.
        cache: Numbers of the arguments that are the KV cache.
        least: Bytes from which on an array is large.

    Returns:
        The arrays, those alike together.
    """
    found: dict[LargeArray, float] = collections.defaultdict(float)
    for one in launches:
        if one.largest is None or one.largest.num_bytes < least:
            continue
        dims = ",".join(map(str, one.largest.dims))
        key = LargeArray(
            kind=_kind(one, weights, cache),
            num_bytes=one.largest.num_bytes,
            executions=0,
            array=f"{one.largest.dtype}[{dims}]",
            instruction=re.sub(r"[.\d]+$", "", one.instruction.name),
            op_name=one.instruction.op_name,
            source="" if one.copied is None else paths.get(one.copied, ""),
        )
        found[key] += one.executions
    kinds = (*_COPY_KINDS, "computed")
    return sorted(
        (dataclasses.replace(key, executions=times) for key, times in found.items()),
        key=lambda one: (kinds.index(one.kind), -one.num_bytes * one.executions),
    )


def collectives(program: Program, launches: Iterable[Launch]) -> list[Collective]:
    """Sum up collectives by their kind.

    Args:
        program: The program.
        launches: What is run; a collective may be a part of a fusion.

    Returns:
        One entry for each kind.
    """
    found: dict[str, list[tuple[float, int]]] = collections.defaultdict(list)
    for launch in launches:
        for one in _with_parts(program, launch.instruction):
            kind = one.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                size = sum(array.num_bytes for array in one.results)
                found[kind].append((launch.executions, size))
    return [
        Collective(
            kind=kind,
            executions=sum(times for times, _ in parts),
            num_bytes=sum(times * size for times, size in parts),
            largest=max(size for _, size in parts),
        )
        for kind, parts in sorted(found.items())
    ]


def least_seconds(machine: Machine, num_bytes: float, operations: float) -> float:
    """The time that a machine needs at least.

    Args:
        machine: The machine, with its rates.
        num_bytes: Bytes that are read and written.
        operations: Multiplications and additions.

    Returns:
        Seconds: for the bytes or for the operations, whichever is more.
    """
    return max(
        num_bytes / machine.bytes_per_second,
        operations / machine.operations_per_second,
    )


def _kind(one: Launch, weights: frozenset[int], cache: frozenset[int]) -> str:
    if one.copied in weights:
        return "weights"
    if one.copied in cache:
        return "cache"
    return "copy" if one.only_moves and one.read >= LARGE else "computed"


def _with_parts(program: Program, one: Instruction) -> Iterable[Instruction]:
    """An instruction and those of the computations that it calls."""
    yield one
    called = program.called_by(one, "calls")
    for inner in () if called is None else called.instructions:
        yield from _with_parts(program, inner)

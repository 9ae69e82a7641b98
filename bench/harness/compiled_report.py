"""Compile a decode's program in two depths, and report what a round of it does."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bench.harness.abstract_decode import (
    CompiledDecode,
    DecodeShape,
    compile_decode,
)
from bench.harness.compiled_program import (
    Collective,
    Counts,
    LargeArray,
    collectives,
    count,
    large_arrays,
    least_seconds,
    per_layer,
)
from bench.harness.device_topology import Target
from bench.hlo.launches import Detour, Trace
from bench.hlo.text import Instruction, Program, parse_program
from bench.hlo.thunks import HostLaunches, host_launches, loop_names, parse_thunks
from bench.hlo.walk import (
    ProgramTrace,
    Weights,
    main_loop,
    trace_program,
)
from jaxdave.models.attention import TILE
from jaxdave.runtime.machine import Machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeReport:
    """What a compiled program of a decode needs and does, on one device.

    Attributes:
        target: The devices.
        machine: One of them.
        jax_version: Of which compiler all this is true.
        program: One of `abstract_decode.PROGRAMS`.
        shape: What the program was compiled for.
        compile_seconds: What tracing and compiling took, at the greater depth.
        compile_cpu_seconds: The same in seconds of all cores.
        argument_bytes: Bytes of the arguments.
        temporary_bytes: Bytes that it needs beside them.
        weight_bytes: Bytes of the weights that a round reads, if it reads each once.
        cache_bytes: Bytes of the KV cache.
        layer: Costs of one layer.
        outside: Costs of a round outside the layers.
        round: Costs of a round.
        once: Costs before and after the loop.
        large: Large arrays that a round writes.
        large_once: Those that are written before and after the loop.
        collectives: Collectives of a round.
        collectives_per_layer: Those of one layer.
        detours: Loops whose number of turns is not known, and branches.
    """

    target: str
    machine: Machine
    jax_version: str
    program: str
    shape: DecodeShape
    compile_seconds: float
    compile_cpu_seconds: float
    argument_bytes: int
    temporary_bytes: int
    weight_bytes: int
    cache_bytes: int
    layer: Counts
    outside: Counts
    round: Counts
    once: Counts
    large: tuple[LargeArray, ...]
    large_once: tuple[LargeArray, ...]
    collectives: tuple[Collective, ...]
    collectives_per_layer: tuple[Collective, ...]
    detours: tuple[Detour, ...]

    @property
    def needed_bytes(self) -> int:
        """Bytes that a round reads at least: weights and cache, once."""
        return self.weight_bytes + self.cache_bytes

    @property
    def read_share(self) -> float:
        """What a round reads, as a multiple of `needed_bytes`."""
        return self.round.read / self.needed_bytes

    @property
    def seconds(self) -> float:
        """The time that a round takes at least: for its bytes and operations."""
        moved = self.round.read + self.round.written
        return least_seconds(self.machine, moved, self.round.operations)

    @property
    def needed_seconds(self) -> float:
        """The same for weights and cache alone."""
        return least_seconds(self.machine, self.needed_bytes, self.round.operations)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Depth:
    """A program of one depth, and what was counted of it."""

    program: Program
    trace: ProgramTrace
    counts: Counts
    once: Counts


def report_decode(
    shape: DecodeShape,
    target: Target,
    program: str = "loop",
    options: Mapping[str, Any] | None = None,
    text_file: Path | None = None,
) -> DecodeReport:
    """Compile a program in its depth and in half of it, and report on it.

    Args:
        shape: What decides its shapes.
        target: The devices.
        program: One of `abstract_decode.PROGRAMS`.
        options: Options of the compiler, beside those that jaxdave gives it.
        text_file: Where to write the text of the compiled program; None: nowhere.

    Returns:
        The report.

    Raises:
        ValueError: A setting does not fit the model, or it has less than two layers.
    """
    layers = shape.config.num_layers
    if layers < 2:
        raise ValueError(
            f"{layers} layer is too few to tell a layer from the rest; use 2 or more"
        )
    compiled = compile_decode(shape, target, program, options)
    if text_file is not None:
        text_file.write_text(compiled.text)
    deep = _count(compiled, shape, program)
    half = shape.with_layers(layers // 2)
    shallow = _count(compile_decode(half, target, program, options), half, program)
    layer, outside = per_layer(deep.counts, shallow.counts, layers, layers // 2)
    trace = deep.trace
    arguments = {**compiled.weights, **compiled.cache}
    paths = {number: one.path for number, one in arguments.items()}
    weights, cache = frozenset(compiled.weights), frozenset(compiled.cache)
    moved = collectives(deep.program, trace.round.launches)
    moved_shallow = collectives(shallow.program, shallow.trace.round.launches)
    return DecodeReport(
        target=target.name,
        machine=target.machine,
        jax_version=jax.__version__,
        program=program,
        shape=shape,
        compile_seconds=compiled.seconds,
        compile_cpu_seconds=compiled.cpu_seconds,
        argument_bytes=compiled.argument_bytes,
        temporary_bytes=compiled.temporary_bytes,
        weight_bytes=sum(_read_bytes(shape, compiled)),
        cache_bytes=sum(one.num_bytes for one in compiled.cache.values()),
        layer=layer,
        outside=outside,
        round=deep.counts,
        once=deep.once,
        large=tuple(large_arrays(trace.round.launches, paths, weights, cache)),
        large_once=tuple(large_arrays(trace.once.launches, paths, weights, cache)),
        collectives=tuple(moved),
        collectives_per_layer=tuple(
            _per_layer(moved, moved_shallow, layers - layers // 2)
        ),
        detours=trace.round.detours,
    )


def _count(compiled: CompiledDecode, shape: DecodeShape, name: str) -> _Depth:
    """Count what a compiled program does."""
    program = parse_program(compiled.text)
    weights, cache = frozenset(compiled.weights), frozenset(compiled.cache)
    known = Weights(
        arguments=weights,
        # Half of a matrix counts as copied.
        min_elements=_smallest_matrix(compiled) / 2,
        layers=shape.config.num_layers,
    )

    def turns(loop: Instruction, turn: Trace) -> float:
        reads_model = turn.read_of(weights) >= shape.config.hidden
        if name == "loop":
            # A loop around the model is a guard call, which few rounds need. Others
            # look through the drafts.
            return 0 if reads_model else shape.draft_steps
        # A guard call renews the cache tile by tile, mostly one; attention in the
        # trusted shape goes through all tiles of keys.
        return 1 if reads_model else shape.capacity / TILE

    trace = trace_program(program, turns, known, is_loop=name == "loop")
    host, host_once = _host_launches(compiled, program, trace, name == "loop")
    return _Depth(
        program=program,
        trace=trace,
        counts=count(program, trace.round, weights, cache, host),
        once=count(program, trace.once, weights, cache, host_once),
    )


def _host_launches(
    compiled: CompiledDecode, program: Program, trace: ProgramTrace, is_loop: bool
) -> tuple[HostLaunches | None, HostLaunches | None]:
    """What the host launches in a round, and once; None where that is not told."""
    if not compiled.thunks:
        return None, None
    thunks = parse_thunks(compiled.thunks)
    found = host_launches(thunks, loop_names(program), trace.turns)
    if not is_loop:
        return found[""], HostLaunches()
    one_round = found[main_loop(program)]
    # The whole has one turn of the loop, with its condition before and after it.
    return one_round, found[""] + one_round.times(-1)


def _smallest_matrix(compiled: CompiledDecode) -> float:
    """Elements of the smallest matrix of a layer."""
    sizes = [
        one.dims[-1] * one.dims[-2]
        for one in compiled.weights.values()
        if "kernel" in one.path and len(one.dims) > 1 and not one.path.endswith("scale")
    ]
    return min(sizes)


def _read_bytes(shape: DecodeShape, compiled: CompiledDecode) -> list[int]:
    """Bytes of every weight that a round reads."""
    # Of an embedding that is no head, a round looks up a few rows.
    is_head = shape.config.tie_embeddings
    return [
        one.num_bytes
        for one in compiled.weights.values()
        if is_head or not one.path.startswith("embedding")
    ]


def _per_layer(
    deep: Sequence[Collective], shallow: Sequence[Collective], layers: int
) -> list[Collective]:
    """Collectives of one layer: the difference of two depths."""
    few = {one.kind: one for one in shallow}
    found = []
    for one in deep:
        other = few.get(one.kind)
        executions = one.executions - (other.executions if other else 0)
        size = one.num_bytes - (other.num_bytes if other else 0)
        if executions:
            found.append(
                dataclasses.replace(
                    one, executions=executions / layers, num_bytes=size / layers
                )
            )
    return found

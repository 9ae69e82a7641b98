"""A walk through a compiled program: what runs, how often, and on which arguments.

The program is followed from its entry on: the bodies of loops as often as they run, of
a conditional the branch with most launches. Along the way it is known which argument of
the program an array is, or is a part of, so that reading weights can be told from
reading what was computed before.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from bench.hlo.fusions import Traffic, fusion_traffic, instruction_traffic
from bench.hlo.launches import Detour, Launch, Origin, Origins, Read, Trace
from bench.hlo.loops import known_turns
from bench.hlo.text import (
    ArrayType,
    Computation,
    Instruction,
    Program,
    Type,
    arrays,
)

_NOT_LAUNCHED = {
    "parameter",
    "constant",
    "after-all",
    "partition-id",
    "replica-id",
    "domain",
}
_ALIASES = {"bitcast", "opt-barrier", "optimization-barrier", "add-dependency"}
# Custom calls that tell the compiler something, and run nothing.
_REMARKS = {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "ConcatBitcast",
    "GatherScatterIndicesBitpacked",
}
_LARGE = 2**20

TurnsFn = Callable[[Instruction, Trace], float]
"""(a loop whose number of turns is not known, what one turn runs) -> turns to count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """How weights and copies of them are told from other arrays.

    Attributes:
        arguments: Numbers of the program's arguments that are weights.
        min_elements: Elements from which on a part of a matrix counts as copied.
        layers: Layers of the model. A kernel that is given a stack of so many is
            counted as reading one of them.
    """

    arguments: frozenset[int] = frozenset()
    min_elements: float = float("inf")
    layers: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramTrace:
    """What a program runs.

    Attributes:
        round: One turn and one condition of the program's own loop; of a program that
            is no loop, all of it.
        once: What runs before and after the loop.
        turns: Loop -> (turns that it was counted with, whether the host asks for its
            condition); one entry for every loop.
    """

    round: Trace
    once: Trace
    turns: dict[str, tuple[float, bool]]


def trace_program(
    program: Program,
    turns: TurnsFn,
    weights: Weights = Weights(),
    *,
    is_loop: bool = False,
) -> ProgramTrace:
    """Follow a program from its entry to its end.

    Args:
        program: The program.
        turns: How often to count loops of which that is not known.
        weights: What counts as weights.
        is_loop: Tell one round from the rest: the entry has one loop whose number of
            turns is not known.

    Returns:
        What it runs.

    Raises:
        ValueError: It has no such loop, or several.
    """
    loop = main_loop(program) if is_loop else None
    walk = _Walk(program=program, turns=turns, weights=weights, main_loop=loop)
    rest = walk.run_entry()
    if not is_loop:
        return ProgramTrace(round=rest, once=Trace(), turns=walk.counted)
    return ProgramTrace(round=walk.round, once=rest, turns=walk.counted)


def main_loop(program: Program) -> str:
    """The loop of the entry whose number of turns is not known.

    Args:
        program: The program.

    Returns:
        Its name.

    Raises:
        ValueError: There is no such loop, or there are several.
    """
    entry = program.computations[program.entry]
    loops = [
        one.name
        for one in entry.instructions
        if one.opcode == "while" and known_turns(program, entry, one) is None
    ]
    if len(loops) != 1:
        raise ValueError(
            f"the program's entry has {len(loops)} loops of unknown length, not one; "
            "count it as a whole"
        )
    return loops[0]


@dataclasses.dataclass(kw_only=True)
class _Walk:
    """A walk through a program.

    Attributes:
        program: The program.
        turns: How often to count loops of which that is not known.
        weights: What counts as weights.
        main_loop: The loop of which one round is wanted.
        round: What that round runs, once the walk has come there.
        counted: How loops were counted (`ProgramTrace.turns`).
    """

    program: Program
    turns: TurnsFn
    weights: Weights
    main_loop: str | None = None
    round: Trace = Trace()
    counted: dict[str, tuple[float, bool]] = dataclasses.field(default_factory=dict)
    _fused: dict[str, Traffic] = dataclasses.field(default_factory=dict)

    def run_entry(self) -> Trace:
        """What the program runs."""
        entry = self.program.computations[self.program.entry]
        inputs = [
            Origin(number) if isinstance(one.type, ArrayType) else _computed(one.type)
            for number, one in sorted(entry.parameters.items())
        ]
        return self._run(entry, inputs)[0]

    def _run(
        self, computation: Computation, inputs: Sequence[Origins]
    ) -> tuple[Trace, Origins]:
        """What a computation runs, and where its result comes from."""
        values: dict[str, Origins] = {}
        parts: list[Trace] = []
        for one in computation.instructions:
            if one.opcode == "parameter":
                values[one.name] = inputs[int(one.arguments)]
                continue
            operands = [computation.by_name[name] for name in one.operands]
            given = [values[name] for name in one.operands]
            part, values[one.name] = self._step(computation, one, operands, given)
            parts.append(part)
        return _joined(parts), values[computation.root.name]

    def _step(
        self,
        computation: Computation,
        one: Instruction,
        operands: list[Instruction],
        given: list[Origins],
    ) -> tuple[Trace, Origins]:
        """What one instruction runs, and where its result comes from."""
        if one.opcode == "tuple":
            return Trace(), tuple(given)
        if one.opcode == "get-tuple-element":
            return Trace(), given[0][one.tuple_index]
        if one.opcode in _ALIASES:
            return Trace(), given[0]
        if one.opcode in _NOT_LAUNCHED or one.target in _REMARKS:
            return Trace(), _computed(one.type)
        if one.opcode.endswith(("-done", "-update")):
            return Trace(), _computed(one.type)
        if one.opcode == "while":
            return self._loop(computation, one, given[0])
        if one.opcode == "conditional":
            return self._choice(one, given[1:])
        if one.opcode == "call":
            return self._call(one, given)
        launch, origins = self._launch(one, operands, given)
        return Trace(launches=(launch,)), origins

    def _loop(
        self, computation: Computation, one: Instruction, carry: Origins
    ) -> tuple[Trace, Origins]:
        body = self.program.called_by(one, "body")
        condition = self.program.called_by(one, "condition")
        assert body is not None and condition is not None
        if one.name == self.main_loop:
            # To a round it is all one whether its arguments were copied before.
            carry = _as_originals(carry)
        turn, result = self._run(body, [carry])
        # What a turn replaces is no longer what the loop began with.
        while (merged := _merge(carry, result)) != carry:
            carry = merged
            turn, result = self._run(body, [carry])
        turns = known_turns(self.program, computation, one)
        if turns is not None:
            # The host counts such turns itself, and asks for no condition.
            self.counted[one.name] = turns, False
            return turn.times(turns), carry
        test = self._run(condition, [carry])[0] + Trace(host_waits=1)
        if one.name == self.main_loop:
            self.round = turn + test
            self.counted[one.name] = 1, True
            return Trace(), carry
        turns = self.turns(one, turn)
        self.counted[one.name] = turns, True
        detour = Detour(
            name=f"loop {one.name}",
            op_name=one.op_name,
            executions=turns,
            launches=turn.count,
        )
        counted = turn.times(turns) + test.times(turns + 1)
        return counted + Trace(detours=(detour,)), carry

    def _choice(
        self, one: Instruction, given: Sequence[Origins]
    ) -> tuple[Trace, Origins]:
        """The branch with most launches; all of them are listed."""
        runs = [
            self._run(self.program.computations[name], [origins])
            for (_, name), origins in zip(one.called, given, strict=True)
        ]
        chosen = max(range(len(runs)), key=lambda index: runs[index][0].count)
        detours = tuple(
            Detour(
                name=f"branch {index} of {one.name}",
                op_name=one.op_name,
                executions=float(index == chosen),
                launches=trace.count,
            )
            for index, (trace, _) in enumerate(runs)
        )
        origins = runs[0][1]
        for _, other in runs[1:]:
            origins = _merge(origins, other)
        return runs[chosen][0] + Trace(host_waits=1, detours=detours), origins

    def _call(self, one: Instruction, given: list[Origins]) -> tuple[Trace, Origins]:
        called = self.program.called_by(one, "to_apply")
        assert called is not None
        trace, origins = self._run(called, given)
        if "command_buffer" not in called.name:
            return trace, origins
        # The host launches a command buffer once for all that is in it.
        parts = tuple(dataclasses.replace(part, count=0) for part in trace.launches)
        whole = Launch(instruction=one)
        return dataclasses.replace(trace, launches=(whole, *parts)), origins

    def _launch(
        self, one: Instruction, operands: list[Instruction], given: list[Origins]
    ) -> tuple[Launch, Origins]:
        traffic = self._traffic(one, operands)
        reads = tuple(
            read
            for number, (operand, origins) in enumerate(
                zip(operands, given, strict=True)
            )
            for read in _reads(operand, origins, traffic, number)
        )
        written, fresh = 0.0, []
        origins: list[Origins] = []
        for index, kind in enumerate(one.results):
            if index in traffic.updates:
                number, num_bytes = traffic.updates[index]
                written += num_bytes
                origins.append(given[number])
                continue
            origins.append(None)
            # A faster memory is no device's memory.
            if not kind.memory_space:
                written += kind.num_bytes
                fresh.append(kind)
        largest = max(fresh, key=lambda kind: kind.num_bytes, default=None)
        copied = self._copied(traffic, reads, largest)
        if copied is not None:
            copy = Origin(copied, is_copy=True)
            origins = [copy if origin is None else origin for origin in origins]
        launch = Launch(
            instruction=one,
            reads=reads,
            written=written,
            largest=largest,
            only_moves=traffic.only_moves,
            operations=traffic.operations,
            copied=copied,
        )
        if one.opcode.endswith("-start"):
            return launch, _computed(one.type)
        return launch, _shaped(one.type, iter(origins))

    def _traffic(self, one: Instruction, operands: list[Instruction]) -> Traffic:
        called = self.program.called_by(one, "calls")
        if one.opcode != "fusion" or called is None:
            return instruction_traffic(one, operands, self.weights.layers)
        if called.name not in self._fused:
            self._fused[called.name] = fusion_traffic(self.program, called)
        return self._fused[called.name]

    def _copied(
        self, traffic: Traffic, reads: Sequence[Read], largest: ArrayType | None
    ) -> int | None:
        """The argument that a launch copies: it writes as many numbers as it reads."""
        if traffic.operations or largest is None:
            return None
        for read in reads:
            if read.origin is None or read.is_gather or read.elements > largest.size:
                continue
            # Whatever becomes of weights on the way: that they are scaled or widened
            # makes no result of their copy.
            argument = read.origin.argument
            is_large = read.elements >= self.weights.min_elements
            if argument in self.weights.arguments and is_large:
                return argument
            if traffic.only_moves and read.num_bytes >= _LARGE:
                return argument
        return None


def _reads(
    operand: Instruction, origins: Origins, traffic: Traffic, number: int
) -> list[Read]:
    """What is read of an operand; of a tuple, all of its arrays."""
    kinds = list(arrays(operand.type))
    flat = _flat(origins) if isinstance(operand.type, tuple) else [origins]
    total = sum(kind.size for kind in kinds)
    found = []
    for kind, origin in zip(kinds, flat, strict=True):
        share = traffic.reads.get(number, 0) * kind.size / max(1, total)
        if not share:
            continue
        # What lies in a faster memory was read before.
        num_bytes = 0 if kind.memory_space else share * kind.num_bytes / kind.size
        found.append(
            Read(
                origin=origin,
                elements=share,
                num_bytes=num_bytes,
                is_gather=number in traffic.gathers,
            )
        )
    return found


def _joined(parts: Sequence[Trace]) -> Trace:
    """Traces one after another; adding them up in turn would copy each many times."""
    return Trace(
        launches=tuple(one for part in parts for one in part.launches),
        host_waits=sum(part.host_waits for part in parts),
        detours=tuple(one for part in parts for one in part.detours),
    )


def _computed(kind: Type) -> Origins:
    """The origins of what was computed."""
    return None if isinstance(kind, ArrayType) else tuple(map(_computed, kind))


def _shaped(kind: Type, flat: Iterator[Origin | None]) -> Origins:
    """Origins of arrays as a tree like their type."""
    if isinstance(kind, ArrayType):
        # What a library product has to work in comes last, and is no result.
        return next(flat, None)
    return tuple(_shaped(part, flat) for part in kind)


def _flat(origins: Origins) -> list[Origin | None]:
    if not isinstance(origins, tuple):
        return [origins]
    return [one for part in origins for one in _flat(part)]


def _as_originals(origins: Origins) -> Origins:
    if isinstance(origins, tuple):
        return tuple(map(_as_originals, origins))
    return origins and Origin(origins.argument)


def _merge(first: Origins, second: Origins) -> Origins:
    """Where an array comes from that is one of two."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        return tuple(map(_merge, first, second))
    if not (isinstance(first, Origin) and isinstance(second, Origin)):
        return None
    # A loop that copies what it carries carries the same at every turn's beginning.
    return first if first.argument == second.argument else None

"""Launches of a GPU's program by the host, command buffers included.

XLA:GPU turns the instructions of a program into "thunks", and puts runs of them into
command buffers (CUDA graphs), which the host launches as one. That is not seen in the
program's text, but in the list of thunks that XLA writes where it is told to
(`xla_dump_to`).
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from bench.hlo.text import Computation, Program

_THUNK = re.compile(r"^( *)\d+: (k\w+)")
_SECTION = re.compile(r"^ *(?:No thunks\. *)?(condition|body|branch_\d+):")
_NOTHING = "No thunks."


@dataclasses.dataclass
class Thunk:
    """A step of a GPU's program.

    Attributes:
        kind: What XLA calls its kind, e.g. "kCustomKernel".
        indent: How far it is indented in the list.
        sections: Name of a part, such as "body", -> the thunks in it.
    """

    kind: str
    indent: int
    sections: dict[str, list["Thunk"]] = dataclasses.field(default_factory=dict)

    def add(self, section: str, thunk: "Thunk") -> None:
        """Add a thunk to a part."""
        self.sections.setdefault(section, []).append(thunk)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostLaunches:
    """What the host launches.

    Attributes:
        launches: Launches, a command buffer being one.
        buffers: Command buffers among them.
        buffered: Thunks inside of command buffers.
    """

    launches: float = 0
    buffers: float = 0
    buffered: float = 0

    def times(self, executions: float) -> "HostLaunches":
        """The same, several times.

        Args:
            executions: How often.

        Returns:
            All that is launched.
        """
        return HostLaunches(
            launches=self.launches * executions,
            buffers=self.buffers * executions,
            buffered=self.buffered * executions,
        )

    def __add__(self, other: "HostLaunches") -> "HostLaunches":
        """Both together."""
        return HostLaunches(
            launches=self.launches + other.launches,
            buffers=self.buffers + other.buffers,
            buffered=self.buffered + other.buffered,
        )


def parse_thunks(text: str) -> list[Thunk]:
    """Read a list of thunks.

    Args:
        text: What XLA has written to `*thunk_sequence_after_thunk_passes.txt`, or to
            `*thunk_sequence.txt` where there is no command buffer.

    Returns:
        The thunks of the program's entry.
    """
    entry = Thunk("entry", -1)
    above: list[tuple[Thunk, str]] = [(entry, "body")]
    for line in text.splitlines():
        thunk = _THUNK.match(line)
        if thunk is not None:
            found = Thunk(thunk[2], len(thunk[1]))
            while above[-1][0].indent >= found.indent:
                above.pop()
            above[-1][0].add(above[-1][1], found)
            above.append((found, "condition" if found.kind == "kWhile" else "body"))
            continue
        section = _SECTION.match(line)
        if section is not None and section[1] != "condition":
            # It belongs to the latest loop or conditional that is not over.
            kinds = "kConditional" if section[1].startswith("branch") else "kWhile"
            while above[-1][0].kind != kinds:
                above.pop()
            above[-1] = above[-1][0], section[1]
    return entry.sections.get("body", [])


def loop_names(program: Program) -> list[str]:
    """The loops of a program in the order in which its thunks are listed.

    Args:
        program: The program.

    Returns:
        Their names.
    """
    return list(_loops(program, program.computations[program.entry]))


def _loops(program: Program, computation: Computation) -> Iterator[str]:
    for one in computation.instructions:
        if one.opcode == "while":
            yield one.name
        if one.opcode in ("while", "conditional", "call"):
            called = dict(one.called)
            # A loop's condition is listed before its body.
            for attribute in sorted(called, key=lambda name: name != "condition"):
                yield from _loops(program, program.computations[called[attribute]])


def host_launches(
    thunks: list[Thunk], loops: list[str], turns: Mapping[str, tuple[float, bool]]
) -> dict[str, HostLaunches]:
    """Count what the host launches.

    Args:
        thunks: The thunks of the program's entry.
        loops: Its loops in the order of the thunks (`loop_names`).
        turns: Loop -> (turns to count, whether the host asks for its condition).

    Returns:
        "" -> all that is launched, and for every loop one turn and one condition.

    Raises:
        ValueError: The thunks have another number of loops.
    """
    names = iter(loops)
    found: dict[str, HostLaunches] = {}

    def count_all(parts: list[Thunk], is_buffered: bool) -> HostLaunches:
        each = (count(thunk, is_buffered) for thunk in parts)
        return sum(each, HostLaunches())

    def count(thunk: Thunk, is_buffered: bool) -> HostLaunches:
        # A command buffer may hold loops, of which the host launches nothing.
        is_buffered |= thunk.kind == "kCommandBuffer"
        if thunk.kind == "kWhile":
            name = next(names, None)
            if name is None:
                raise ValueError(f"there are more loops of thunks than {len(loops)}")
            condition = count_all(thunk.sections.get("condition", []), is_buffered)
            turn = count_all(thunk.sections.get("body", []), is_buffered)
            times, has_condition = turns.get(name, (0, True))
            if not has_condition:
                found[name] = turn
                return turn.times(times)
            found[name] = turn + condition
            return turn.times(times) + condition.times(times + 1 if times else 1)
        branches = [count_all(part, is_buffered) for part in thunk.sections.values()]
        if thunk.kind == "kConditional":
            most = max(branches, key=lambda each: each.launches + each.buffered)
            return most
        inner = sum(branches, HostLaunches())
        if thunk.kind == "kCommandBuffer":
            return inner + HostLaunches(launches=1, buffers=1)
        if thunk.kind == "kSequential":
            return inner
        # A slice that is copied is one launch, whatever it is listed with.
        launches = 0 if thunk.kind.endswith("Done") else 1
        if is_buffered:
            return HostLaunches(buffered=launches)
        return HostLaunches(launches=launches)

    found[""] = count_all(thunks, is_buffered=False)
    if (missed := next(names, None)) is not None:
        raise ValueError(f"the thunks have no loop {missed}")
    return found

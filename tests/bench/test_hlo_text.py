"""What is read from compiled programs: of texts written by hand and one compiled."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bench.harness.compiled_program import (
    Counts,
    collectives,
    count,
    large_arrays,
    least_seconds,
    per_layer,
)
from bench.hlo.launches import Trace
from bench.hlo.loops import known_turns
from bench.hlo.text import (
    Instruction,
    bits_of,
    num_bytes,
    parse_instruction,
    parse_program,
)
from bench.hlo.thunks import host_launches, loop_names, parse_thunks
from bench.hlo.walk import Weights, trace_program
from jaxdave.runtime.machine import H100

PROGRAMS = Path(__file__).parent / "programs"

# Two layers of a matrix of 1024 x 1024, stacked; a turn copies the layer's matrix out
# of the stack inside a fusion, and multiplies by it.
STACK = (PROGRAMS / "stack.hlo").read_text()
KNOWN = ', backend_config={"known_trip_count":{"n":"2"}}'
MATRIX_BYTES, VECTOR_BYTES = 2 * 1024 * 1024, 2 * 8 * 1024
WEIGHTS = Weights(arguments=frozenset({1}), min_elements=1024 * 1024)


def never(loop: Instruction, turn: Trace) -> float:
    """No loop of unknown length turns."""
    del loop, turn
    return 0


def test_types_have_their_bytes():
    line = (
        "  ROOT %a.1 = (bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/(s4[5], pred[])) "
        "f(%b, %c), index=7"
    )
    one = parse_instruction(line)
    assert (one.name, one.opcode, one.operands) == ("a.1", "f", ("b", "c"))
    assert one.tuple_index == 7
    assert num_bytes(one.type) == 2 * 6 + 3 + 1
    assert one.results[0].memory_space == 1 and one.is_root
    assert [bits_of(kind) for kind in ("f8e4m3fn", "c64", "u32")] == [8, 64, 32]
    with pytest.raises(ValueError, match="type 'q3' is unknown"):
        bits_of("q3")


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse_program("HloModule empty")


@pytest.mark.parametrize("known", [KNOWN, ""])
def test_a_loop_counts_as_often_as_it_turns(known: str):
    program = parse_program(STACK.replace("KNOWN", known))
    entry = program.computations[program.entry]
    assert known_turns(program, entry, entry.by_name["loop"]) == 2
    trace = trace_program(program, never, WEIGHTS).round
    # Three launches a turn, and the counter's beginning.
    assert trace.count == 2 * 3 + 1
    assert trace.operations == 2 * 2 * 8 * 1024 * 1024
    assert trace.host_waits == 0 and not trace.detours


def test_a_copy_of_weights_inside_a_fusion_is_found_with_its_cause():
    program = parse_program(STACK.replace("KNOWN", KNOWN))
    trace = trace_program(program, never, WEIGHTS).round
    counts = count(program, trace, frozenset({1}), frozenset())
    # Of the stack only the layer's slice is read, and the copy is read once more.
    assert counts.weights_read == 2 * MATRIX_BYTES
    assert counts.weights_copied == 2 * MATRIX_BYTES
    scalars = 4 * (1 + 2 * 2)  # the counter, its copy and the slice's index
    assert counts.other_read == 2 * (MATRIX_BYTES + VECTOR_BYTES) + scalars
    # What a library product has to work in is not written by it.
    assert counts.written == 2 * (MATRIX_BYTES + VECTOR_BYTES) + 3 * 4
    (copy,) = large_arrays(
        trace.launches, {1: "w"}, frozenset({1}), frozenset(), least=2**20
    )
    assert (copy.kind, copy.executions, copy.source) == ("weights", 2, "w")
    assert copy.op_name == "jit(f)/slice of (w)"
    assert (copy.num_bytes, copy.array) == (MATRIX_BYTES, "bf16[1024,1024]")


def test_a_slice_that_is_multiplied_at_once_is_no_copy():
    fused = STACK.replace("KNOWN", KNOWN).replace(
        "  ROOT %flat = bf16[1024,1024]{1,0} bitcast(%slice)",
        "  %flat = bf16[1024,1024]{1,0} bitcast(%slice)\n"
        "  ROOT %inner = bf16[1024,1024]{1,0} dot(%flat, %flat), "
        "lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    )
    program = parse_program(fused)
    trace = trace_program(program, never, WEIGHTS).round
    assert trace.copied_of(frozenset({1})) == 0
    assert trace.read_of(frozenset({1})) == 2 * MATRIX_BYTES
    assert trace.operations == 2 * 2 * (8 + 1024) * 1024 * 1024


LOOKUPS = (PROGRAMS / "lookups.hlo").read_text()


def test_lookups_and_updates_in_place_move_what_they_touch():
    program = parse_program(LOOKUPS)
    weights = Weights(arguments=frozenset({0}), min_elements=1000)
    trace = trace_program(program, never, weights).round
    counts = count(program, trace, frozenset({0}), frozenset({1}))
    # Rows that are looked up are no copy of the table, however many they are.
    assert (counts.weights_read, counts.weights_copied) == (4 * 1024 * 512, 0)
    # An update in place writes the update and reads nothing of what it updates; the
    # result is the cache still, so that what moves all of it copies the cache.
    whole = 4 * 4096 * 512
    assert counts.cache_read == whole
    assert counts.written == 4 * 1024 * 512 + 4 * 8 * 512 + whole
    found = large_arrays(
        trace.launches, {1: "cache"}, frozenset({0}), frozenset({1}), least=2**20
    )
    assert [(one.kind, one.source) for one in found] == [
        ("cache", "cache"),
        ("copy", ""),
    ]


CHOICES = (PROGRAMS / "choices.hlo").read_text()


def test_tuples_in_tuples_keep_their_places():
    program = parse_program((PROGRAMS / "pairs.hlo").read_text())
    trace = trace_program(program, never).round
    # The cache is the last of three arrays: it is updated in place, and copied.
    assert trace.written == 4 * (8 + 8) + 4 * 8 + 4 * 64 * 8
    assert trace.read_of(frozenset({1})) == 4 * 64 * 8


def test_a_round_takes_one_branch_and_guessed_turns_and_lists_the_others():
    program = parse_program(CHOICES)
    trace = trace_program(program, lambda loop, turn: 5, is_loop=True)
    # The longer branch (3), a command buffer (1), five turns and six tests of the inner
    # loop, two collectives, and the round's own test.
    assert trace.round.count == 3 + 1 + 5 + 6 + 2 + 1
    assert trace.once.count == 1
    # Tests of the inner loop, the branch, and the round's test.
    assert trace.round.host_waits == 6 + 1 + 1
    told = {one.name: (one.executions, one.launches) for one in trace.round.detours}
    assert told == {
        "branch 0 of chosen": (0, 1),
        "branch 1 of chosen": (1, 3),
        "loop walk": (5, 1),
    }
    assert trace.turns == {"walk": (5, True), "loop": (1, True)}


def test_collectives_have_the_bytes_of_their_results():
    program = parse_program(CHOICES)
    trace = trace_program(program, never, is_loop=True)
    gather, reduce = collectives(program, trace.round.launches)
    assert (gather.kind, gather.executions, gather.num_bytes) == ("all-gather", 1, 128)
    assert (reduce.kind, reduce.executions, reduce.largest) == ("all-reduce", 1, 32)


def test_a_program_that_is_no_loop_has_no_round():
    with pytest.raises(ValueError, match="has 0 loops of unknown length"):
        trace_program(parse_program(LOOKUPS), never, is_loop=True)


# As XLA:GPU lists the program above, with a command buffer more.
THUNKS = (PROGRAMS / "choices.thunks").read_text()


def test_the_host_launches_a_command_buffer_as_one():
    loops = loop_names(parse_program(CHOICES))
    assert loops == ["loop", "walk"]
    turns = {"loop": (1, True), "walk": (5, True)}
    found = host_launches(parse_thunks(THUNKS), loops, turns)
    # The longer branch is a command buffer and a kernel; one more command buffer, five
    # copies, the start of a collective, and the round's test.
    assert found["loop"].launches == 2 + 1 + 5 + 1 + 1
    assert (found["loop"].buffers, found["loop"].buffered) == (2, 4)
    # Beside the round a kernel, and the test before it.
    assert found[""].launches == found["loop"].launches + 2
    with pytest.raises(ValueError, match="no loop other"):
        host_launches(parse_thunks(THUNKS), [*loops, "other"], turns)
    with pytest.raises(ValueError, match="more loops of thunks than 1"):
        host_launches(parse_thunks(THUNKS), loops[:1], turns)


def test_two_depths_tell_a_layer_from_the_rest():
    layer, outside = per_layer(
        Counts(launches=470 + 36 * 44), Counts(launches=470 + 18 * 44), 36, 18
    )
    assert (layer.launches, outside.launches) == (44, 470)


def test_the_least_time_is_that_of_bytes_or_of_operations():
    assert least_seconds(H100, 3.352e9, 0) == pytest.approx(1e-3)
    assert least_seconds(H100, 3.352e9, 989e10) == pytest.approx(1e-2)


@pytest.mark.as_shipped
def test_a_program_compiled_here_has_the_numbers_that_it_was_written_with():
    layers, rows, width = 5, 4, 64

    def loop(x, w, limit):
        def turn(x):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

        return jax.lax.while_loop(lambda x: jnp.sum(x) < limit, turn, x)

    shapes = [
        jax.ShapeDtypeStruct(dims, jnp.float32)
        for dims in ((rows, width), (layers, width, width), ())
    ]
    text = jax.jit(loop, keep_unused=True).lower(*shapes).compile().as_text()
    assert text is not None
    program = parse_program(text)
    matrix = width * width
    weights = Weights(arguments=frozenset({1}), min_elements=matrix, layers=layers)
    trace = trace_program(program, never, weights, is_loop=True)
    assert trace.round.operations == layers * 2 * rows * matrix
    assert trace.round.read_of(frozenset({1})) == layers * matrix * 4
    assert trace.round.host_waits == 1

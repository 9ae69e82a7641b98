"""A report on a compiled decode, as lines of text."""

from collections.abc import Iterable, Iterator

from bench.harness.compiled_program import Collective, LargeArray
from bench.harness.compiled_report import DecodeReport

_MB, _GB = 1e6, 1e9


def describe(report: DecodeReport) -> str:
    """Put a report in words.

    Args:
        report: The report.

    Returns:
        Lines of text.
    """
    return "\n".join(_lines(report))


def _lines(r: DecodeReport) -> Iterator[str]:
    shape, machine = r.shape, r.machine
    weights = shape.dtype if shape.quantize is None else f"{shape.quantize} weights"
    mesh = ",".join(f"{axis}={size}" for axis, size in shape.mesh)
    yield (
        f"{r.program} of {shape.config.name} with {shape.config.num_layers} layers, "
        f"{shape.draft_steps} drafts, batch {shape.batch}, bucket {shape.bucket}, "
        f"{weights}, {shape.numerics}, for {r.target}{mesh and ', mesh ' + mesh}; "
        f"jax {r.jax_version}, compiled in {r.compile_seconds:.0f} s "
        f"({r.compile_cpu_seconds:.0f} s of the cores)"
    )
    used = r.argument_bytes + r.temporary_bytes
    left = machine.memory_bytes - used
    fits = (
        f"{left / _GB:.2f} GB left" if left >= 0 else f"{-left / _GB:.2f} GB too much"
    )
    yield (
        f"memory: arguments {r.argument_bytes / _GB:.3f} GB, temporaries "
        f"{r.temporary_bytes / _MB:.1f} MB, of {machine.memory_bytes / _GB:.1f} GB "
        f"({fits})"
    )
    yield (
        f"launches: {r.layer.launches:g} a layer, {r.outside.launches:g} a round "
        f"outside the layers, {r.round.launches:g} a round in all; "
        f"{r.once.launches:g} once"
    )
    if machine.is_gpu:
        yield (
            f"launches by the host, a command buffer being one: "
            f"{r.layer.host_launches:g} a layer, {r.outside.host_launches:g} outside, "
            f"{r.round.host_launches:g} in all; in command buffers "
            f"{r.layer.buffered:g} a layer, {r.outside.buffered:g} outside"
        )
        yield (
            f"the host waits for a value {r.layer.host_waits:g} times a layer, "
            f"{r.outside.host_waits:g} times outside"
        )
    yield (
        f"read a round: {r.round.read / _GB:.3f} GB (weights "
        f"{r.round.weights_read / _GB:.3f}, cache {r.round.cache_read / _GB:.3f}, "
        f"others {r.round.other_read / _GB:.3f}) = {r.read_share:.2f} times weights "
        f"({r.weight_bytes / _GB:.3f}) + cache ({r.cache_bytes / _GB:.3f}); written "
        f"{r.round.written / _GB:.3f} GB"
    )
    yield (
        f"least time of a round: {1e3 * r.seconds:.2f} ms for these bytes and "
        f"{r.round.operations / 1e12:.3f} T operations, "
        f"{1e3 * r.needed_seconds:.2f} ms for weights and cache alone"
    )
    yield (
        f"weights copied: {r.round.weights_copied / _MB:.1f} MB a round "
        f"({r.layer.weights_copied / _MB:.1f} MB a layer), "
        f"{r.once.weights_copied / _MB:.1f} MB once"
    )
    yield from _collectives("a layer", r.collectives_per_layer)
    yield from _collectives("a round", r.collectives)
    yield from _arrays("a round", r.large)
    yield from _arrays("once", r.large_once)
    if r.detours:
        yield "loops of unknown length and branches:"
    for one in r.detours:
        yield (
            f"  {one.name}: counted {one.executions:g} times, {one.launches:g} "
            f"launches each; {_tail(one.op_name)}"
        )


def _collectives(where: str, found: Iterable[Collective]) -> Iterator[str]:
    for one in found:
        yield (
            f"{one.kind}: {one.executions:g} {where}, {one.num_bytes / _MB:.3f} MB, "
            f"the largest {one.largest / _MB:.3f} MB"
        )


def _arrays(where: str, found: Iterable[LargeArray]) -> Iterator[str]:
    groups = {
        f"copies of 1 MB and more, {where}:": [
            x for x in found if x.kind != "computed"
        ],
        f"other arrays of 1 MB and more, written {where}:": [
            x for x in found if x.kind == "computed"
        ],
    }
    for title, group in groups.items():
        yield title if group else f"{title} none"
        for one in group:
            kind = "" if one.kind == "computed" else f"{one.kind} "
            source = one.source and f"{one.source} as "
            yield (
                f"  {one.executions:g} x {one.num_bytes / _MB:.1f} MB {kind}{source}"
                f"{one.array} by {one.instruction}; {_tail(one.op_name)}"
            )


def _tail(op_name: str) -> str:
    """The end of what an instruction was traced from, which is what tells most."""
    return op_name[-90:] or "made by the compiler"

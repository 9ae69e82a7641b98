"""How much memory a decode takes, and by which of two measures."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxdave.decoders import Decoder
from jaxdave.executables import analysed

SOURCES = {
    "device_peak": "most bytes in use on the device since the process began "
    "(device.memory_stats)",
    "program": "arguments, outputs and temporaries of the compiled decode loop "
    "(memory_analysis)",
}
"""What `source` of a results file may say, the better first."""


def warmed(
    decoder: Decoder, call: Callable[[], None]
) -> tuple[float, dict[str, int] | None]:
    """Seconds of a first call, compiling included, and what its program takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start, _program(decoder)


def peak(used: Mapping[str, int] | None) -> dict[str, int] | None:
    """What was measured of a program, and the device's own peak where it has one."""
    stats: Any = jax.local_devices()[0].memory_stats()
    found = dict(used or {})
    if stats and "peak_bytes_in_use" in stats and used is not None:
        found["device_peak"] = int(stats["peak_bytes_in_use"])
    return found or None


def _program(decoder: Decoder) -> dict[str, int]:
    found = analysed(decoder.program, "run")
    if found is None:
        return {}
    parts = (
        found.argument_size_in_bytes, found.output_size_in_bytes,
        found.temp_size_in_bytes, -found.alias_size_in_bytes,
    )  # fmt: skip
    return {"program": sum(parts)}

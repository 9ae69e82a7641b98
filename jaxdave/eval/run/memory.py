"""Memory of a decode, by the best of three measures."""

import time
from collections.abc import Callable
from typing import NamedTuple

from jaxdave.core.spec import DecodeSpec
from jaxdave.runtime.compilation import memory_analysis
from jaxdave.runtime.memory import (
    DEVICE_PEAK,
    PROCESS_PEAK,
    SOURCES,
    device_peak_bytes,
    process_peak_bytes,
)

MEMORY_SOURCES = {
    DEVICE_PEAK: SOURCES[DEVICE_PEAK],
    "program": "arguments, outputs and temporaries of the compiled decode loop "
    "(memory_analysis)",
    PROCESS_PEAK: SOURCES[PROCESS_PEAK],
}
"""Values of `source` in a results file and what they mean, the better measure first:
the peak of a process is that of all methods before, and of their compilation."""


class WarmupCost(NamedTuple):
    """Cost of the first call of a shape.

    Attributes:
        seconds: Seconds of the call, compilation included.
        memory: Bytes by source (`MEMORY_SOURCES`); None: not known.
    """

    seconds: float
    memory: dict[str, int] | None


def measure_warmup(spec: DecodeSpec, call: Callable[[], None]) -> WarmupCost:
    """Make a first call and measure it.

    Args:
        spec: What `call` runs, as the devices of a group share it.
        call: Function that decodes something.

    Returns:
        Seconds of the call and bytes of memory after it.
    """
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    peaks = {DEVICE_PEAK: device_peak_bytes(), PROCESS_PEAK: process_peak_bytes()}
    known = {source: peak for source, peak in peaks.items() if peak is not None}
    return WarmupCost(seconds, {**_program_bytes(spec), **known} or None)


def _program_bytes(spec: DecodeSpec) -> dict[str, int]:
    analysis = memory_analysis(spec, "run")
    if analysis is None:
        return {}
    # Outputs that alias donated arguments would count twice.
    total = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return {"program": total}

"""Memory of a decode, by the better of two measures."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxdave.engine.decoders import Decoder
from jaxdave.runtime.compilation import memory_analysis

MEMORY_SOURCES = {
    "device_peak": "most bytes in use on the device since the process began "
    "(device.memory_stats)",
    "program": "arguments, outputs and temporaries of the compiled decode loop "
    "(memory_analysis)",
}
"""Values of `source` in a results file and what they mean, the better measure first."""


class WarmupCost(NamedTuple):
    """Cost of the first call of a shape.

    Attributes:
        seconds: Seconds of the call, compilation included.
        memory: Bytes by source (`MEMORY_SOURCES`); None: not known.
    """

    seconds: float
    memory: dict[str, int] | None


def measure_warmup(decoder: Decoder, call: Callable[[], None]) -> WarmupCost:
    """Make a first call and measure it.

    Args:
        decoder: The decoder that `call` runs.
        call: Function that decodes something.

    Returns:
        Seconds of the call and bytes of memory after it.
    """
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return WarmupCost(seconds, {**_program_bytes(decoder), **_device_peak()} or None)


def _device_peak() -> dict[str, int]:
    # A CPU has no such statistics.
    stats: Any = jax.local_devices()[0].memory_stats()
    has_peak = stats and "peak_bytes_in_use" in stats
    return {"device_peak": int(stats["peak_bytes_in_use"])} if has_peak else {}


def _program_bytes(decoder: Decoder) -> dict[str, int]:
    analysis = memory_analysis(decoder.spec, "run")
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

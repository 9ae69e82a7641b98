"""How much memory a decode takes, and by which of two measures."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxdave.engine.decoders import Decoder
from jaxdave.runtime.compilation import memory_analysis

SOURCES = {
    "device_peak": "most bytes in use on the device since the process began "
    "(device.memory_stats)",
    "program": "arguments, outputs and temporaries of the compiled decode loop "
    "(memory_analysis)",
}
"""What `source` of a results file may say, the better first."""


class Warm(NamedTuple):
    """Seconds of a first call, compiling included, and bytes by their source."""

    seconds: float
    memory: dict[str, int] | None


def warmed(decoder: Decoder, call: Callable[[], None]) -> Warm:
    """Make a first call, and say what it took."""
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return Warm(seconds, {**_program(decoder), **_device()} or None)


def _device() -> dict[str, int]:
    stats: Any = jax.local_devices()[0].memory_stats()
    has_peak = stats and "peak_bytes_in_use" in stats
    return {"device_peak": int(stats["peak_bytes_in_use"])} if has_peak else {}


def _program(decoder: Decoder) -> dict[str, int]:
    found = memory_analysis(decoder.spec, "run")
    if found is None:
        return {}
    parts = (
        found.argument_size_in_bytes, found.output_size_in_bytes,
        found.temp_size_in_bytes, -found.alias_size_in_bytes,
    )  # fmt: skip
    return {"program": sum(parts)}

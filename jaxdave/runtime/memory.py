"""The most memory that was in use since the process began, by the best measure."""

import os
import sys
from typing import Any, NamedTuple

import jax

DEVICE_PEAK, PROCESS_PEAK = "device_peak", "process_peak"
SOURCES = {
    DEVICE_PEAK: "most bytes in use on the device since the process began "
    "(device.memory_stats)",
    PROCESS_PEAK: "most bytes of the whole process in main memory since it began "
    "(its peak resident set)",
}
"""What a measure is of, the better one first."""


class PeakMemory(NamedTuple):
    """The most memory that was in use since the process began.

    Attributes:
        bytes: How much.
        source: What it is of, one of `SOURCES`.
    """

    bytes: int
    source: str


def peak_memory() -> PeakMemory | None:
    """The peak of the device where it says one; else that of the process.

    Returns:
        The peak, of several devices the largest; None where nothing is known.
    """
    for source, measure in (
        (DEVICE_PEAK, device_peak_bytes),
        (PROCESS_PEAK, process_peak_bytes),
    ):
        count = measure()
        if count is not None:
            return PeakMemory(count, source)
    return None


def device_peak_bytes() -> int | None:
    """The most bytes that were in use on one device of this process.

    Returns:
        The number; None on a backend without such statistics, as on a CPU.
    """
    all_stats: list[Any] = [device.memory_stats() for device in jax.local_devices()]
    peaks = [stats.get("peak_bytes_in_use") for stats in all_stats if stats]
    return max((int(peak) for peak in peaks if peak is not None), default=None)


def process_peak_bytes() -> int | None:
    """The peak of the process's resident set.

    Returns:
        The number of bytes; None on a platform that does not tell.
    """
    try:
        # What `getrusage` says begins at the peak of the process that started this one.
        status = _read_status()
        return int(status.partition(b"VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _read_status() -> bytes:
    """The status of this process, by one read: it is asked for after every decode."""
    file = os.open("/proc/self/status", os.O_RDONLY)
    try:
        return os.read(file, 1 << 16)
    finally:
        os.close(file)

"""What was measured of a compiled loop, and how it is kept from process to process."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from jaxdave.core.prediction import ErrorBound
from jaxdave.runtime.cache_files import (
    keep_latest,
    read_sealed,
    trusted_folder,
    write_sealed,
)

MEASUREMENT_FOLDER = "measured"
"""Folder of the files in the cache folder of jaxdave."""
MAX_FILES = 256
"""Files that are kept, the ones written last. One is less than a kilobyte."""
_MAX_NUMBER = 1e6
"""Seconds, and log-odds: more is no measurement."""


class Measurements(NamedTuple):
    """What was measured of a compiled loop.

    Attributes:
        seconds: Seconds of a round at each draft length.
        error: The largest error of each field of `ErrorBound`, in that order.
        prefill: Seconds of a prefill.
        spread: How far the timings varied (`timing.Timing`).
        tries: How often it was timed.
    """

    seconds: tuple[float, ...]
    error: tuple[float, ...]
    prefill: float = 0.0
    spread: float = 0.0
    tries: int = 1


def is_kept() -> bool:
    """Tell if measurements are kept on disk at all.

    Returns:
        False where nothing is to be kept, or the folder is not the user's alone.
    """
    return trusted_folder(MEASUREMENT_FOLDER) is not None


def read(name: str | None, num_lengths: int) -> Measurements | None:
    """Read what an earlier process has measured.

    Args:
        name: What it depends on (`fingerprint`); None: that cannot be named.
        num_lengths: Draft lengths that were timed.

    Returns:
        The measurements; None if there are none, or they are broken.
    """
    path = _path(name)
    content = None if path is None or name is None else read_sealed(path, name)
    if content is None:
        return None
    try:
        return _from_json(json.loads(content), num_lengths)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # what is broken is measured again


def write(name: str | None, measurements: Measurements) -> None:
    """Keep measurements for later processes; failing to costs time, not the answer.

    Args:
        name: As for `read`.
        measurements: What was measured.
    """
    path = _path(name)
    if path is None or name is None:
        return
    try:
        write_sealed(path, name, json.dumps(measurements._asdict()).encode())
        keep_latest(path.parent, MAX_FILES)
    except OSError:
        return  # a home that cannot be written to


def _from_json(raw: Any, num_lengths: int) -> Measurements:
    """Measurements of their JSON. Raises an error of Python's own where it is none."""
    lengths = {"seconds": num_lengths, "error": len(ErrorBound._fields)}
    for key, length in lengths.items():
        numbers = raw[key]
        if len(numbers) != length or not all(map(_is_measured, numbers)):
            raise ValueError(f"{key} is no measurement")
    if 0 in raw["seconds"]:
        raise ValueError("nothing takes no time")
    single = {key: raw[key] for key in ("prefill", "spread", "tries")}
    if not all(map(_is_measured, single.values())):
        raise ValueError(f"{single} is no measurement")
    return Measurements(
        **{key: tuple(map(float, raw[key])) for key in lengths}, **single
    )


def _is_measured(value: Any) -> bool:
    # False for NaN, too, with which no comparison holds.
    return type(value) in (int, float) and 0 <= value <= _MAX_NUMBER


def _path(name: str | None) -> Path | None:
    folder = None if name is None else trusted_folder(MEASUREMENT_FOLDER)
    return None if folder is None else folder / f"{name}.measured"

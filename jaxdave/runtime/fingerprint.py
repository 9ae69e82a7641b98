"""Names for compiled programs on disk: a digest of everything a program is made of.

The cache key of a program is stated here. It consists of

1. the version of jaxdave and the source files of the packages that a decode program is
   made of (`PROGRAM_PACKAGES`),
2. the versions of Python and of the packages that compute (`VERSIONED_PACKAGES`),
3. the device, the settings of JAX and the flags of XLA, and
4. the content of the function itself: closures, arrays, and, for functions written
   outside jaxdave, bytecode and everything that it refers to
   (`jaxdave.runtime.content_digest`).

Equal keys mean equal programs; an edit outside of these packages changes no key.
"""

import functools
import hashlib
import importlib.resources
import logging
import os
import platform
import sys
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxdave.runtime.code_origin import PROGRAM_PACKAGES, VERSIONED_PACKAGES
from jaxdave.runtime.content_digest import (
    NotFingerprintable,
    content_digest,
)

LOGGER = logging.getLogger("jaxdave")

PACKAGE_ROOT = Path(str(importlib.resources.files("jaxdave")))
"""The folder of the package, wherever this module is moved to."""


def fingerprint(*values: Any) -> str | None:
    """Name a program, or a measurement, by everything that it depends on.

    The name is the same in every process on the same machine and software. Where it
    cannot be told, one line is logged per reason and process (logger "jaxdave",
    level WARNING).

    Args:
        *values: Functions, frozen dataclasses, named tuples, arrays and plain values.

    Returns:
        A SHA-256 digest in hexadecimal, or None if a value cannot be identified by
        its content.

    Example:
        >>> fingerprint(1) == fingerprint(1), fingerprint(1) == fingerprint(2)
        (True, False)
    """
    try:
        # Read first: without sources nothing can be identified.
        environment = _environment_digest()
        content = content_digest(values)
    except NotFingerprintable as error:
        source = f"{error.function}: " if error.function else ""
        warn_not_kept(f"{source}{error.reason}")
        return None
    return hashlib.sha256(environment + content).hexdigest()


def source_digest(root: Path, packages: Sequence[str]) -> bytes:
    """Digest the Python files of some subpackages, by relative path and content.

    Args:
        root: Folder of the package.
        packages: Names of the folders in it whose files count, at any depth.

    Returns:
        The digest, 32 bytes.

    Raises:
        NotFingerprintable: A package has no source files there, as in an installation
            of bytecode alone.
    """
    result = hashlib.sha256()
    for package in packages:
        paths = sorted((root / package).rglob("*.py"))
        if not paths:
            raise NotFingerprintable(
                f"the sources of {root.name}.{package} are not in {root}; install "
                "jaxdave with its source files"
            )
        for path in paths:
            # Zero bytes end names and contents; neither can hold one.
            result.update(path.relative_to(root).as_posix().encode() + b"\0")
            result.update(path.read_bytes() + b"\0")
    return result.digest()


@functools.cache
def _source_digest() -> bytes:
    """The digest of the sources that decode programs are made of."""
    return source_digest(PACKAGE_ROOT, PROGRAM_PACKAGES)


@functools.cache
def _versions() -> tuple[str, ...]:
    """The versions of everything that is identified by its name."""
    packages = [name for name in VERSIONED_PACKAGES if name != "builtins"]
    return (
        _package_version(),
        platform.python_implementation(),
        platform.python_version(),
        # `python -O` leaves assertions out.
        f"{sys.flags.optimize}",
        *(f"{name} {metadata.version(name)}" for name in packages),
    )


def _environment_digest() -> bytes:
    """Sources, versions, devices and settings, which all programs depend on."""
    device = jax.local_devices()[0]
    # XLA chooses code by the device and, on a CPU, by its cores and instruction sets.
    machine = (
        device.platform,
        device.device_kind,
        device.client.platform_version,
        # A program of one process does not depend on how many others there are.
        jax.local_device_count(),
        os.cpu_count(),
        cpu_features(),
    )
    flags = [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    # As they are in this thread: `with jax.default_matmul_precision` counts.
    # Where JAX keeps its own cache has no influence on a program.
    names = sorted(name for name in jax.config.values if "cache" not in name)
    settings = [(name, getattr(jax.config, name, None)) for name in names]
    return repr((_source_digest(), _versions(), machine, flags, settings)).encode()


@functools.cache
def cpu_features() -> str:
    """The CPU's model and instruction sets: code made for one may not run on another.

    Empty where the system does not tell.
    """
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    relevant = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(relevant)}))


_REASONS: set[str] = set()
_REASONS_LOCK = threading.Lock()


def warn_not_kept(reason: str) -> None:
    """Log why programs are not kept on disk, once per reason and process.

    Args:
        reason: What stands in the way and what to do about it, in one line.
    """
    with _REASONS_LOCK:
        if reason in _REASONS:
            return
        _REASONS.add(reason)
    LOGGER.warning(
        "compiled programs are not kept on disk, so every process compiles anew: %s",
        reason,
    )


def _package_version() -> str:
    try:
        return metadata.version("jaxdave")
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"

"""A name for a function by all that it is made of, the same in every process.

A compiled program can be kept on disk only under a name for everything that went into
it. Functions of this package are named by their place and code, what they hold by their
closures, arrays by their content; the sources and versions of everything are in the
name too. What cannot be told so (a function from elsewhere may call anything) has none.
"""

import dataclasses
import functools
import hashlib
import os
import types
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

OWN_PACKAGE = "jaxdave"
VERSIONED_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "chex", "ml_dtypes", "builtins")
"""Packages whose functions are told by their names, and the package's version."""


class NotFingerprintable(Exception):
    """Something that has no name of this kind."""


def fingerprint(*things: Any) -> str | None:
    """A digest of all that `things` are made of and run on; None where that is unknown.

    things: functions, frozen dataclasses, named tuples, arrays and plain values.
    """
    try:
        made = _digest(things, {})
    except NotFingerprintable:
        return None
    return hashlib.sha256(_environment_digest() + made).hexdigest()


@functools.cache
def _source_digest() -> bytes:
    """A digest of the package's own files."""
    folder = Path(__file__).parents[1]
    told = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        told.update(path.relative_to(folder).as_posix().encode() + b"\0")
        told.update(path.read_bytes() + b"\0")
    return told.digest()


def _environment_digest() -> bytes:
    """Sources, versions, devices and settings, which all programs depend on."""
    from jaxlib import version

    device = jax.devices()[0]
    where = [
        jax.__version__, version.__version__, np.__version__, metadata.version("flax"),
        device.platform, device.device_kind, device.client.platform_version,
        jax.device_count(), os.cpu_count(), _cpu_features(),
    ]  # fmt: skip
    named = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    flags = [os.environ.get(name, "") for name in named]
    # As they are in this thread: `with jax.default_matmul_precision` counts.
    names = sorted(name for name in jax.config.values if "cache" not in name)
    settings = [(name, getattr(jax.config, name, None)) for name in names]
    return repr((_source_digest(), where, flags, settings)).encode()


@functools.cache
def _cpu_features() -> str:
    """What a CPU can do: code that is made for one may not run on another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    wanted = ("model name", "flags", "Features")
    found = {line for line in lines if line.startswith(wanted)}
    return "\n".join(sorted(found))


class _Literal(NamedTuple):
    """A part that is its own name."""

    text: str | bytes


def _digest(thing: Any, known: dict[int, tuple[Any, bytes]]) -> bytes:
    """What tells a thing from every other.

    known: digests by identity, beside their things: kept alive, they stay the only ones
    of that identity.
    """
    if thing is None or isinstance(thing, bool | int | float | str | bytes | Path):
        return f"{type(thing).__name__} {thing!r}".encode()
    if id(thing) not in known:
        # What refers back to itself on the way down is told by this.
        known[id(thing)] = thing, b"itself"
        told = hashlib.sha256()
        for part in _components(thing):
            text = part.text if isinstance(part, _Literal) else _digest(part, known)
            text = text.encode() if isinstance(text, str) else text
            told.update(b"%d " % len(text) + text)
        known[id(thing)] = thing, told.digest()
    return known[id(thing)][1]


def _components(thing: Any) -> Iterator[Any]:
    """What a thing consists of, one level down."""
    if isinstance(thing, np.dtype | np.generic):
        yield _Literal(f"{thing!r}")
    elif isinstance(thing, np.ndarray | jax.Array):
        array = np.asarray(thing)
        yield _Literal(f"{array.dtype} {array.shape}")
        yield _Literal(array.tobytes())
    elif isinstance(thing, types.FunctionType):
        yield from _function_components(thing)
    elif isinstance(thing, types.MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, functools.partial):
        yield from (_Literal("partial"), thing.func, thing.args, thing.keywords)
    elif isinstance(thing, type) or isinstance(thing, types.BuiltinFunctionType):
        yield _Literal(_qualified_name(thing))
    elif isinstance(thing, Mapping):
        yield _Literal(f"mapping {len(thing)}")
        yield from (part for pair in thing.items() for part in pair)
    elif isinstance(thing, tuple | list):
        plain = type(thing) in (tuple, list)
        yield _Literal(type(thing).__name__ if plain else _qualified_name(type(thing)))
        yield _Literal(f"{len(thing)}")
        yield from thing
    else:
        yield from _instance_components(thing)


def _function_components(function: types.FunctionType) -> Iterator[Any]:
    yield _Literal(_qualified_name(function))
    # What a function holds counts wherever it is from: `initializers.normal(0.02)`.
    if function.__module__.split(".")[0] not in VERSIONED_PACKAGES:
        yield from _code_components(function.__code__)
    yield from (function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            yield _Literal("empty cell")


def _code_components(code: types.CodeType) -> Iterator[_Literal]:
    """Where code stands and what it does; lambdas of one line differ in the latter."""
    yield _Literal(f"{code.co_qualname} {code.co_firstlineno} {code.co_names}")
    yield _Literal(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_components(constant)
        elif isinstance(constant, frozenset):
            yield _Literal(repr(sorted(map(repr, constant))))
        else:
            yield _Literal(repr(constant))


def _instance_components(thing: Any) -> Iterator[Any]:
    """An object of one of our classes, or a jitted function of a known package."""
    if hasattr(thing, "__wrapped__") and type(thing).__module__.startswith("jax"):
        yield from (_Literal(_qualified_name(thing)), thing.__wrapped__)
        return
    yield _Literal(_qualified_name(type(thing)))
    if type(thing).__module__.split(".")[0] != OWN_PACKAGE:
        raise NotFingerprintable(thing)
    if dataclasses.is_dataclass(thing):
        yield from (getattr(thing, f.name) for f in dataclasses.fields(thing))
    else:
        yield from (part for pair in sorted(vars(thing).items()) for part in pair)


def _qualified_name(thing: Any) -> str:
    """Module and name of what a known package defines."""
    module, name = getattr(thing, "__module__", None), thing.__qualname__
    if not module or module.split(".")[0] not in (OWN_PACKAGE, *VERSIONED_PACKAGES):
        raise NotFingerprintable(thing)
    return f"{module}.{name}"

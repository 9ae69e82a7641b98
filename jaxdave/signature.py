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

OURS = "jaxdave"
PINNED = ("jax", "jaxlib", "numpy", "flax", "chex", "ml_dtypes", "builtins")
"""Packages whose functions are told by their names, and the package's version."""


class Unsigned(Exception):
    """Something that has no name of this kind."""


def signature(*things: Any) -> str | None:
    """A digest of all that `things` are made of and run on; None where that is unknown.

    things: functions, frozen dataclasses, named tuples, arrays and plain values.
    """
    try:
        made = _digest(things, {})
    except Unsigned:
        return None
    return hashlib.sha256(_surroundings() + made).hexdigest()


@functools.cache
def _sources() -> bytes:
    """A digest of the package's own files."""
    folder = Path(__file__).parent
    told = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        told.update(path.relative_to(folder).as_posix().encode() + b"\0")
        told.update(path.read_bytes() + b"\0")
    return told.digest()


def _surroundings() -> bytes:
    """Sources, versions, devices and settings, which all programs depend on."""
    from jaxlib import version

    device = jax.devices()[0]
    where = [
        jax.__version__, version.__version__, np.__version__, metadata.version("flax"),
        device.platform, device.device_kind, device.client.platform_version,
        jax.device_count(), os.cpu_count(), _processor(),
    ]  # fmt: skip
    named = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    flags = [os.environ.get(name, "") for name in named]
    # As they are in this thread: `with jax.default_matmul_precision` counts.
    names = sorted(name for name in jax.config.values if "cache" not in name)
    settings = [(name, getattr(jax.config, name, None)) for name in names]
    return repr((_sources(), where, flags, settings)).encode()


@functools.cache
def _processor() -> str:
    """What a CPU can do: code that is made for one may not run on another."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    wanted = ("model name", "flags", "Features")
    found = {line for line in lines if line.startswith(wanted)}
    return "\n".join(sorted(found))


class Told(NamedTuple):
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
        for part in _parts(thing):
            text = part.text if isinstance(part, Told) else _digest(part, known)
            text = text.encode() if isinstance(text, str) else text
            told.update(b"%d " % len(text) + text)
        known[id(thing)] = thing, told.digest()
    return known[id(thing)][1]


def _parts(thing: Any) -> Iterator[Any]:
    """What a thing consists of, one level down."""
    if isinstance(thing, np.dtype | np.generic):
        yield Told(f"{thing!r}")
    elif isinstance(thing, np.ndarray | jax.Array):
        array = np.asarray(thing)
        yield Told(f"{array.dtype} {array.shape}")
        yield Told(array.tobytes())
    elif isinstance(thing, types.FunctionType):
        yield from _function(thing)
    elif isinstance(thing, types.MethodType):
        yield from (thing.__func__, thing.__self__)
    elif isinstance(thing, functools.partial):
        yield from (Told("partial"), thing.func, thing.args, thing.keywords)
    elif isinstance(thing, type) or isinstance(thing, types.BuiltinFunctionType):
        yield Told(_place(thing))
    elif isinstance(thing, Mapping):
        yield Told(f"mapping {len(thing)}")
        yield from (part for pair in thing.items() for part in pair)
    elif isinstance(thing, tuple | list):
        plain = type(thing) in (tuple, list)
        yield Told(type(thing).__name__ if plain else _place(type(thing)))
        yield Told(f"{len(thing)}")
        yield from thing
    else:
        yield from _instance(thing)


def _function(function: types.FunctionType) -> Iterator[Any]:
    yield Told(_place(function))
    # What a function holds counts wherever it is from: `initializers.normal(0.02)`.
    if function.__module__.split(".")[0] not in PINNED:
        yield from _code(function.__code__)
    yield from (function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            yield Told("empty cell")


def _code(code: types.CodeType) -> Iterator[Told]:
    """Where code stands and what it does; lambdas of one line differ in the latter."""
    yield Told(f"{code.co_qualname} {code.co_firstlineno} {code.co_names}")
    yield Told(code.co_code)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        elif isinstance(constant, frozenset):
            yield Told(repr(sorted(map(repr, constant))))
        else:
            yield Told(repr(constant))


def _instance(thing: Any) -> Iterator[Any]:
    """An object of one of our classes, or a jitted function of a known package."""
    if hasattr(thing, "__wrapped__") and type(thing).__module__.startswith("jax"):
        yield from (Told(_place(thing)), thing.__wrapped__)
        return
    yield Told(_place(type(thing)))
    if type(thing).__module__.split(".")[0] != OURS:
        raise Unsigned(thing)
    if dataclasses.is_dataclass(thing):
        yield from (getattr(thing, f.name) for f in dataclasses.fields(thing))
    else:
        yield from (part for pair in sorted(vars(thing).items()) for part in pair)


def _place(thing: Any) -> str:
    """Module and name of what a known package defines."""
    module, name = getattr(thing, "__module__", None), thing.__qualname__
    if not module or module.split(".")[0] not in (OURS, *PINNED):
        raise Unsigned(thing)
    return f"{module}.{name}"

"""Digests of Python objects by content, the same in every process.

`content_digest` walks functions, closures, classes, containers and arrays. Code of
jaxdave's program packages and of versioned packages is identified by its name, because
their sources and versions are in the cache key of a program
(`jaxdave.runtime.fingerprint`). All other code is *foreign*: it is identified by its
bytecode and, recursively, by every global name that the bytecode refers to.
"""

import dataclasses
import enum
import functools
import hashlib
import inspect
import sys
import types
import typing
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.runtime.code_digest import (
    Literal,
    NotFingerprintable,
    code_parts,
    global_parts,
    module_name,
    refuse_impure,
)
from jaxdave.runtime.code_origin import VERSIONED_PACKAGES, CodeOrigin, code_origin


def content_digest(value: Any) -> bytes:
    """Digest a value by its content.

    Equal content gives equal digests in every process, whatever its hash seed. What
    foreign code reads from a file while it is traced, with `numpy.load` for instance,
    is not part of its content.

    Args:
        value: Functions, classes, frozen dataclasses, named tuples, containers, arrays
            and plain values, nested in any way.

    Returns:
        The digest: 32 bytes, or the text of a plain value.

    Raises:
        NotFingerprintable: Some part cannot be identified by its content.
    """
    try:
        return _Digester().digest(value)
    except RecursionError:
        raise NotFingerprintable(
            "it refers to objects that are nested too deeply; use arrays"
        ) from None


_PLAIN_TYPES = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    types.EllipsisType,
    types.NotImplementedType,
)
"""Types of which `repr` says everything."""

_DESCRIPTOR_TYPES = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
)
"""Methods of classes that are written in C, such as `str.lower`."""

_MAX_OBJECTS = 100_000
"""Objects that a walk may visit, in about a second: code that reaches into a large
library is not worth it."""


class _Digester:
    """One walk over an object; every object of it is digested once."""

    def __init__(self) -> None:
        # By identity. The objects stay referenced, so that no identity is used twice.
        self._digests: dict[int, tuple[Any, bytes]] = {}

    def digest(self, value: Any) -> bytes:
        """The digest of a value and of all that it refers to."""
        if type(value) in _PLAIN_TYPES or isinstance(value, PurePath):
            return f"{type(value).__name__} {value!r}".encode()
        if id(value) not in self._digests:
            if len(self._digests) >= _MAX_OBJECTS:
                raise NotFingerprintable(
                    f"it refers to more than {_MAX_OBJECTS} objects; use fewer, or "
                    "arrays"
                )
            # A reference back to an object that is being digested (a function that
            # calls itself) is identified by the object's place in the walk.
            self._digests[id(value)] = value, b"object %d" % len(self._digests)
            self._digests[id(value)] = value, self._digest_parts(value)
        return self._digests[id(value)][1]

    def _digest_parts(self, value: Any) -> bytes:
        result = hashlib.sha256()
        try:
            # Parts are nested digests or literal
            # text; together they form a Merkle tree.
            for part in self._parts(value):
                text = part.text if isinstance(part, Literal) else self.digest(part)
                text = text.encode() if isinstance(text, str) else text
                # The length keeps ("ab", "c") apart from ("a", "bc").
                result.update(b"%d " % len(text) + text)
        except NotFingerprintable as error:
            if error.function is None and isinstance(value, types.FunctionType):
                error.function = f"{value.__module__}.{value.__qualname__}"
            raise
        return result.digest()

    def _parts(self, value: Any) -> Iterator[Any]:
        """What an object consists of, one level down."""
        # The order of the cases matters: plain data first, then what a known module
        # holds under a name (a function, a class), then what has to be taken apart.
        if isinstance(value, np.dtype | np.generic):
            yield Literal(f"{value!r}")
        elif isinstance(value, np.ndarray | jax.Array):
            yield from _array_parts(value)
        elif isinstance(value, types.ModuleType):
            yield Literal(module_name(value))
        elif (name := _public_name(value)) is not None:
            yield Literal(name)
        elif isinstance(value, types.FunctionType):
            yield from _function_parts(value)
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            yield from (Literal("partial"), value.func, value.args, value.keywords)
        elif isinstance(value, functools._lru_cache_wrapper):
            yield from (Literal("cached"), value.__wrapped__)
        elif isinstance(value, _DESCRIPTOR_TYPES):
            yield from (Literal(value.__name__), value.__objclass__)
        elif isinstance(value, types.BuiltinFunctionType):
            raise NotFingerprintable(
                f"{_describe(value)} is compiled code of a package that jaxdave does "
                "not know; use functions of Python, jax or numpy"
            )
        elif isinstance(value, enum.Enum):
            yield from (type(value), Literal(value.name))
        elif isinstance(value, type):
            yield from _class_parts(value)
        elif isinstance(value, property):
            yield from (Literal("property"), value.fget, value.fset, value.fdel)
        elif isinstance(value, staticmethod | classmethod):
            yield from (Literal(type(value).__name__), value.__func__)
        else:
            yield from self._container_parts(value)

    def _container_parts(self, value: Any) -> Iterator[Any]:
        """What a container or an instance of a class consists of."""
        kind = type(value)
        if isinstance(value, Mapping) and _is_known_mapping(kind):
            yield Literal(f"mapping {len(value)}")
            yield from (part for pair in value.items() for part in pair)
        elif isinstance(value, tuple | list):
            yield Literal(kind.__name__) if kind in (tuple, list) else kind
            yield Literal(f"{len(value)}")
            yield from value
            if kind not in (tuple, list):
                yield getattr(value, "__dict__", None)
        elif kind in (set, frozenset):
            # The order of a set depends on PYTHONHASHSEED.
            yield Literal(f"set {len(value)}")
            yield from (Literal(text) for text in sorted(map(self.digest, value)))
        elif isinstance(value, slice):
            yield from (Literal("slice"), value.start, value.stop, value.step)
        elif isinstance(value, types.GenericAlias | types.UnionType):
            yield from (Literal(kind.__name__), typing.get_origin(value))
            yield typing.get_args(value)
        elif kind.__module__ == "typing":
            # Annotations of nested functions, which compute nothing.
            yield Literal(f"{value!r}")
        else:
            yield from _instance_parts(value)


def _array_parts(array: Any) -> Iterator[Any]:
    # New-style keys are no numbers: they are told
    # by their implementation and their words.
    if isinstance(array, jax.Array) and jnp.issubdtype(
        array.dtype, jax.dtypes.prng_key
    ):
        yield Literal(f"key {jax.random.key_impl(array)}")
        array = jax.random.key_data(array)
    content = np.asarray(array)
    if content.dtype.hasobject:
        raise NotFingerprintable(
            f"an array of dtype {content.dtype} holds Python objects; use an array of "
            "numbers"
        )
    yield Literal(f"{content.dtype} {content.shape}")
    yield Literal(content.tobytes())


def _public_name(value: Any) -> str | None:
    """The name under which a known module holds this very object, if one does.

    Such an object is defined by the sources of its module, whatever it remembers.
    """
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    if code_origin(module) is CodeOrigin.FOREIGN:
        return None
    if isinstance(value, types.FunctionType) and (
        # `functools.wraps` gives a foreign wrapper the name of what it wraps.
        code_origin(value.__globals__.get("__name__")) is CodeOrigin.FOREIGN
    ):
        return None
    is_named = isinstance(value, type)  # by its name even where that is hidden
    if isinstance(value, types.BuiltinFunctionType):
        is_named = isinstance(value.__self__, types.ModuleType | None)
    if not is_named:
        # Looked up again by its name: only if that leads back to this very object is it
        # the one that the sources define, and not e.g. a decorated copy.
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            # Not by `getattr`, which may run code of the module.
            found = getattr(found, "__dict__", {}).get(part)
        is_named = found is value
    return f"{module}.{name}" if is_named else None


def _function_parts(function: types.FunctionType) -> Iterator[Any]:
    home = function.__globals__.get("__name__")
    origin = code_origin(home)
    if origin is CodeOrigin.FOREIGN:
        # Neither module nor line: the same text elsewhere is the same function.
        yield Literal("foreign function")
    else:
        # Lambdas of one line differ in their code only.
        yield Literal(f"{home} {function.__code__.co_firstlineno}")
    yield from code_parts(function.__code__)
    yield from (function.__defaults__, function.__kwdefaults__)
    # The values that a closure has captured, which
    # is where most parameters of a policy are.
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:
            yield Literal("empty cell")
            continue
        if origin is CodeOrigin.FOREIGN:
            refuse_impure(content)
        yield content
    if origin is CodeOrigin.FOREIGN:
        # Attributes set on a function may be read by its code. `__wrapped__` is not
        # content: the closure already leads to what is wrapped.
        yield {k: v for k, v in vars(function).items() if k != "__wrapped__"}
        yield from global_parts(function)


_GENERATED_BY_NAMED_TUPLE = (
    "__new__",
    "__repr__",
    "__replace__",
    "__getnewargs__",
    "_make",
    "_replace",
    "_asdict",
)
_NOT_CONTENT = (
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__annotations__",
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__static_attributes__",
    "__firstlineno__",
    "__orig_bases__",
    "__parameters__",
    "__abstractmethods__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "_abc_impl",
)
"""Attributes of classes that do not change what instances do, or are read apart."""


def _class_parts(kind: type) -> Iterator[Any]:
    """A foreign class: its bases, its attributes and its methods."""
    # The metaclass and the bases are content: methods may come from either.
    yield from (Literal(f"class {kind.__qualname__}"), type(kind), kind.__bases__)
    attributes = {k: v for k, v in vars(kind).items() if k not in _NOT_CONTENT}
    if issubclass(kind, enum.Enum):
        yield [(member.name, member.value) for member in kind]
        attributes = {k: v for k, v in attributes.items() if _is_written_in(kind, k, v)}
    if "_fields" in attributes and issubclass(kind, tuple):
        unread = (*_GENERATED_BY_NAMED_TUPLE, *attributes["_fields"])
        attributes = {k: v for k, v in attributes.items() if k not in unread}
    if dataclasses.is_dataclass(kind):
        yield Literal(repr(getattr(kind, "__dataclass_params__", None)))
        for field in dataclasses.fields(kind):
            yield Literal(f"{field.name} {field.init} {field.kw_only}")
            for default in (field.default, field.default_factory):
                yield Literal("-") if default is dataclasses.MISSING else default
        attributes = {
            k: v for k, v in attributes.items() if not _is_made_by_dataclass(v)
        }
    # Sorted: the order in which a class body defines its methods changes nothing.
    for name in sorted(attributes):
        value = attributes[name]
        yield Literal(name)
        if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            yield Literal("slot")
        else:
            yield value


def _is_written_in(kind: type, name: str, value: Any) -> bool:
    """True for a method that stands in the body of a class."""
    function = inspect.unwrap(getattr(value, "fget", value) or value)
    return getattr(function, "__qualname__", None) == f"{kind.__qualname__}.{name}"


def _is_made_by_dataclass(value: Any) -> bool:
    """True for a method that `dataclasses` has generated from the fields."""
    if not isinstance(value, types.FunctionType):
        return False
    name = inspect.unwrap(value).__code__.co_qualname
    return name.startswith(("__create_fn__.", "_recursive_repr."))


def _is_known_mapping(kind: type) -> bool:
    return (
        kind in (dict, OrderedDict, types.MappingProxyType)
        or kind.__module__.split(".")[0] in VERSIONED_PACKAGES
        or code_origin(kind.__module__) is CodeOrigin.OWN
    )


def _instance_parts(value: Any) -> Iterator[Any]:
    """An instance of one of our classes, a frozen dataclass or a jitted function."""
    kind = type(value)
    if hasattr(value, "__wrapped__") and kind.__module__.startswith("jax"):
        # A custom_vmap has a second function, which is not reached by `__wrapped__`.
        if kind.__qualname__ not in ("PjitFunction", "custom_jvp", "custom_vjp"):
            raise _not_content(value)
        yield Literal(f"{kind.__module__}.{kind.__qualname__}")
        yield value.__wrapped__
        return
    if code_origin(kind.__module__) is CodeOrigin.OWN:
        yield kind
        if dataclasses.is_dataclass(value):
            yield from (getattr(value, f.name) for f in dataclasses.fields(value))
        else:
            yield from (part for pair in sorted(vars(value).items()) for part in pair)
        return
    # A mutable object could change after its digest
    # was taken, and has none for that reason.
    params = getattr(kind, "__dataclass_params__", None)
    if params is None or not params.frozen:
        raise _not_content(value)
    yield kind
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    # Attributes beside the fields may be read by methods as well.
    yield fields | getattr(value, "__dict__", {})


def _not_content(value: Any) -> NotFingerprintable:
    return NotFingerprintable(
        f"{_describe(value)} cannot be identified by its content; use functions, "
        "frozen dataclasses, tuples, arrays and plain values"
    )


def _describe(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if isinstance(value, types.BuiltinFunctionType) and name:
        return f"{getattr(value, '__module__', None) or ''}.{name}".lstrip(".")
    kind = type(value)
    return f"an object of class {kind.__module__}.{kind.__qualname__}"

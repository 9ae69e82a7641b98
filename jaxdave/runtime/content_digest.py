"""Digests of Python objects by content, the same in every process.

`content_digest` walks functions, closures, classes, containers and arrays. Code of
jaxdave's program packages and of versioned packages is identified by its name, because
their sources and versions are in the cache key of a program
(`jaxdave.runtime.fingerprint`). All other code is *foreign*: it is identified by its
bytecode and, recursively, by every global name that the bytecode refers to.
"""

import builtins
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import sys
import types
import typing
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.runtime.code_origin import (
    OWN_PACKAGE,
    VERSIONED_PACKAGES,
    CodeOrigin,
    code_origin,
)


class NotFingerprintable(Exception):
    """An object that has no content digest.

    Attributes:
        reason: What stands in the way, and what to do about it, as one sentence.
        function: The innermost foreign function that refers to it; None if none does.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason
        self.function: str | None = None


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


class _Literal(NamedTuple):
    """A part whose text is digested as it is."""

    text: str | bytes


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

_IMPURE_BUILTINS = ("open", "input", "eval", "exec", "globals", "locals", "__import__")
_IMPURE_MODULES = (
    "datetime",
    "io",
    "nt",
    "os",
    "pathlib",
    "posix",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "sys",
    "time",
    "uuid",
)
"""Builtins and modules whose results depend on more than arguments and code: a program
compiled with what they returned in one process would be wrong in the next."""


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
                text = part.text if isinstance(part, _Literal) else self.digest(part)
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
            yield _Literal(f"{value!r}")
        elif isinstance(value, np.ndarray | jax.Array):
            yield from _array_parts(value)
        elif isinstance(value, types.ModuleType):
            yield _Literal(_module_name(value))
        elif (name := _public_name(value)) is not None:
            yield _Literal(name)
        elif isinstance(value, types.FunctionType):
            yield from _function_parts(value)
        elif isinstance(value, types.MethodType):
            yield from (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            yield from (_Literal("partial"), value.func, value.args, value.keywords)
        elif isinstance(value, functools._lru_cache_wrapper):
            yield from (_Literal("cached"), value.__wrapped__)
        elif isinstance(value, _DESCRIPTOR_TYPES):
            yield from (_Literal(value.__name__), value.__objclass__)
        elif isinstance(value, types.BuiltinFunctionType):
            raise NotFingerprintable(
                f"{_describe(value)} is compiled code of a package that jaxdave does "
                "not know; use functions of Python, jax or numpy"
            )
        elif isinstance(value, enum.Enum):
            yield from (type(value), _Literal(value.name))
        elif isinstance(value, type):
            yield from _class_parts(value)
        elif isinstance(value, property):
            yield from (_Literal("property"), value.fget, value.fset, value.fdel)
        elif isinstance(value, staticmethod | classmethod):
            yield from (_Literal(type(value).__name__), value.__func__)
        else:
            yield from self._container_parts(value)

    def _container_parts(self, value: Any) -> Iterator[Any]:
        """What a container or an instance of a class consists of."""
        kind = type(value)
        if isinstance(value, Mapping) and _is_known_mapping(kind):
            yield _Literal(f"mapping {len(value)}")
            yield from (part for pair in value.items() for part in pair)
        elif isinstance(value, tuple | list):
            yield _Literal(kind.__name__) if kind in (tuple, list) else kind
            yield _Literal(f"{len(value)}")
            yield from value
            if kind not in (tuple, list):
                yield getattr(value, "__dict__", None)
        elif kind in (set, frozenset):
            # The order of a set depends on PYTHONHASHSEED.
            yield _Literal(f"set {len(value)}")
            yield from (_Literal(text) for text in sorted(map(self.digest, value)))
        elif isinstance(value, slice):
            yield from (_Literal("slice"), value.start, value.stop, value.step)
        elif isinstance(value, types.GenericAlias | types.UnionType):
            yield from (_Literal(kind.__name__), typing.get_origin(value))
            yield typing.get_args(value)
        elif kind.__module__ == "typing":
            # Annotations of nested functions, which compute nothing.
            yield _Literal(f"{value!r}")
        else:
            yield from _instance_parts(value)


def _array_parts(array: Any) -> Iterator[Any]:
    # New-style keys are no numbers: they are told
    # by their implementation and their words.
    if isinstance(array, jax.Array) and jnp.issubdtype(
        array.dtype, jax.dtypes.prng_key
    ):
        yield _Literal(f"key {jax.random.key_impl(array)}")
        array = jax.random.key_data(array)
    content = np.asarray(array)
    if content.dtype.hasobject:
        raise NotFingerprintable(
            f"an array of dtype {content.dtype} holds Python objects; use an array of "
            "numbers"
        )
    yield _Literal(f"{content.dtype} {content.shape}")
    yield _Literal(content.tobytes())


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


def _module_name(module: types.ModuleType) -> str:
    """The name of a known module that code uses as a value."""
    if code_origin(module.__name__) is CodeOrigin.FOREIGN:
        raise NotFingerprintable(
            f"module {module.__name__!r} is used as a value, so that what is used of "
            "it is not known; import the names that are needed from it"
        )
    return f"module {module.__name__}"


def _module_source(module: types.ModuleType) -> bytes:
    """The digest of the source of a foreign module that is one file."""
    file = getattr(module, "__file__", None)
    if hasattr(module, "__path__"):
        raise NotFingerprintable(
            f"module {module.__name__!r} is a package that jaxdave does not know; "
            "import the functions that are needed from it by name"
        )
    try:
        return hashlib.sha256(Path(file or "").read_bytes()).digest()
    except OSError:
        raise NotFingerprintable(
            f"module {module.__name__!r} has no source file that can be read; import "
            "the functions that are needed from it by name"
        ) from None


def _function_parts(function: types.FunctionType) -> Iterator[Any]:
    home = function.__globals__.get("__name__")
    origin = code_origin(home)
    if origin is CodeOrigin.FOREIGN:
        # Neither module nor line: the same text elsewhere is the same function.
        yield _Literal("foreign function")
    else:
        # Lambdas of one line differ in their code only.
        yield _Literal(f"{home} {function.__code__.co_firstlineno}")
    yield from _code_parts(function.__code__)
    yield from (function.__defaults__, function.__kwdefaults__)
    # The values that a closure has captured, which
    # is where most parameters of a policy are.
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:
            yield _Literal("empty cell")
            continue
        if origin is CodeOrigin.FOREIGN:
            _refuse_impure(content)
        yield content
    if origin is CodeOrigin.FOREIGN:
        # Attributes set on a function may be read by its code. `__wrapped__` is not
        # content: the closure already leads to what is wrapped.
        yield {k: v for k, v in vars(function).items() if k != "__wrapped__"}
        yield from _global_parts(function)


def _code_parts(code: types.CodeType) -> Iterator[Any]:
    """What code does, nested functions included; neither its file nor its line."""
    yield _Literal(
        f"{code.co_qualname} {code.co_argcount} {code.co_posonlyargcount} "
        f"{code.co_kwonlyargcount} {code.co_flags} {code.co_names} {code.co_varnames} "
        f"{code.co_freevars} {code.co_cellvars}"
    )
    yield _Literal(code.co_code)
    yield _Literal(code.co_exceptiontable)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_parts(constant)
        else:
            yield constant


class _Reference(NamedTuple):
    """A global name in code and the attributes that are read of it: `a.b.c`."""

    name: str
    attributes: tuple[str, ...]


def _references(code: types.CodeType) -> Iterator[_Reference]:
    """The global names that code and its nested functions refer to.

    Raises:
        NotFingerprintable: An import statement inside the code names a foreign module.
    """
    steps = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
    for index, step in enumerate(steps):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            # `a.b.c` compiles to a load of the name `a` followed by its attributes. Of
            # a module, only the attribute that is read matters.
            attributes = []
            for later in steps[index + 1 :]:
                if later.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                    break
                attributes.append(later.argval)
            yield _Reference(step.argval, tuple(attributes))
        elif step.opname == "IMPORT_NAME":
            # The two instructions before an import
            # load its level and its list of names.
            level = steps[index - 2].argval
            if level != 0 or code_origin(step.argval) is CodeOrigin.FOREIGN:
                raise NotFingerprintable(
                    f"it imports {'.' * (level or 0)}{step.argval} when it is called; "
                    "import that at the top of the file"
                )
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _references(constant)


def _global_parts(function: types.FunctionType) -> Iterator[Any]:
    """The values of the global names that a foreign function refers to."""
    for reference in dict.fromkeys(_references(function.__code__)):
        yield _Literal(".".join((reference.name, *reference.attributes)))
        if reference.name in function.__globals__:
            value = function.__globals__[reference.name]
        elif hasattr(builtins, reference.name):
            value = getattr(builtins, reference.name)
        else:
            yield _Literal("undefined")
            continue
        _refuse_impure(value)
        yield from _attribute_parts(value, reference.attributes)


def _refuse_impure(value: Any) -> None:
    """Refuse what foreign code may read at trace time besides arguments and globals."""
    is_module = isinstance(value, types.ModuleType)
    module = value.__name__ if is_module else getattr(value, "__module__", None)
    name = getattr(value, "__name__", None)
    package = module.split(".")[0] if isinstance(module, str) else None
    is_impure = package in _IMPURE_MODULES and (is_module or callable(value))
    is_impure |= any(value is getattr(builtins, name) for name in _IMPURE_BUILTINS)
    if is_impure:
        raise NotFingerprintable(
            f"{name!r} may read what differs from process to process; read it before, "
            "and pass the result as a value"
        )


def _attribute_parts(value: Any, attributes: tuple[str, ...]) -> Iterator[Any]:
    """A value; of a foreign module, its source and only the attribute that is read."""
    while (
        isinstance(value, types.ModuleType)
        and code_origin(value.__name__) is CodeOrigin.FOREIGN
        and attributes
    ):
        # `jaxdave` itself only leads to its subpackages.
        if value.__name__ != OWN_PACKAGE:
            yield _Literal(_module_source(value))
        name, *rest = attributes
        attributes = tuple(rest)
        try:
            value = getattr(value, name)
        except AttributeError:
            yield _Literal("undefined")
            return
    yield value


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
    yield from (_Literal(f"class {kind.__qualname__}"), type(kind), kind.__bases__)
    attributes = {k: v for k, v in vars(kind).items() if k not in _NOT_CONTENT}
    if issubclass(kind, enum.Enum):
        yield [(member.name, member.value) for member in kind]
        attributes = {k: v for k, v in attributes.items() if _is_written_in(kind, k, v)}
    if "_fields" in attributes and issubclass(kind, tuple):
        unread = (*_GENERATED_BY_NAMED_TUPLE, *attributes["_fields"])
        attributes = {k: v for k, v in attributes.items() if k not in unread}
    if dataclasses.is_dataclass(kind):
        yield _Literal(repr(getattr(kind, "__dataclass_params__", None)))
        for field in dataclasses.fields(kind):
            yield _Literal(f"{field.name} {field.init} {field.kw_only}")
            for default in (field.default, field.default_factory):
                yield _Literal("-") if default is dataclasses.MISSING else default
        attributes = {
            k: v for k, v in attributes.items() if not _is_made_by_dataclass(v)
        }
    # Sorted: the order in which a class body defines its methods changes nothing.
    for name in sorted(attributes):
        value = attributes[name]
        yield _Literal(name)
        if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
            yield _Literal("slot")
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
        yield _Literal(f"{kind.__module__}.{kind.__qualname__}")
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

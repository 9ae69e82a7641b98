"""What the code of a function does and refers to, as parts of a digest.

Foreign code (`jaxdave.runtime.code_origin`) is told by its bytecode and by the values
of the global names in it; of a module only the attributes that are read. What may read
anything else while it is traced is refused.
"""

import builtins
import dis
import hashlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdave.runtime.code_origin import OWN_PACKAGE, CodeOrigin, code_origin


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


class Literal(NamedTuple):
    """A part whose text is digested as it is.

    Attributes:
        text: The text.
    """

    text: str | bytes


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


def code_parts(code: types.CodeType) -> Iterator[Any]:
    """What code does, nested functions included; neither its file nor its line.

    Args:
        code: The code of a function.

    Yields:
        Parts to digest: constants, and text as `Literal`.
    """
    yield Literal(
        f"{code.co_qualname} {code.co_argcount} {code.co_posonlyargcount} "
        f"{code.co_kwonlyargcount} {code.co_flags} {code.co_names} {code.co_varnames} "
        f"{code.co_freevars} {code.co_cellvars}"
    )
    yield Literal(code.co_code)
    yield Literal(code.co_exceptiontable)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_parts(constant)
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


def global_parts(function: types.FunctionType) -> Iterator[Any]:
    """The values of the global names that a foreign function refers to.

    Args:
        function: The function.

    Yields:
        Every name in turn and what it stands for.

    Raises:
        NotFingerprintable: A name leads to what cannot be told by content.
    """
    for reference in dict.fromkeys(_references(function.__code__)):
        yield Literal(".".join((reference.name, *reference.attributes)))
        if reference.name in function.__globals__:
            value = function.__globals__[reference.name]
        elif hasattr(builtins, reference.name):
            value = getattr(builtins, reference.name)
        else:
            yield Literal("undefined")
            continue
        refuse_impure(value)
        yield from _attribute_parts(value, reference.attributes)


def refuse_impure(value: Any) -> None:
    """Refuse what foreign code may read at trace time besides arguments and globals.

    Args:
        value: What a global name or a closure of foreign code holds.

    Raises:
        NotFingerprintable: It is a module or function that reads the outside.
    """
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
            yield Literal(_module_source(value))
        name, *rest = attributes
        attributes = tuple(rest)
        try:
            value = getattr(value, name)
        except AttributeError:
            yield Literal("undefined")
            return
    yield value


def module_name(module: types.ModuleType) -> str:
    """The name of a known module that code uses as a value.

    Args:
        module: The module.

    Returns:
        Its name, as a part of a digest.

    Raises:
        NotFingerprintable: The module is foreign.
    """
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

"""Every policy by name: registration, parsing from text, and a list.

A module of this package registers its makers with `@register`; nothing else needs to
know them. Makers of other packages are found through the entry-point group
`jaxdave.policies`, whose names are policy names and whose values are makers.
"""

import functools
import importlib
import inspect
import pkgutil
import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple, ParamSpec

from jaxdave.core.policy_api import Policy

ENTRY_POINTS = "jaxdave.policies"
_FIRST = ("static", "left_to_right")
"""Policies that a list begins with; the others follow by name."""
_MAKERS: dict[str, Callable[..., Policy]] = {}
_LOCK = threading.Lock()

P = ParamSpec("P")


def memoized(maker: Callable[P, Policy]) -> Callable[P, Policy]:
    """A maker that returns the same policy object for the same arguments.

    Decoders compile one program per policy object, so equal built-in policies must be
    one object. Sequences among the arguments are compared as tuples.

    Args:
        maker: A function of hashable arguments, or sequences of them, to a policy.

    Returns:
        The maker with a memory, under its own name and signature.
    """
    signature = inspect.signature(maker)
    policies: dict[Any, Policy] = {}
    lock = threading.Lock()

    @functools.wraps(maker)
    def make(*args: P.args, **kwargs: P.kwargs) -> Policy:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        # 1 and 1.0 are equal keys, but their policies differ in name.
        key = tuple((type(v), _frozen(v)) for v in given.arguments.values())
        with lock:
            if key not in policies:
                policies[key] = maker(*args, **kwargs)
            return policies[key]

    return make


def _frozen(value: Any) -> Any:
    """A hashable stand-in for an argument."""
    is_plain = isinstance(value, str | bytes | Policy) or not isinstance(
        value, Sequence
    )
    return value if is_plain else tuple(value)


def register(maker: Callable[P, Policy]) -> Callable[P, Policy]:
    """Make a policy known by its maker's name, to `parse` and to the command line.

    Args:
        maker: A function with a default for every parameter, of type int, float or str.

    Returns:
        The maker, memoized (see `memoized`).

    Example:
        @register
        def static(tokens_per_step: int = 1) -> Policy:
            ...
    """
    made = memoized(maker)
    _MAKERS[maker.__name__] = made
    return made


@functools.cache
def makers() -> dict[str, Callable[..., Policy]]:
    """The makers of all policies by name, those of entry points included.

    Raises:
        ValueError: An entry point cannot be loaded or takes a name that is in use.
    """
    package = importlib.import_module("jaxdave.policies")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"jaxdave.policies.{module.name}")
    found = dict(_MAKERS)
    for point in metadata.entry_points(group=ENTRY_POINTS):
        found[point.name] = _load_entry_point(point, found)
    first = {name: found[name] for name in _FIRST}
    return first | dict(sorted(found.items()))


def _load_entry_point(
    point: metadata.EntryPoint, known: dict[str, Callable[..., Policy]]
) -> Callable[..., Policy]:
    if point.name in known:
        raise ValueError(
            f"entry point {point.name!r} of {ENTRY_POINTS} ({point.value}) takes the "
            "name of a policy that is known; rename it in its package"
        )
    try:
        maker = point.load()
    except Exception as error:
        raise ValueError(
            f"entry point {point.name!r} of {ENTRY_POINTS} ({point.value}) cannot be "
            f"loaded ({error}); mend or uninstall its package"
        ) from error
    return memoized(maker)


SMALL = "small_blocks"
"""The one key that every policy takes: the length of `wrappers.small_blocks`."""

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a word"}


class PolicyInfo(NamedTuple):
    """What a list says of a policy; parameters: name -> default."""

    name: str
    parameters: dict[str, Any]
    line: str
    lossless: bool


def listing() -> list[PolicyInfo]:
    """Every policy, in the order of the documentation."""
    return [_info(name, maker) for name, maker in makers().items()]


def parse(text: str) -> Policy:
    """The policy that "name" or "name:key=value,key=value" says.

    Any policy also takes small_blocks=length. Raises ValueError, in one line, for a
    name or parameter that is unknown and for a value that does not fit.

    Example:
        policy = parse("maskgit_plus:steps=32,alg_temp=0.2")
    """
    name, colon, rest = text.strip().partition(":")
    known_makers = makers()
    if name not in known_makers:
        raise ValueError(
            f"policy {name!r} is unknown; use one of {', '.join(known_makers)}"
        )
    if colon and not rest.strip():
        raise ValueError(f"policy {text!r} ends in ':'; add key=value or leave it out")
    known = {**_info(name, known_makers[name]).parameters, SMALL: 0}
    given: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, value = _parse_parameter(name, part, known)
        if key in given:
            raise ValueError(f"policy {name!r}: {key} is given twice; leave one out")
        given[key] = value
    # Imported here: wrappers are memoized by this module.
    from jaxdave.policies.wrappers import small_blocks

    length = given.pop(SMALL, None)
    try:
        policy = known_makers[name](**given)
        return policy if length is None else small_blocks(policy, length)
    except ValueError as error:
        raise ValueError(f"policy {name!r}: {error}") from None


def _info(name: str, maker: Callable[..., Policy]) -> PolicyInfo:
    parameters = {
        key: parameter.default
        for key, parameter in inspect.signature(maker).parameters.items()
    }
    line = (inspect.getdoc(maker) or "").partition("\n")[0]
    return PolicyInfo(name, parameters, line, maker().lossless)


def _parse_parameter(name: str, part: str, known: dict[str, Any]) -> tuple[str, Any]:
    """A parameter and its value, of the type of its default."""
    key, equals, word = (piece.strip() for piece in part.partition("="))
    if not equals:
        raise ValueError(f"policy {name!r}: {part!r} must read key=value")
    if key not in known:
        raise ValueError(
            f"policy {name!r} has no parameter {key!r}; it takes {', '.join(known)}"
        )
    kind = type(known[key])
    try:
        return key, kind(word)
    except ValueError:
        usual = "" if key == SMALL else f"; {known[key]} is the default"
        raise ValueError(
            f"policy {name!r}: {key}={word!r} must be {_TYPE_NAMES[kind]}{usual}"
        ) from None

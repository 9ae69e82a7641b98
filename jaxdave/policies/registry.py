"""Registry of policies: registration, parsing from text, and a listing.

A module of this package registers its makers with `@register`; nothing else needs to
know them. Other packages add policies through the entry-point group `jaxdave.policies`,
whose names are policy names and whose values are makers:

    [project.entry-points."jaxdave.policies"]
    my_policy = "my_package.policies:my_policy"
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

from jaxdave.core.policy_api import Policy
from jaxdave.policies.memoize import P, memoized
from jaxdave.policies.validation import check_policy
from jaxdave.runtime.messages import one_line

ENTRY_POINT_GROUP = "jaxdave.policies"
_FIRST_NAMES = ("static", "left_to_right")
"""Policies that a listing begins with; the others follow by name."""
_MAKERS: dict[str, Callable[..., Policy]] = {}
"""Makers that `register` has seen, by name."""


def register(maker: Callable[P, Policy]) -> Callable[P, Policy]:
    """Register a policy maker under its function name, for `parse` and `listing`.

    Args:
        maker: A function with a default for every parameter, of type int, float or str.
            The first line of its docstring is shown by `listing`.

    Returns:
        The maker, memoized (see `memoized`).

    Example:
        @register
        def static(tokens_per_step: int = 1) -> Policy:
            ...
    """
    _MAKERS[maker.__name__] = memoized(maker)
    return _MAKERS[maker.__name__]


@functools.cache
def makers() -> dict[str, Callable[..., Policy]]:
    """The makers of all policies by name, those of entry points included.

    Returns:
        Makers by policy name: `static`, `left_to_right`, then the others by name.

    Raises:
        ValueError: An entry point cannot be loaded or takes a name that is in use.
    """
    # Importing a module registers its makers.
    package = importlib.import_module("jaxdave.policies")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"jaxdave.policies.{module.name}")
    makers_by_name = dict(_MAKERS)
    for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        maker = _load_entry_point(entry_point, makers_by_name)
        makers_by_name[entry_point.name] = maker
    first = {name: makers_by_name[name] for name in _FIRST_NAMES}
    return first | dict(sorted(makers_by_name.items()))


def _load_entry_point(
    entry_point: metadata.EntryPoint, known: dict[str, Callable[..., Policy]]
) -> Callable[..., Policy]:
    """The maker that an entry point names. Raises ValueError if there is none."""
    where = f"{entry_point.name!r} of {ENTRY_POINT_GROUP} ({entry_point.value})"
    if entry_point.name in known:
        raise ValueError(
            f"entry point {where} takes the "
            "name of a policy that is known; rename it in its package"
        )
    # Foreign code is run here, which may raise anything, in any number of lines.
    try:
        maker = entry_point.load()
        if isinstance(maker, Policy):
            raise TypeError("it is a Policy; name a function that returns it")
        return memoized(maker)
    except Exception as error:
        raise ValueError(
            f"entry point {where} cannot be "
            f"loaded ({one_line(error)}); mend or uninstall its package"
        ) from error


SMALL_BLOCKS = "small_blocks"
"""The one key that every policy takes: the length of `wrappers.small_blocks`."""

_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a word"}


class PolicyInfo(NamedTuple):
    """One entry of the listing of policies.

    Attributes:
        name: The policy's name, as `parse` takes it.
        parameters: Default values by parameter name.
        summary: One sentence on what a step commits.
        lossless: False for a rule that speculates with the text itself.
    """

    name: str
    parameters: dict[str, Any]
    summary: str
    lossless: bool


def listing() -> list[PolicyInfo]:
    """Every policy with its parameters and a one-line summary.

    Returns:
        One entry per policy, in the order of `makers`.

    Raises:
        ValueError: As `makers`, or a maker cannot be used (see `register`).

    Example:
        >>> names = [entry.name for entry in listing()]
        >>> names[0], names[1]
        ('static', 'left_to_right')
    """
    return [_info(name, maker) for name, maker in makers().items()]


def parse(text: str) -> Policy:
    """Make a policy from text: "name" or "name:key=value,key=value".

    Any policy also takes small_blocks=length (see `wrappers.small_blocks`).

    Args:
        text: A policy's name, and parameters that differ from their defaults.

    Returns:
        The policy, the same object for equal parameters.

    Raises:
        ValueError: The name or a parameter is unknown, or a value does not fit. The
            message has one line.

    Example:
        >>> parse("maskgit_plus:steps=32,alg_temp=0.2").name
        'maskgit_plus(steps=32, eps=0.001, alg_temp=0.2)'
    """
    name, colon, rest = text.strip().partition(":")
    # Foreign makers are imported here, not with
    # the package: a broken one fails this call.
    known_makers = makers()
    if name not in known_makers:
        raise ValueError(
            f"policy {name!r} is unknown; use one of {', '.join(known_makers)}"
        )
    if colon and not rest.strip():
        raise ValueError(f"policy {text!r} ends in ':'; add key=value or leave it out")
    defaults = {**_info(name, known_makers[name]).parameters, SMALL_BLOCKS: 0}
    arguments: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, value = _parse_parameter(name, part, defaults)
        if key in arguments:
            raise ValueError(f"policy {name!r}: {key} is given twice; leave one out")
        arguments[key] = value
    # Imported here: wrappers are memoized by this module.
    from jaxdave.policies.wrappers import small_blocks

    length = arguments.pop(SMALL_BLOCKS, None)
    try:
        policy = known_makers[name](**arguments)
        return policy if length is None else small_blocks(policy, length)
    except ValueError as error:
        raise ValueError(f"policy {name!r}: {one_line(error)}") from None


def _info(name: str, maker: Callable[..., Policy]) -> PolicyInfo:
    """The entry of the listing for one maker. Raises ValueError if it is unusable."""
    parameters: dict[str, Any] = {}
    for key, parameter in inspect.signature(maker).parameters.items():
        # By type and not by isinstance: a bool is an int, and bool("False") is True.
        if type(parameter.default) not in _TYPE_NAMES:
            raise ValueError(
                f"policy {name!r}: its maker's parameter {key} needs a default of type "
                "int, float or str; give it one, e.g. 1"
            )
        parameters[key] = parameter.default
    # Makers are called with their defaults, as a policy alone knows if it is lossless.
    # One of another package may raise anything.
    try:
        policy = maker()
        check_policy(policy)
    except Exception as error:
        raise ValueError(
            f"policy {name!r}: its maker gives no policy for its defaults "
            f"({type(error).__name__}: {one_line(error)}); mend the maker"
        ) from error
    summary = (inspect.getdoc(maker) or "").partition("\n")[0]
    return PolicyInfo(name, parameters, summary, policy.lossless)


def _parse_parameter(name: str, part: str, defaults: dict[str, Any]) -> tuple[str, Any]:
    """The key and the value of "key=value", the value of the type of its default."""
    key, equals, word = (piece.strip() for piece in part.partition("="))
    if not equals:
        raise ValueError(f"policy {name!r}: {part!r} must read key=value")
    if key not in defaults:
        raise ValueError(
            f"policy {name!r} has no parameter {key!r}; it takes {', '.join(defaults)}"
        )
    kind = type(defaults[key])
    try:
        return key, kind(word)
    except ValueError:
        usual = "" if key == SMALL_BLOCKS else f"; {defaults[key]} is the default"
        raise ValueError(
            f"policy {name!r}: {key}={word!r} must be {_TYPE_NAMES[kind]}{usual}"
        ) from None

"""Every policy by name, from text, and in a list."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxdave.policies import (
    anchors,
    backtracking,
    bounded,
    branching,
    credits,
    dream,
    early_exit,
    fast_dllm,
    hitting,
    llada,
    plain,
    runs,
    sdar,
    sliding,
    steadiness,
    wide,
    wrappers,
)
from jaxdave.types import Policy

MAKERS: dict[str, Callable[..., Policy]] = {
    maker.__name__: maker
    for maker in (
        plain.static,
        plain.left_to_right,
        fast_dllm.threshold,
        fast_dllm.factor,
        llada.low_confidence,
        llada.random,
        dream.origin,
        dream.maskgit_plus,
        dream.topk_margin,
        dream.entropy,
        sdar.sequential,
        sdar.low_confidence_static,
        sdar.low_confidence_dynamic,
        bounded.entropy_bounded,
        bounded.eb_sampler,
        runs.hierarchical,
        anchors.local_leap,
        hitting.first_hitting,
        sliding.deferred,
        credits.credit,
        steadiness.klass,
        early_exit.sched,
        early_exit.prophet,
        backtracking.saber,
        branching.info_gain,
        branching.lopa,
        wide.wino,
    )
}
SMALL = "small_blocks"
"""The one key that every policy takes: the length of `wrappers.small_blocks`."""

_WANTED = {int: "a whole number", float: "a number", str: "a word"}


class Entry(NamedTuple):
    """What a list says of a policy; parameters: name -> default."""

    name: str
    parameters: dict[str, Any]
    line: str
    lossless: bool


def listing() -> list[Entry]:
    """Every policy, in the order of the documentation."""
    return [_entry(name, maker) for name, maker in MAKERS.items()]


def parse(text: str) -> Policy:
    """The policy that "name" or "name:key=value,key=value" says.

    Any policy also takes small_blocks=length. Raises ValueError, in one line, for a
    name or parameter that is unknown and for a value that does not fit.

    Example:
        policy = parse("maskgit_plus:steps=32,alg_temp=0.2")
    """
    name, colon, rest = text.strip().partition(":")
    if name not in MAKERS:
        raise ValueError(f"policy {name!r} is unknown; use one of {', '.join(MAKERS)}")
    if colon and not rest.strip():
        raise ValueError(f"policy {text!r} ends in ':'; add key=value or leave it out")
    known = {**_entry(name, MAKERS[name]).parameters, SMALL: 0}
    given: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, value = _read(name, part, known)
        if key in given:
            raise ValueError(f"policy {name!r}: {key} is given twice; leave one out")
        given[key] = value
    length = given.pop(SMALL, None)
    try:
        policy = MAKERS[name](**given)
        return policy if length is None else wrappers.small_blocks(policy, length)
    except ValueError as error:
        raise ValueError(f"policy {name!r}: {error}") from None


def _entry(name: str, maker: Callable[..., Policy]) -> Entry:
    parameters = {
        key: parameter.default
        for key, parameter in inspect.signature(maker).parameters.items()
    }
    line = (inspect.getdoc(maker) or "").partition("\n")[0]
    return Entry(name, parameters, line, maker().lossless)


def _read(name: str, part: str, known: dict[str, Any]) -> tuple[str, Any]:
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
            f"policy {name!r}: {key}={word!r} must be {_WANTED[kind]}{usual}"
        ) from None

"""Policies and draft functions pickle as the calls that made them.

They are records of closures, which cannot be pickled. Those that a function of a module
has made are pickled as that function's name and its arguments, and made again by it on
the other side, where programs are found by the record that it returns. Records of
functions at the top of a module pickle by those.
"""

import copyreg
import functools
import importlib
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

from jaxdave.core.draft_api import DraftFn
from jaxdave.core.policy_api import Policy

P = ParamSpec("P")
Record = TypeVar("Record", Policy, DraftFn)


class _Call(NamedTuple):
    """A call of a function by its name."""

    module: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


_CALLS: dict[Any, _Call] = {}
"""Records by the calls that made them; makers keep their records, too."""


def remember(
    record: Policy | DraftFn,
    maker: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Remember which call has made a record.

    Args:
        record: A policy or a draft function.
        maker: What returned it, a function at the top of a module.
        args: Its positional arguments.
        kwargs: Its other arguments.
    """
    _CALLS[record] = _Call(maker.__module__, maker.__qualname__, args, kwargs)


def remembered(maker: Callable[P, Record]) -> Callable[P, Record]:
    """A maker whose records can be pickled.

    Args:
        maker: A function of arguments that can be pickled.

    Returns:
        The maker, under its own name and signature.
    """

    @functools.wraps(maker)
    def remembering(*args: P.args, **kwargs: P.kwargs) -> Record:
        record = maker(*args, **kwargs)
        remember(record, maker, args, kwargs)
        return record

    return remembering


def _make_again(call: _Call) -> Any:
    module = importlib.import_module(call.module)
    return operator.attrgetter(call.name)(module)(*call.args, **call.kwargs)


def _reduce(record: Any) -> tuple[Any, tuple[Any, ...]]:
    call = _CALLS.get(record)
    # A function inside another one has no name that leads to it.
    if call is None or "<locals>" in call.name:
        return type(record), tuple(record)
    return _make_again, (call,)


copyreg.pickle(Policy, _reduce)  # pyright: ignore[reportArgumentType]
copyreg.pickle(DraftFn, _reduce)  # pyright: ignore[reportArgumentType]

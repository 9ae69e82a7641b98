"""One policy object for equal arguments: compiled programs are found by it."""

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from jaxdave.core.made_by import remember
from jaxdave.core.policy_api import Policy

P = ParamSpec("P")


def memoized(maker: Callable[P, Policy]) -> Callable[P, Policy]:
    """A maker that returns the same policy object for the same arguments.

    Decoders compile one program per policy object, so equal built-in policies must be
    one object. Sequences among the arguments are compared as tuples.

    Args:
        maker: A function of hashable arguments, or sequences of them, to a policy.

    Returns:
        The maker with a memory, under its own name and signature. It may be called from
        several threads.
    """
    # Keys are made of all arguments, defaults filled
    # in: static() and static(1) are one policy.
    signature = inspect.signature(maker)
    policies: dict[Any, Policy] = {}
    lock = threading.Lock()

    @functools.wraps(maker)
    def memoized_maker(*args: P.args, **kwargs: P.kwargs) -> Policy:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        # 1 and 1.0 are equal keys, but their policies differ in name.
        key = tuple((type(v), _hashable(v)) for v in bound.arguments.values())
        with lock:
            if key not in policies:
                policies[key] = maker(*args, **kwargs)
                remember(policies[key], maker, args, kwargs)
            return policies[key]

    return memoized_maker


def _hashable(value: Any) -> Any:
    """An argument, or a tuple in the place of a sequence such as a list."""
    # A Policy is a tuple of functions, and hashable as it is.
    is_plain = isinstance(value, str | bytes | Policy) or not isinstance(
        value, Sequence
    )
    return value if is_plain else tuple(value)

"""Event loops that drop what arrives after they have ended."""

import asyncio
import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def drop_late_results() -> Iterator[None]:
    """Let event loops that are created meanwhile drop results that come too late.

    orbax writes the arrays of a checkpoint at once, and closes its event loop at the
    first that fails. Threads of tensorstore then report the others to a closed loop,
    and each prints a traceback that nobody can catch. The failure itself is raised as
    ever.

    Yields:
        Nothing. Loops that were created meanwhile stay as they are; later ones are
        Python's own again.
    """
    before = _current_policy()
    _set_policy(_DroppingPolicy())
    try:
        yield
    finally:
        _set_policy(before)


def _current_policy() -> Any:
    with warnings.catch_warnings():
        # Python 3.14 deprecates policies; orbax offers no other way in.
        warnings.simplefilter("ignore", DeprecationWarning)
        return asyncio.get_event_loop_policy()


def _set_policy(policy: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(policy)


class _DroppingPolicy(asyncio.DefaultEventLoopPolicy):
    """Python's own loops, but for results that come after the end."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = super().new_event_loop()
        loop.call_soon_threadsafe = functools.partial(
            _call_unless_closed, loop, loop.call_soon_threadsafe
        )
        return loop


def _call_unless_closed(
    loop: asyncio.AbstractEventLoop,
    call: Callable[..., asyncio.Handle],
    callback: Callable[..., object],
    *args: Any,
    **options: Any,
) -> asyncio.Handle:
    """`call`, a loop's `call_soon_threadsafe`; nothing once the loop is closed."""
    try:
        return call(callback, *args, **options)
    except RuntimeError:
        if not loop.is_closed():
            raise
        handle = asyncio.Handle(callback, args, loop)
        handle.cancel()
        return handle

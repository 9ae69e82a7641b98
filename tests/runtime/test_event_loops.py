"""Results that come after an event loop has ended."""

import asyncio

import pytest

from jaxdave.runtime.event_loops import drop_late_results


def test_a_late_result_is_dropped():
    with drop_late_results():
        loop = asyncio.new_event_loop()
    loop.close()
    assert loop.call_soon_threadsafe(print, "late").cancelled()


def test_results_in_time_come_through():
    with drop_late_results():
        loop = asyncio.new_event_loop()
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    loop.close()


def test_other_loops_are_pythons_own():
    before = asyncio.get_event_loop_policy()
    with pytest.raises(OSError), drop_late_results():
        raise OSError
    assert asyncio.get_event_loop_policy() is before
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(print, "late")

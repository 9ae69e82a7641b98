"""A pytest plugin: in which order tests run, and how their programs are compiled.

It is a plugin of its own because hooks of `tests/conftest.py` are not called for the
examples in docstrings.
"""

import gc

import jax
import pytest
from helpers import compiling

from jaxdave.runtime.compilation import clear_executables

LONG_FILES = (
    "test_demo_losslessness.py",
    "test_policy_laws.py",
    "test_policy_laws_real.py",
    "test_mesh_engine.py",
    "test_mesh_decoding.py",
    "test_two_processes.py",
    "test_ray.py",
)
"""Files of few tests that take a minute. They come first, as a long one that came last
would leave the other processes without work."""
_WAS_QUICK = pytest.StashKey[bool]()


def is_as_shipped(item: pytest.Item) -> bool:
    """Whether a test is of programs as users have them."""
    return item.get_closest_marker("as_shipped") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, and in each file what is compiled with all care last."""
    files = {item.path: index for index, item in reversed([*enumerate(items)])}

    def place(item: pytest.Item):
        is_short = item.path.name not in LONG_FILES
        return is_short, files[item.path], is_as_shipped(item)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Collect garbage rarely: tracing makes many objects, which soon die by count."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Compile quickly, but for tests marked `as_shipped`."""
    if not is_as_shipped(item):
        item.config.stash[_WAS_QUICK] = True
        with compiling.quickly():
            return (yield)
    if item.config.stash.get(_WAS_QUICK, False):
        # Nothing that was compiled with less care stands in for what is tested.
        drop_programs()
    item.config.stash[_WAS_QUICK] = False
    return (yield)


def drop_programs() -> None:
    """Forget what was compiled."""
    clear_executables()
    jax.clear_caches()
    gc.collect()

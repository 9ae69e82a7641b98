"""Programs are made once, and the next is traced while one is being compiled."""

import jax
import jax.numpy as jnp
import pytest

from jaxdave.runtime import compilation
from jaxdave.runtime.compilation import (
    CompileRequest,
    get_executable,
    get_executable_pair,
)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Programs of other tests neither help nor are lost."""
    monkeypatch.setattr(compilation, "EXECUTABLES", type(compilation.EXECUTABLES)())


def doubled(x):
    return {"twice": x * 2.0}


def summed(held):
    return jnp.sum(held["twice"])


def after(shapes):
    return CompileRequest("owner", "summed", summed, (shapes,))


def test_the_second_works_on_what_the_first_makes():
    first = CompileRequest("owner", "doubled", doubled, (jnp.arange(3.0),))
    one, two, seconds = get_executable_pair(first, after)
    assert two(one(jnp.arange(3.0))) == 6.0 and seconds > 0
    assert get_executable_pair(first, after) == (one, two, 0.0)
    assert get_executable(first) == (one, 0.0)
    other = CompileRequest("owner", "doubled", doubled, (jnp.arange(4.0),))
    assert get_executable(other)[0] is not one


def test_what_cannot_be_compiled_is_tried_again(monkeypatch):
    wanted = CompileRequest("owner", "doubled", doubled, (jnp.arange(3.0),))
    monkeypatch.setattr(compilation, "EXTRA_OPTIONS", {"no_such_option": 1})
    for _ in range(2):
        with pytest.raises(Exception, match="no_such_option"):
            get_executable(wanted)
    monkeypatch.setattr(compilation, "EXTRA_OPTIONS", {})
    assert get_executable(wanted)[0](jnp.ones(3))["twice"][0] == 2.0


def test_what_cannot_be_traced_leaves_nothing_behind():
    def broken(x):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        get_executable(CompileRequest("owner", "broken", broken, (jnp.ones(3),)))
    assert not compilation.EXECUTABLES


def test_arguments_that_are_yet_to_be_made_lie_at_home():
    shapes = jax.ShapeDtypeStruct((3,), jnp.float32)
    made, _ = get_executable(CompileRequest("owner", "doubled", doubled, (shapes,)))
    assert made(jnp.ones(3))["twice"].devices() == {jax.devices()[0]}


def test_executables_are_let_go_of_where_there_are_too_many(monkeypatch):
    for most, maps, left in ((3, 0, 3), (99, 50_000, 2), (99, 0, 5)):
        monkeypatch.setattr(compilation, "MAX_EXECUTABLES", most)
        monkeypatch.setattr(compilation, "MIN_EXECUTABLES", 2)
        monkeypatch.setattr(compilation, "_memory_maps", lambda maps=maps: maps)
        compilation.EXECUTABLES.clear()
        for size in range(1, 6):
            latest = CompileRequest("owner", "doubled", doubled, (jnp.ones(size),))
            get_executable(latest)
        assert len(compilation.EXECUTABLES) == left
        assert get_executable(latest)[1] == 0.0

"""Programs are made once, and the next is traced while one is being compiled."""

import jax
import jax.numpy as jnp
import pytest

from jaxdave import executables
from jaxdave.executables import Wanted, compiled, compiled_in_turn


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Programs of other tests neither help nor are lost."""
    monkeypatch.setattr(executables, "KEPT", type(executables.KEPT)())


def doubled(x):
    return {"twice": x * 2.0}


def summed(held):
    return jnp.sum(held["twice"])


def after(shapes):
    return Wanted("owner", "summed", summed, (shapes,))


def test_the_second_works_on_what_the_first_makes():
    first = Wanted("owner", "doubled", doubled, (jnp.arange(3.0),))
    one, two, seconds = compiled_in_turn(first, after)
    assert two(one(jnp.arange(3.0))) == 6.0 and seconds > 0
    assert compiled_in_turn(first, after) == (one, two, 0.0)
    assert compiled(first) == (one, 0.0)
    other = Wanted("owner", "doubled", doubled, (jnp.arange(4.0),))
    assert compiled(other)[0] is not one


def test_what_cannot_be_compiled_is_tried_again(monkeypatch):
    wanted = Wanted("owner", "doubled", doubled, (jnp.arange(3.0),))
    monkeypatch.setattr(executables, "OPTIONS", {"no_such_option": 1})
    for _ in range(2):
        with pytest.raises(Exception, match="no_such_option"):
            compiled(wanted)
    monkeypatch.setattr(executables, "OPTIONS", {})
    assert compiled(wanted)[0](jnp.ones(3))["twice"][0] == 2.0


def test_what_cannot_be_traced_leaves_nothing_behind():
    def broken(x):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        compiled(Wanted("owner", "broken", broken, (jnp.ones(3),)))
    assert not executables.KEPT


def test_arguments_that_are_yet_to_be_made_lie_at_home():
    shapes = jax.ShapeDtypeStruct((3,), jnp.float32)
    made, _ = compiled(Wanted("owner", "doubled", doubled, (shapes,)))
    assert made(jnp.ones(3))["twice"].devices() == {jax.devices()[0]}


def test_executables_are_let_go_of_where_there_are_too_many(monkeypatch):
    for most, maps, left in ((3, 0, 3), (99, 50_000, 2), (99, 0, 5)):
        monkeypatch.setattr(executables, "MOST_EXECUTABLES", most)
        monkeypatch.setattr(executables, "LEAST_EXECUTABLES", 2)
        monkeypatch.setattr(executables, "_maps", lambda maps=maps: maps)
        executables.KEPT.clear()
        for size in range(1, 6):
            latest = Wanted("owner", "doubled", doubled, (jnp.ones(size),))
            compiled(latest)
        assert len(executables.KEPT) == left
        assert compiled(latest)[1] == 0.0

"""Programs are compiled once, and the next is traced while one is being compiled."""

import threading

import jax
import jax.numpy as jnp
import pytest

from jaxdave.runtime import compilation
from jaxdave.runtime.compilation import (
    CompileRequest,
    get_executable,
    get_executable_pair,
)

pytestmark = pytest.mark.as_shipped


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Programs of other tests neither help nor are lost."""
    monkeypatch.setattr(compilation, "EXECUTABLES", compilation.ExecutableCache())


def doubled(x):
    return {"twice": x * 2.0}


def summed(tree):
    return jnp.sum(tree["twice"])


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
    request = CompileRequest("owner", "doubled", doubled, (jnp.arange(3.0),))
    monkeypatch.setattr(compilation, "EXTRA_OPTIONS", {"no_such_option": 1})
    for _ in range(2):
        with pytest.raises(Exception, match="no_such_option"):
            get_executable(request)
    monkeypatch.setattr(compilation, "EXTRA_OPTIONS", {})
    assert get_executable(request)[0](jnp.ones(3))["twice"][0] == 2.0


def test_an_option_that_the_compiler_no_longer_knows(monkeypatch, caplog):
    options = {"no_such_option": 1}
    monkeypatch.setattr(compilation, "compiler_options", lambda: options)
    request = CompileRequest("owner", "doubled", doubled, (jnp.arange(5.0),))
    assert get_executable(request)[0](jnp.ones(5))["twice"][0] == 2.0
    assert "no_such_option" in caplog.text


def test_what_cannot_be_traced_leaves_nothing_behind():
    def broken(x):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        get_executable(CompileRequest("owner", "broken", broken, (jnp.ones(3),)))
    assert not compilation.EXECUTABLES


def test_arguments_that_are_yet_to_be_made_lie_at_home():
    shapes = jax.ShapeDtypeStruct((3,), jnp.float32)
    double, _ = get_executable(CompileRequest("owner", "doubled", doubled, (shapes,)))
    assert double(jnp.ones(3))["twice"].devices() == {jax.devices()[0]}


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


def test_threads_that_ask_for_the_same_program_compile_it_once():
    traces, results = [], {}
    barrier = threading.Barrier(4)
    is_tracing, may_go_on = threading.Event(), threading.Event()

    def slow(x):
        traces.append(threading.get_ident())
        is_tracing.set()
        assert may_go_on.wait(60)
        return {"twice": x * 2.0}

    request = CompileRequest("owner", "slow", slow, (jnp.arange(3.0),))

    def ask(index: int) -> None:
        barrier.wait(60)
        results[index] = get_executable_pair(request, after)[:2]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    assert is_tracing.wait(60)
    # Another program does not wait for the one that is being traced.
    other = CompileRequest("owner", "doubled", doubled, (jnp.arange(3.0),))
    assert get_executable(other)[0](jnp.ones(3))["twice"][0] == 2.0
    may_go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(traces) == 1
    assert len(results) == 4 and len(set(results.values())) == 1
    assert len(compilation.EXECUTABLES) == 3


def test_threads_that_wait_for_a_program_are_told_that_it_failed():
    errors = []
    is_tracing, may_go_on = threading.Event(), threading.Event()

    def broken(x):
        is_tracing.set()
        assert may_go_on.wait(60)
        raise ValueError("broken")

    request = CompileRequest("owner", "broken", broken, (jnp.ones(3),))

    def ask() -> None:
        try:
            get_executable(request)
        except ValueError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    assert is_tracing.wait(60)
    threads[1].start()
    may_go_on.set()
    for thread in threads:
        thread.join(60)
    assert errors == ["broken"] * 2 and not compilation.EXECUTABLES

"""Rows that have ended leave a batch, and nothing but the time shows it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model

from jaxdave.core.spec import DecodeSpec
from jaxdave.engine import autotune, compaction, decoders
from jaxdave.engine.generation import generate, prepare
from jaxdave.runtime import program_cache
from jaxdave.runtime.compilation import (
    CompileRequest,
    clear_executables,
    get_executable,
    is_available,
)
from jaxdave.runtime.files import NO_CACHE

PROMPTS = fake_model.prompts_of([3, 9, 17, 4, 30, 6])[1:4]
"""Rows that end at different calls, with `toys.tiny_params(1)` one after another."""


def decoder(**more):
    settings = {"draft_steps": 4, "max_new_tokens": 24, **more}
    return decoders.freedave(fake_model.TINY, **settings)


@pytest.fixture(autouse=True)
def clean_book():
    """No test knows what another has spent."""
    compaction._ACCOUNTS.clear()


@pytest.fixture
def never(monkeypatch) -> None:
    """No loop is found that this process has not made."""
    monkeypatch.setattr(compaction, "is_available", lambda wanted: False)


@pytest.fixture
def always(monkeypatch) -> None:
    """Every loop is worth to be made."""
    monkeypatch.setattr(compaction, "is_available", lambda wanted: True)
    monkeypatch.setattr(compaction, "MIN_WAIT_CACHED", 0.0)


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, int]]:
    """Every run of a loop: its rows, and how few it is to leave."""
    found, real = [], compaction._run_until

    def until(loop, params, state, fewest):
        found.append((loop.num_rows, fewest))
        return real(loop, params, state, fewest)

    monkeypatch.setattr(compaction, "_run_until", until)
    return found


def loops(spec: DecodeSpec) -> dict[int, compaction.IdleAccount]:
    """What is on record of a program's loops, by rows."""
    return {rows: spent for (rows, _), spent in compaction._ACCOUNTS[spec].items()}


def plain(rows):
    """What no loop may change: all but the recheck calls, which come by chance."""
    return [
        dataclasses.replace(row, nfe=None, accepted=(), sizes=(), committed_at=())
        for row in rows
    ]


@pytest.mark.parametrize(
    ("temperature", "weights"),
    [(0.0, 1), pytest.param(0.7, 0, marks=pytest.mark.slow)],
)
@pytest.mark.usefixtures("always")
def test_texts_are_those_of_the_whole_batch(monkeypatch, temperature, weights):
    made, params = decoder(temperature=temperature), fake_model.tiny_params(weights)
    moved = generate(made, params, PROMPTS, seed=3)
    assert set(loops(made.spec)) >= ({3, 2, 1} if temperature == 0 else {3, 2})
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "compaction_threshold", lambda loop: 0)
        whole = generate(made, params, PROMPTS, seed=3)
    assert plain(moved.completions) == plain(whole.completions)
    again = generate(made, params, PROMPTS, seed=3)
    assert again.compile_seconds == 0 and plain(again.completions) == plain(
        moved.completions
    )


@pytest.mark.usefixtures("never")
def test_a_loop_is_made_once_waiting_has_cost_as_much():
    made, params = decoder(), fake_model.tiny_params(1)
    first = generate(made, params, PROMPTS)
    (whole,) = loops(made.spec).values()
    assert 0 < whole.idle_seconds < compaction.MIN_WAIT_COMPILE
    whole.compile_seconds, whole.idle_seconds = 100.0, 90.0
    generate(made, params, PROMPTS)
    assert 90 < whole.idle_seconds < 100 and len(loops(made.spec)) == 1
    whole.idle_seconds = 100.0
    later = generate(made, params, PROMPTS)
    assert len(loops(made.spec)) > 1
    assert plain(later.completions) == plain(first.completions)


def test_a_loop_at_hand_is_measured_once_waiting_was_worth_it(monkeypatch):
    made, params = decoder(), fake_model.tiny_params(1)
    monkeypatch.setattr(compaction, "is_available", lambda wanted: True)
    generate(made, params, PROMPTS)
    (whole,) = loops(made.spec).values()
    assert whole.idle_seconds < compaction.MIN_WAIT_CACHED
    whole.idle_seconds = compaction.MIN_WAIT_CACHED
    generate(made, params, PROMPTS)
    assert len(loops(made.spec)) > 1


@pytest.mark.usefixtures("always")
def test_rows_move_to_the_next_power_of_two(seen):
    generate(decoder(), fake_model.tiny_params(1), PROMPTS)
    assert seen == [(3, 2), (2, 1), (1, 0)]


@pytest.mark.usefixtures("always")
def test_a_smaller_loop_yet_may_be_worth_it(monkeypatch, seen):
    """Where the loop of two rows is not, that of one still is."""
    real = compaction._smaller_loop

    def smaller(loop, params, state, count):
        return None if count == 2 else real(loop, params, state, count)

    monkeypatch.setattr(compaction, "_smaller_loop", smaller)
    generate(decoder(), fake_model.tiny_params(1), PROMPTS)
    assert seen == [(3, 2), (3, 1), (1, 0)]


@pytest.mark.usefixtures("always")
def test_one_loop_of_a_size_whoever_leads_there(monkeypatch):
    """It is measured once, for batches of other sizes too."""
    made, params = decoder(), fake_model.tiny_params(1)
    measured, real = [], compaction.tuned_params

    def counting(*args):
        runtime, seconds = real(*args)
        measured.append((args[-1], seconds > 0))
        return runtime, seconds

    autotune.MEASUREMENTS.clear()
    monkeypatch.setattr(compaction, "tuned_params", counting)
    three = generate(made, params, PROMPTS)
    two = generate(made, params, PROMPTS[1:])
    assert {shape[-1] for shape, _ in measured} == {1, 2}
    assert sum(is_new for _, is_new in measured) == 2
    assert plain(three.completions)[1:] == plain(two.completions)


@pytest.mark.usefixtures("always")
def test_parameters_of_another_dtype_have_loops_of_their_own():
    made, params = decoder(numerics="exact", draft_steps=1), fake_model.tiny_params(1)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    for some in (params, half, params):
        assert len(generate(made, some, PROMPTS).completions) == 3


@pytest.mark.usefixtures("always")
def test_a_limit_of_calls_ends_a_loop_that_has_not_come_far():
    made, params = decoder(), fake_model.tiny_params(1)
    begun = prepare(made, params, PROMPTS, 0, None, None)
    runtime = begun.loop.runtime._replace(max_calls=np.int32(2))
    state = begun.prefill(params, runtime, begun.prompts)
    rows, _ = compaction.run_to_end(begun.loop._replace(runtime=runtime), params, state)
    assert not rows.done.any() and rows.stats.verify.tolist() == [2, 2, 2]


@pytest.mark.usefixtures("always")
def test_what_cannot_be_made_costs_time_only(monkeypatch):
    made, params = decoder(), fake_model.tiny_params(1)
    want = generate(made, params, PROMPTS)

    def fails(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    compaction._ACCOUNTS.clear()
    monkeypatch.setattr(compaction, "_compile_smaller", fails)
    assert plain(generate(made, params, PROMPTS).completions) == plain(want.completions)
    (whole,) = loops(made.spec).values()
    assert whole.compile_seconds == float("inf")


@pytest.mark.parametrize(("numerics", "rows"), [("exact", {3, 1}), ("fast", {3})])
@pytest.mark.usefixtures("always")
def test_exact_rows_move_when_alone_and_fast_ones_never(monkeypatch, numerics, rows):
    made, params = decoder(numerics=numerics), fake_model.tiny_params(1)
    moved = generate(made, params, PROMPTS)
    assert set(loops(made.spec)) == rows
    monkeypatch.setattr(compaction, "compaction_threshold", lambda loop: 0)
    assert moved.completions == generate(made, params, PROMPTS).completions


@pytest.mark.usefixtures("always")
def test_doubt_is_that_of_the_loops_on_the_way(monkeypatch):
    made, found = decoder(), []
    real = compaction.tuned_params

    def surer(*args):
        runtime, seconds = real(*args)
        return runtime._replace(
            error_bound=runtime.error_bound._replace(score=np.float32(0))
        ), seconds

    def kept(loop, params, state, fewest):
        found.append(float(loop.runtime.error_bound.score))
        return real_until(loop, params, state, fewest)

    real_until = compaction._run_until
    monkeypatch.setattr(compaction, "tuned_params", surer)
    monkeypatch.setattr(compaction, "_run_until", kept)
    generate(made, fake_model.tiny_params(1), PROMPTS)
    assert len(found) > 1 and found[0] > 0 and set(found) == {found[0]}


def test_a_program_is_at_hand_in_memory_and_on_disk(tmp_path, monkeypatch):
    monkeypatch.delenv(NO_CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = CompileRequest(
        None, "sample", autotune._first_values, ([np.ones(3, np.float32)],)
    )
    assert not is_available(wanted)
    get_executable(wanted)
    assert is_available(wanted)
    clear_executables()
    assert is_available(wanted)
    looked, real = [], program_cache.contains
    monkeypatch.setattr(
        program_cache, "contains", lambda name: looked.append(name) or real(name)
    )
    other = wanted._replace(args=([np.ones(4, np.float32)],))
    assert not is_available(other) and not is_available(other) and len(looked) == 1

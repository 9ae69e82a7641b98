"""How a call grows with the sequence, and a decode with the batch."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.harness import timing
from bench.harness.machine import matrix_sizes, query_tokens
from bench.harness.measure import (
    BATCH_SCALING,
    ENDED_ROWS,
    SEQUENCE_SCALING,
    Plan,
    ResultsBook,
)
from bench.harness.models import BenchModel
from jaxdave.core.host_arrays import host_array
from jaxdave.core.model_api import BlockStates, KVCache
from jaxdave.core.state import DecodeState
from jaxdave.engine.compaction import CompiledLoop, idle_account, run_to_end
from jaxdave.engine.generation import prepare
from jaxdave.runtime.machine import this_machine
from jaxdave.runtime.platform import compiler_options

DRAFT_LENGTH, BATCH_SIZE = 8, 8
NUM_STEPS = 24
"""Steps of the loop that ended-rows times."""

SHORT, LONG = 512, 8192
"""Sequence lengths that sequence-scaling compares, in tokens."""


def measure_sequence_scaling(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take sequence-scaling: a call's forward pass at two sequence lengths.

    The target is a tenth above the growth of its operations, off a CPU of the bytes
    that it reads. The cache has room for the longer one in both cases, and holds ones:
    only time matters.

    Args:
        model: the model.
        plan: numerics and rounds.
        book: gets the finding.
    """
    c, spec = model.config, model.spec(DRAFT_LENGTH, plan.numerics)
    tokens, grid = query_tokens(spec), spec.layout
    count = tokens // grid.block_length
    index_M = jnp.minimum(jnp.arange(count, dtype=jnp.int32), grid.num_blocks - 1)
    chain_MJ = jnp.broadcast_to(index_M[:, None], (count, grid.num_blocks))
    cut = BlockStates(
        jnp.zeros((count, grid.block_length), jnp.int32), index_M, chain_MJ
    )
    shape = (c.num_layers, LONG + 64 * 4, c.kv_heads, c.head_dim)
    cache = KVCache(jnp.ones(shape), jnp.ones(shape))
    block_states = spec.model.evaluate_blocks
    assert block_states is not None
    forward = jax.jit(block_states, compiler_options=compiler_options())
    end = jnp.int32(LONG + 128)

    def timer(position: int):
        start = jnp.int32(position)
        return lambda: timing.time_call(
            lambda: forward(model.params, cut, start, end, cache), 3
        )

    seconds = timing.time_alternately([timer(SHORT), timer(LONG)], plan.rounds)
    ratio = timing.median_with_interval(seconds[:, 1] / seconds[:, 0])
    short, long = (
        _token_work(model, position + grid.window_length) for position in (SHORT, LONG)
    )
    kind, growth = ("operations" if this_machine().is_cpu else "bytes"), long / short
    what = f"t(S={LONG}) / t(S={SHORT}), d={DRAFT_LENGTH}; {kind} grow {growth:.2f}x"
    target = round(1.1 * growth, 2)
    book.add_at_most(SEQUENCE_SCALING, model.label, what, ratio, target)


def _token_work(model: BenchModel, keys: int) -> int:
    """Cost of a token with so many keys: multiply-adds on a CPU, else bytes."""
    c = model.config
    layers, _ = matrix_sizes(c)
    if this_machine().is_cpu:
        return layers + 2 * c.num_layers * c.heads * c.head_dim * keys
    return (
        model.itemsize * layers + 4 * 2 * c.num_layers * c.kv_heads * c.head_dim * keys
    )


def measure_batch_scaling(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take batch-scaling: tokens a second of eight rows over those of one.

    Args:
        model: the model.
        plan: rounds.
        book: gets the findings; only decoding without drafts has a target.
    """
    for d, numerics in ((1, "guarded"), (DRAFT_LENGTH, "guarded"), (1, "exact")):
        one, many = (model.bench(d, size, numerics) for size in (1, BATCH_SIZE))
        tokens = [
            sum(row.valid_tokens for row in bench.decode().completions)
            for bench in (one, many)
        ]
        seconds = timing.time_alternately(
            [one.time_decode, many.time_decode], plan.rounds
        )
        rate = np.asarray(tokens) / seconds
        what = f"d={d}, {numerics}: tokens/s of batch {BATCH_SIZE} over batch 1"
        ratio = timing.median_with_interval(rate[:, 1] / rate[:, 0])
        if d == 1:
            book.add_at_least(BATCH_SCALING, model.label, what, ratio, 3.0)
        else:
            book.add(BATCH_SCALING, model.label, what, ratio)


def measure_ended_rows(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take ended-rows: steps of eight rows of which seven have ended.

    They are compared with steps of eight live rows, and with steps of a batch of one:
    what the live row costs where no row has ended beside it.

    Args:
        model: the model.
        plan: rounds.
        book: gets the findings.
    """
    for numerics in ("guarded", "exact"):
        _measure_ended_rows(model, numerics, plan, book)


def _measure_ended_rows(
    model: BenchModel, numerics: str, plan: Plan, book: ResultsBook
) -> None:
    alone, many = (_prefilled_loop(model, size, numerics) for size in (1, BATCH_SIZE))
    rows = dataclasses.replace(many.state.rows, done=jnp.arange(BATCH_SIZE) > 0)
    one_live = many._replace(state=many.state._replace(rows=rows))
    # Compaction compiles the loop of one row only when waiting has cost as much as
    # compiling: an infinite account makes it do so at once.
    account = idle_account(many.loop)
    account.idle_seconds = float("inf")
    timers = [
        lambda start=start: _time_steps(start, model.params)
        for start in (many, one_live, alone)
    ]
    seconds = timing.time_alternately(timers, plan.rounds)
    account.idle_seconds = 0.0
    what = f"{numerics}: steps with 1 live row of {BATCH_SIZE}, over {BATCH_SIZE} live"
    ratio = timing.median_with_interval(seconds[:, 1] / seconds[:, 0])
    target = round(1.1 / BATCH_SIZE + 0.05, 3)
    book.add_at_most(ENDED_ROWS, model.label, what, ratio, target)
    what = f"{numerics}: steps with 1 live row of {BATCH_SIZE}, over a batch of 1"
    ratio = timing.median_with_interval(seconds[:, 1] / seconds[:, 2])
    book.add_at_most(ENDED_ROWS, model.label, what, ratio, 1.1)


class _PrefilledLoop(NamedTuple):
    """A compiled loop, and the state after a prefill."""

    loop: CompiledLoop
    state: DecodeState


def _prefilled_loop(
    model: BenchModel, batch_size: int, numerics: str
) -> _PrefilledLoop:
    """A loop that stops after `NUM_STEPS` steps."""
    bench = model.bench(1, batch_size, numerics)
    prepared = prepare(bench.decoder, bench.params, bench.prompts, 0, None, None)
    runtime = prepared.loop.runtime._replace(max_calls=host_array(np.int32(NUM_STEPS)))
    state = prepared.prefill(bench.params, runtime, prepared.prompts)
    return _PrefilledLoop(prepared.loop._replace(runtime=runtime), state)


def _time_steps(start: _PrefilledLoop, params) -> float:
    """Seconds of the steps. The loop takes its state's memory, so it gets a copy."""
    state = jax.block_until_ready(jax.tree.map(jnp.copy, start.state))
    return timing.time_call(lambda: run_to_end(start.loop, params, state)[0].n)

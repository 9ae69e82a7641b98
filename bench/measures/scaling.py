"""M9, M10: how a call grows with the sequence, and a decode with the batch."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench.harness import common
from bench.harness.machine import matrices, query_tokens
from bench.harness.measure import Book, Plan
from bench.harness.models import Subject
from jaxdave.core.model_api import BlockStates, KVCache
from jaxdave.core.state import DecodeState, host_array
from jaxdave.engine.compaction import CompiledLoop, idle_account, run_to_end
from jaxdave.engine.generation import prepare
from jaxdave.runtime.platform import compiler_options, on_cpu

DRAFTS, ROWS, STEPS = 8, 8, 24
SHORT, LONG = 512, 8192


def sequence(subject: Subject, plan: Plan, book: Book) -> None:
    """M9: one call's forward at two lengths, over what its operations grow by."""
    c, spec = subject.config, subject.spec(DRAFTS, plan.numerics)
    tokens, grid = query_tokens(spec), spec.layout
    count = tokens // grid.block_length
    index_M = jnp.minimum(jnp.arange(count, dtype=jnp.int32), grid.num_blocks - 1)
    chain_MJ = jnp.broadcast_to(index_M[:, None], (count, grid.num_blocks))
    cut = BlockStates(
        jnp.zeros((count, grid.block_length), jnp.int32), index_M, chain_MJ
    )
    shape = (c.num_layers, LONG + 64 * 4, c.kv_heads, c.head_dim)
    cache = KVCache(jnp.ones(shape), jnp.ones(shape))
    pieces = spec.model.evaluate_blocks
    assert pieces is not None
    forward = jax.jit(pieces, compiler_options=compiler_options())
    end = jnp.int32(LONG + 128)
    timers = [
        lambda at=at: common.seconds(
            lambda: forward(subject.params, cut, jnp.int32(at), end, cache), 3
        )
        for at in (SHORT, LONG)
    ]
    found = common.alternate(timers, plan.rounds)
    ratio = common.spread(found[:, 1] / found[:, 0])
    short, long = (_work(subject, at + grid.window_length) for at in (SHORT, LONG))
    kind, bound = ("operations" if on_cpu() else "bytes"), long / short
    what = f"t(S={LONG}) / t(S={SHORT}), d={DRAFTS}; {kind} grow {bound:.2f}x"
    book.at_most("M9", subject.label, what, ratio, round(1.1 * bound, 2))


def _work(subject: Subject, keys: int) -> int:
    """What a token costs with so many keys: multiply-adds, or bytes off a CPU."""
    c = subject.config
    layers, _ = matrices(c)
    if on_cpu():
        return layers + 2 * c.num_layers * c.heads * c.head_dim * keys
    return (
        subject.weight * layers + 4 * 2 * c.num_layers * c.kv_heads * c.head_dim * keys
    )


def batch(subject: Subject, plan: Plan, book: Book) -> None:
    """M10: tokens a second of eight rows over those of one, plain and drafted."""
    for d, numerics in ((1, "guarded"), (DRAFTS, "guarded"), (1, "exact")):
        one, many = (subject.bench(d, rows, numerics) for rows in (1, ROWS))
        tokens = [
            sum(r.valid_tokens for r in b.result().completions) for b in (one, many)
        ]
        found = common.alternate([one.generate, many.generate], plan.rounds)
        rate = np.asarray(tokens) / found
        what = f"d={d}, {numerics}: tokens/s of batch {ROWS} over batch 1"
        ratio = common.spread(rate[:, 1] / rate[:, 0])
        if d == 1:
            book.at_least("M10", subject.label, what, ratio, 3.0)
        else:
            book.note("M10", subject.label, what, ratio, "-")


def ended_rows(subject: Subject, plan: Plan, book: Book) -> None:
    """M10: steps of eight rows of which seven have ended, over steps of eight live.

    And over steps of a batch of one: what a row costs where none has ended beside it.
    """
    for numerics in ("guarded", "exact"):
        _ended_rows(subject, numerics, plan, book)


def _ended_rows(subject: Subject, numerics: str, plan: Plan, book: Book) -> None:
    alone, many = (_begun(subject, rows, numerics) for rows in (1, ROWS))
    live = dataclasses.replace(many.state.rows, done=jnp.arange(ROWS) > 0)
    some = many._replace(state=many.state._replace(rows=live))
    record = idle_account(many.loop)
    record.idle_seconds = float("inf")  # the loop of one row is worth to be made
    timers = [lambda b=b: _seconds(b, subject.params) for b in (many, some, alone)]
    found = common.alternate(timers, plan.rounds)
    record.idle_seconds = 0.0
    what = f"{numerics}: steps with 1 live row of {ROWS}, over {ROWS} live"
    share = common.spread(found[:, 1] / found[:, 0])
    book.at_most("M10", subject.label, what, share, round(1.1 / ROWS + 0.05, 3))
    what = f"{numerics}: steps with 1 live row of {ROWS}, over a batch of 1"
    share = common.spread(found[:, 1] / found[:, 2])
    book.at_most("M10", subject.label, what, share, 1.1)


class _Begun(NamedTuple):
    """A loop, and a state for it."""

    loop: CompiledLoop
    state: DecodeState


def _begun(subject: Subject, rows: int, numerics: str) -> _Begun:
    bench = subject.bench(1, rows, numerics)
    made = prepare(bench.decoder, bench.params, bench.prompts, 0, None, None)
    runtime = made.loop.runtime._replace(max_calls=host_array(np.int32(STEPS)))
    state = made.prefill(bench.params, runtime, made.prompts)
    return _Begun(made.loop._replace(runtime=runtime), state)


def _seconds(begun: _Begun, params) -> float:
    """Of some steps; the loop uses its state up."""
    own = jax.block_until_ready(jax.tree.map(jnp.copy, begun.state))
    return common.seconds(lambda: run_to_end(begun.loop, params, own)[0].n)

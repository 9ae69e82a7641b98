"""M9, M10: how a call grows with the sequence, and a decode with the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from bench import common
from bench.machine import matrices, query_tokens
from bench.measure import Book, Plan
from bench.subjects import Subject
from jaxdave.backend import compiler_options, on_cpu
from jaxdave.types import KVCache, Pieces

DRAFTS, ROWS, STEPS = 8, 8, 12
SHORT, LONG = 512, 8192


def sequence(subject: Subject, plan: Plan, book: Book) -> None:
    """M9: one call's forward at two lengths, over what its operations grow by."""
    c, program = subject.config, subject.program(DRAFTS, plan.numerics)
    tokens, grid = query_tokens(program), program.grid
    count = tokens // grid.length
    index_M = jnp.minimum(jnp.arange(count, dtype=jnp.int32), grid.blocks - 1)
    chain_MJ = jnp.broadcast_to(index_M[:, None], (count, grid.blocks))
    cut = Pieces(jnp.zeros((count, grid.length), jnp.int32), index_M, chain_MJ)
    shape = (c.num_layers, LONG + 64 * 4, c.kv_heads, c.head_dim)
    cache = KVCache(jnp.ones(shape), jnp.ones(shape))
    pieces = program.network.pieces
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
        tokens = [sum(r.valid_tokens for r in b.result().rows) for b in (one, many)]
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

    Several steps at once, since the state is not donated and so copied once a call.
    """
    for numerics in ("guarded", "exact"):
        _ended_rows(subject, numerics, plan, book)


def _ended_rows(subject: Subject, numerics: str, plan: Plan, book: Book) -> None:
    bench = subject.bench(1, ROWS, numerics)
    decoder = bench.decoder
    terms = decoder.program.terms(1, STEPS)
    state = bench.begun()
    done_B = jnp.arange(ROWS) > 0
    rows = dataclasses.replace(state.rows, done=done_B)
    steps = jax.jit(lambda p, s: decoder.program.run(p, terms, s))
    timers = [
        lambda s=s: common.seconds(lambda: steps(subject.params, s), 3)
        for s in (state, state._replace(rows=rows))
    ]
    found = common.alternate(timers, plan.rounds)
    what = f"{numerics}: steps with 1 live row of {ROWS}, over {ROWS} live"
    share = common.spread(found[:, 1] / found[:, 0])
    book.at_most("M10", subject.label, what, share, round(1.1 / ROWS + 0.05, 3))

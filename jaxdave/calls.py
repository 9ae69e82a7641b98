"""The network calls of one row, and what each one moves.

A call evaluates states and so makes the policy's next state known. There are three
kinds: `opened` and `refresh` evaluate the state that a row stands at from its tokens
alone, and make the cache that later calls read (the prefill, and what a full-attention
model needs at a new block); `judge` evaluates drafts of the window against that cache;
`recheck` evaluates one state again where a call under guarded numerics was too close to
call.

What decides (the targets) is read from the active block only, always in the same
shapes; what merely guesses (the stale prediction of the whole window) is read apart
from it, so that no draft can touch a decision.
"""

import dataclasses
from typing import TYPE_CHECKING

import chex
import jax
import jax.numpy as jnp

from jaxdave.draft import Outlook
from jaxdave.evaluate import evaluate, window_only
from jaxdave.noise import request_key
from jaxdave.outcome import Info, Judged, counted, no_info, settle, walked_from
from jaxdave.predict import decide, difference, nothing
from jaxdave.state import Drafts, Guess, RowState, Stand, Stats
from jaxdave.steps import ahead, simulate
from jaxdave.types import Doubt, Prediction

if TYPE_CHECKING:
    from jaxdave.spec import Program
    from jaxdave.terms import Prompts, Terms


PRIMED = 8
"""A call from the tokens alone looks ahead as far as so many drafts reach."""


def _fresh_row(program: "Program", prompt: "Prompts", hidden_LE) -> RowState:
    """A row before its first call, which will make such vectors."""
    tokens_T, begin, end, told_T, seed, request = prompt
    grid, policy = program.grid, program.policy
    shape = grid.window_length, hidden_LE.shape[-1]
    zero, no, none = jnp.int32(0), jnp.bool_(False), jnp.float32(0)
    # With a guard call after every verify call there are two calls a position.
    calls = tokens_T.shape[0] * (2 if program.guarded else 1)
    stats = Stats(
        zero, zero, zero, jnp.zeros((len(program.sizes),), jnp.int32),
        Doubt.every(none), jnp.full(tokens_T.shape, -1, jnp.int32),
        jnp.zeros((calls,), jnp.int32),
    )  # fmt: skip
    return RowState(
        tokens_T, jnp.zeros(shape, hidden_LE.dtype), nothing(program), begin, end,
        told_T, grid.first(begin), jnp.bool_(True), zero,
        policy.init(grid.length, shape[-1]), no, request_key(seed, request), no, zero,
        jnp.zeros((2,), jnp.float32), stats,
    )  # fmt: skip


def opened(
    program: "Program", params, prompt: "Prompts", size: int, doubt: Doubt | None
):
    """A row's first call, the prefill: (the row after it, its cache [N, T, ...]).

    size: of the prompt, a power of two. doubt: the call may be made in any shape, and
    its numbers be off by so much; None: in the trusted shape.
    """
    call = program.network.prime if doubt is None else program.network.opening
    assert call is not None, "no call may open a row but the trusted one"
    tokens_T, begin, end, *_ = prompt
    start = program.grid.first(begin)
    hidden_LE, cache = _primed(
        program, call, params, (tokens_T, begin, start, end), size
    )
    row = _fresh_row(program, prompt, hidden_LE)
    solid = start if doubt is None else jnp.int32(0)
    row = dataclasses.replace(row, solid=solid)
    return _from_tokens(program, params, row, hidden_LE, doubt)[0], cache


def refresh(program: "Program", params, row: RowState):
    """One call that makes a row's cache anew: (the row after it, its cache)."""
    canvas = row.tokens_T, row.begin, row.start, row.end
    size = row.tokens_T.shape[0]
    hidden_LE, cache = _primed(program, program.network.prime, params, canvas, size)
    stats = row.stats._replace(refresh=row.stats.refresh + 1)
    row = dataclasses.replace(row, solid=row.start, stats=stats)
    return _from_tokens(program, params, row, hidden_LE, None)[0], cache


def _primed(program: "Program", call, params, canvas, size: int):
    """A call from the tokens alone, which tells of the window's next few blocks."""
    near = program.grid.near(min(program.most, PRIMED))
    hidden_LE, cache = call(params, *canvas, near, size)
    chex.assert_shape(hidden_LE, (near, None))
    return hidden_LE, cache


def recheck(program: "Program", params, row: RowState, cache):
    """One call that decides what a row doubts: (the row after it, its cache)."""
    again, near = program.network.recheck, program.grid.near(1)
    assert again is not None, "guarded numerics need a network that can recheck"
    hidden_LE, cache = again(
        params, row.tokens_T, row.solid, row.start, row.end, near, cache
    )
    # What other programs compute beside this must not be fused into it.
    hidden_LE = jax.lax.optimization_barrier(hidden_LE)
    chex.assert_shape(hidden_LE, (near, None))
    stats = row.stats._replace(guard=row.stats.guard + 1)
    row = dataclasses.replace(
        row, solid=row.start, stats=stats, doubted=jnp.bool_(False)
    )
    moved, pred_SW, seen = _from_tokens(program, params, row, hidden_LE, None)
    found = _apart(program, row, pred_SW, seen.block_S[0])
    error = jax.tree.map(jnp.maximum, stats.error, found)
    stats = moved.stats._replace(error=error)
    return dataclasses.replace(moved, stats=stats), cache


def _from_tokens(program: "Program", params, row: RowState, hidden_LE, doubt):
    """A row after the state that it stands at was evaluated, and the prediction."""
    window_L = program.grid.window(row)
    depth_K = jnp.zeros((1,), jnp.int32)
    sure_K, worth_K = jnp.ones((1,), bool), jnp.ones((1,))
    only = Drafts(window_L[None, None], depth_K, sure_K, worth_K)
    seen = window_only(program, row, hidden_LE)
    # The row has not taken the step of this state yet, so it stands at n itself.
    pred_SW = decide(program, params, seen.hidden_SWE, seen.block_S, depth_K, row)
    pred_SW = jax.lax.optimization_barrier(pred_SW)
    walked = walked_from(program, params, seen, pred_SW, only, row, doubt)
    judged = Judged(row, window_L, seen.keep(jnp.int32(0)), walked, no_info())
    return settle(program, params, judged), pred_SW, seen


def _apart(program: "Program", row: RowState, pred_SW, block) -> Doubt:
    """How far the row's last prediction was from one in the trusted shape."""
    grid = program.grid
    then = Prediction(*(grid.cut(part[0], block) for part in row.pred))
    now = Prediction(*(part[0] for part in pred_SW))
    open_W = grid.cut(grid.active(grid.window(row), row)[1], block)
    return difference(now, then, open_W)


def judge(program: "Program", params, terms: "Terms", row: RowState, cache) -> Judged:
    """One call on drafts, and how far they hold; `settle` makes the row move."""
    grid, budget = program.grid, program.draft_steps
    drafts = drafted(program, params, row)
    # From a draft that leaves nothing open the policy can only stand still, which is
    # no step: its walk must end before it.
    is_open = lambda tokens_L: jnp.any(grid.active(tokens_L, row)[1])  # noqa: E731
    open_KN = jax.vmap(jax.vmap(is_open))(drafts.tokens_KNL)
    allowed_K = drafts.valid_K & jnp.any(open_KN, axis=1)
    allowed_K &= jnp.arange(budget) < terms.cap
    drafts = drafts._replace(valid_K=allowed_K)
    seen = evaluate(program, params, row, drafts, cache)
    branches = drafts.tokens_KNL.shape[1]
    fits_K = jnp.all(seen.fits_S.reshape(-1, branches), axis=1)
    drafts = drafts._replace(valid_K=drafts.valid_K & fits_K)
    depth_S = jnp.repeat(drafts.depth_K, branches)
    pred_SW = decide(program, params, seen.hidden_SWE, seen.block_S, depth_S, row)
    doubt = terms.doubt if program.guarded else None
    walked = walked_from(program, params, seen, pred_SW, drafts, row, doubt)
    return Judged(
        counted(program, row, drafts, walked),
        drafts.tokens_KNL[walked.at, walked.branch],
        seen.keep(walked.at * branches + walked.branch),
        walked,
        Info(jnp.sum(drafts.valid_K, dtype=jnp.int32), walked.steps),
    )


def drafted(program: "Program", params, row: RowState) -> Drafts:
    """The drafts of a row, made of what its last call has left."""
    grid, budget = program.grid, program.draft_steps
    first = Stand(grid.window(row), row.memory, row.n)
    known = Guess(first, ahead(program, row, first), jnp.bool_(True))
    drafts = program.draft(outlook(program, params, row), known, budget)
    chex.assert_shape(drafts.tokens_KNL, (budget, *known.tokens_NL.shape))
    return drafts


def outlook(program: "Program", params, row: RowState) -> Outlook:
    """What drafts of a row may be made of."""
    grid = program.grid
    further = lambda stand, depth: simulate(program, params, row, stand, depth)  # noqa: E731
    is_end = lambda tokens_L: grid.ended(tokens_L, row)  # noqa: E731
    open_L = grid.open(grid.window(row), row)

    def believing(token_L):
        told_DL = jnp.where((token_L >= 0)[None], token_L[None], row.pred.token)
        pred = row.pred._replace(token=told_DL)
        return outlook(program, params, dataclasses.replace(row, pred=pred))

    return Outlook(
        further, row.pred, open_L, grid.block_of(), is_end, row, grid.mask_id, believing
    )

"""The decode loop: draft, evaluate all drafts in one network call, keep what holds.

    drafts  = draft(policy, state)          # drafts[0]: the policy's own next state
    hidden  = forward(params, drafts)       # the one network call, the prefix shared
    targets = policy(read(hidden), drafts)  # what the policy does next from each draft
    state'  = the target of the last draft that the walk reaches

Plain decoding is the same loop with one draft. There is no other loop: static,
threshold and FreeDave differ in the functions that they pass in, and `generate`,
`stream` and the benchmarks in who calls `step`.

What decides (the targets) is read from the active block only, always in the same
shapes; what merely guesses (the stale prediction of the whole window) is read apart
from it, so that no draft can touch a decision. A block that an accepted draft has
completed is committed with the keys and values of that very call; its neighbour's first
prediction comes from there too. So a request costs one prefill and its verify calls,
nothing else, and the last token needs no call at all: it is known before it is
evaluated.
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdave.cache import put_row, put_windows
from jaxdave.draft import DraftFn
from jaxdave.grid import Grid
from jaxdave.predict import decide, guess, nothing
from jaxdave.sampling import Sampling, request_key
from jaxdave.types import Drafts, KVCache, Network, Policy, RowState, Stats
from jaxdave.verify import successors, walk


class DecodeState(NamedTuple):
    """All rows [B, ...] and their cache [N, B, T, G, D]."""

    rows: RowState
    cache: KVCache


class Info(NamedTuple):
    """What one step did, per row: drafts worth evaluating, policy steps confirmed."""

    proposed_B: jax.Array
    accepted_B: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The functions and fixed sizes that a decode is compiled from.

    draft_steps: drafts a call carries. exact: rows are computed one after another by
    one body of fixed shape, so a row's bits do not depend on its neighbours; otherwise
    side by side. prefill_chunk: the most prompt tokens per pass of the prefill.
    """

    network: Network
    grid: Grid
    policy: Policy
    draft: DraftFn
    sampling: Sampling
    draft_steps: int
    exact: bool
    prefill_chunk: int

    def init(self, params: Any, prompts: "Prompts", prefill_length: int) -> DecodeState:
        """Prefill the prompts and take the first policy step: one network call.

        prefill_length: a power of two that covers every row's prompt and first window.
        """
        rows, capacity = prompts.tokens_BT.shape
        empty = self.network.empty_cache(1, capacity)

        def one(prompt):
            return _prefill(self, params, prompt, empty, prefill_length)

        states, cache = (
            jax.lax.map(one, prompts) if self.exact else jax.vmap(one)(prompts)
        )
        chex.assert_shape(states.tokens_T, (rows, capacity))
        return DecodeState(states, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), cache))

    def step(
        self, params: Any, cap: jax.Array, state: DecodeState
    ) -> tuple[DecodeState, Info]:
        """One verify call of every row that has not ended.

        cap: int32, how many drafts may be used: 1 is the plain policy, in this very
        program; more never changes the text.
        """
        moved, window, info = self.over_rows(
            lambda row, cache: jax.lax.cond(
                row.done,
                lambda: _stand(self, row, cache),
                lambda: _advance(self, params, cap, row, cache),
            )
        )(state.rows, state.cache)
        cache = put_windows(state.cache, window, state.rows.start)
        return DecodeState(moved, cache), info

    def over_rows(self, function):
        """A function of (one row, its cache) as a function of all rows."""
        if not self.exact:
            return jax.vmap(function, in_axes=(0, 1))

        def mapped(rows, cache):
            def one(index):
                row = jax.tree.map(lambda a: a[index], rows)
                return function(row, jax.tree.map(lambda a: a[:, index], cache))

            return jax.lax.map(one, jnp.arange(rows.done.shape[0]))

        return mapped

    def run(self, params: Any, cap: jax.Array, state: DecodeState, bound: int):
        """Step until every row has ended, at most `bound` times."""

        def running(held):
            calls, state = held
            return (calls < bound) & ~jnp.all(state.rows.done)

        def body(held):
            calls, state = held
            return calls + 1, self.step(params, cap, state)[0]

        return jax.lax.while_loop(running, body, (jnp.int32(0), state))[1]


class Prompts(NamedTuple):
    """What a decode starts from: canvases, where rows begin and end, noise ids."""

    tokens_BT: jax.Array
    begin_B: jax.Array
    end_B: jax.Array
    seed_B: jax.Array
    request_B: jax.Array


def _prefill(program: Program, params, prompt: Prompts, empty: KVCache, length: int):
    """The state of one row after its prompt, and its cache [N, T, G, D]."""
    tokens_T, begin, end, seed, request = prompt
    grid, size = program.grid, min(program.prefill_chunk, length)
    key = request_key(seed, request)
    start = begin // grid.length * grid.length
    chunks = (start + grid.window_length + size - 1) // size

    def chunk(index, held):
        cache, hidden_TE = held
        at = index * size
        tokens = jax.lax.dynamic_slice(tokens_T, (at,), (size,))
        hidden, new = program.network.forward(params, tokens[None], at, cache)
        hidden_TE = jax.lax.dynamic_update_slice(hidden_TE, hidden[0], (at, 0))
        return put_row(cache, jax.tree.map(lambda a: a[:, 0], new), at), hidden_TE

    cache = jax.tree.map(lambda a: a[:, 0], empty)
    hidden, window = jax.eval_shape(
        program.network.forward, params, tokens_T[None, :size], jnp.int32(0), cache
    )
    # Keys and values are kept in the dtype that the network makes them in.
    cache = jax.tree.map(lambda a, new: a.astype(new.dtype), cache, window)
    hidden_TE = jnp.zeros((length, hidden.shape[-1]), hidden.dtype)
    cache, hidden_TE = jax.lax.fori_loop(0, chunks, chunk, (cache, hidden_TE))
    hidden_LE = jax.lax.dynamic_slice_in_dim(hidden_TE, start, grid.window_length)
    row = RowState(
        tokens_T, nothing(program), begin, end, start, jnp.int32(0), jnp.bool_(False),
        key, _fresh_stats(tokens_T),
    )  # fmt: skip
    window_L = grid.window(row)
    first = Drafts(window_L[None], jnp.zeros((1,), jnp.int32), jnp.ones((1,), bool))
    target_L = decide(program, params, hidden_LE[None], first, row)[0]
    return _settle(program, params, row, window_L, target_L, hidden_LE, 1, 0), cache


def _advance(program: Program, params, cap, row: RowState, cache: KVCache):
    """One verify call of one row: (state, K/V of the window [N, L, G, D], info)."""
    grid, budget = program.grid, program.draft_steps
    drafts = program.draft(grid, program.policy, row, budget)
    chex.assert_shape(drafts.tokens_KL, (budget, grid.window_length))
    # From a draft that leaves nothing open the policy can only stand still, which is
    # no step: its walk must end before it.
    open_K = jax.vmap(lambda t: jnp.any(grid.active(t, row)[1]))(drafts.tokens_KL)
    allowed_K = drafts.valid_K & open_K & (jnp.arange(budget) < cap)
    drafts = drafts._replace(valid_K=allowed_K)
    hidden_KLE, window = program.network.forward(
        params, drafts.tokens_KL, row.start, cache
    )
    chex.assert_shape(hidden_KLE, (budget, grid.window_length, None))
    targets_KL = decide(program, params, hidden_KLE, drafts, row)
    at, hops = walk(successors(drafts, targets_KL, program.sampling.noisy))
    accepted = hops + 1
    call = row.stats.verify + 1
    stats = row.stats._replace(
        verify=call, accepted_C=row.stats.accepted_C.at[call - 1].set(accepted)
    )
    row = _settle(
        program,
        params,
        dataclasses.replace(row, stats=stats),
        drafts.tokens_KL[at],
        targets_KL[at],
        hidden_KLE[at],
        accepted,
        call,
    )
    info = Info(jnp.sum(allowed_K, dtype=jnp.int32), accepted)
    return row, jax.tree.map(lambda a: a[:, at], window), info


def _settle(program, params, row, evaluated_L, target_L, hidden_LE, steps, call):
    """The row after `evaluated_L` was confirmed and `target_L` became known."""
    grid = program.grid
    known_L = (grid.window(row) == grid.mask_id) & (target_L != grid.mask_id)
    call_L = jax.lax.dynamic_slice(
        row.stats.call_T, (row.start,), (grid.window_length,)
    )
    call_L = jnp.where(known_L, call, call_L)
    put = lambda a, part: jax.lax.dynamic_update_slice(a, part, (row.start,))  # noqa: E731
    moved = dataclasses.replace(
        row,
        tokens_T=put(row.tokens_T, target_L),
        n=row.n + steps,
        done=grid.ended(target_L, row),
        stats=row.stats._replace(call_T=put(row.stats.call_T, call_L)),
    )
    shift = grid.complete_blocks(evaluated_L) * grid.length
    pred = guess(program, params, hidden_LE, moved)
    beyond = nothing(program)
    slide = lambda a, b: jax.lax.dynamic_slice_in_dim(  # noqa: E731
        jnp.concatenate([a, b], axis=1), shift, grid.window_length, axis=1
    )
    return dataclasses.replace(
        moved, start=row.start + shift, pred=jax.tree.map(slide, pred, beyond)
    )


def _stand(program: Program, row: RowState, cache: KVCache):
    """The outcome of a step for a row that has ended."""
    length = program.grid.window_length
    window = jax.tree.map(lambda a: jnp.zeros_like(a[:, :length]), cache)
    return row, window, Info(jnp.int32(0), jnp.int32(0))


def _fresh_stats(tokens_T) -> Stats:
    never_T = jnp.full(tokens_T.shape, -1, jnp.int32)
    return Stats(jnp.int32(0), never_T, jnp.zeros(tokens_T.shape, jnp.int32))

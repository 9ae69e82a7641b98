"""The decode loop: draft, evaluate all drafts in one network call, keep what holds.

    drafts  = draft(policy, state)          # drafts[0]: the policy's own next state
    hidden  = forward(params, drafts)       # the one network call, the prefix shared
    targets = policy(read(hidden), drafts)  # what the policy does next from each draft
    state'  = the target of the last draft that the walk reaches

Plain decoding is the same loop with one draft. There is no other loop: static,
threshold and FreeDave differ in the functions that they pass in, and `generate`,
`stream` and the benchmarks in who calls `step`.

A block of a block-causal model that an accepted draft has completed is committed with
the keys and values of that very call; its neighbour's first prediction comes from there
too. So a request costs one prefill and its verify calls, nothing else, and the last
token needs no call at all: it is known before it is evaluated. A full-attention model
under a cache rule spends one more kind of call: the refresh at the start of a block,
which is also the evaluation of the state that it starts from.
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxdave import calls
from jaxdave.cache import put_rows, put_windows
from jaxdave.draft import DraftFn
from jaxdave.grid import Grid
from jaxdave.sampling import Sampling, request_key
from jaxdave.types import Network, Policy, RowState


class DecodeState(NamedTuple):
    """All rows [B, ...] and their cache [N, B, T, ...]."""

    rows: RowState
    cache: Any


class Info(NamedTuple):
    """What one step did, per row: drafts worth evaluating, policy steps confirmed."""

    proposed_B: jax.Array
    accepted_B: jax.Array


class Prompts(NamedTuple):
    """What a decode starts from: canvases, where rows begin and end, the users' draft
    texts (-1 where there is none), noise ids."""

    tokens_BT: jax.Array
    begin_B: jax.Array
    end_B: jax.Array
    told_BT: jax.Array
    seed_B: jax.Array
    request_B: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The functions and fixed sizes that a decode is compiled from.

    draft_steps: drafts a call carries. exact: rows are computed one after another by
    one body of fixed shape, so a row's bits do not depend on its neighbours; otherwise
    side by side.
    """

    network: Network
    grid: Grid
    policy: Policy
    draft: DraftFn
    sampling: Sampling
    draft_steps: int
    exact: bool

    @property
    def slots(self) -> int:
        """States that a call evaluates."""
        branching = self.policy.branching
        return self.draft_steps * (1 if branching is None else branching.count)

    def init(self, params: Any, prompts: Prompts, prefill_length: int) -> DecodeState:
        """Prefill the prompts and take the first policy step: one network call.

        prefill_length: a power of two that covers every row's prompt and first window.
        """
        rows, capacity = prompts.tokens_BT.shape
        hidden = jax.eval_shape(
            lambda tokens_T: self.network.prime(
                params, tokens_T, jnp.int32(0), jnp.int32(0), jnp.int32(1),
                self.grid.window_length, prefill_length,
            )[0],
            jax.ShapeDtypeStruct((capacity,), jnp.int32),
        )  # fmt: skip

        def one(prompt: Prompts):
            tokens_T, begin, end, told_T, seed, request = prompt
            key = request_key(seed, request)
            row = calls.fresh_row(self, tokens_T, begin, end, told_T, key, hidden)
            return calls.prime(self, params, row, prefill_length)

        states, cache = (
            jax.lax.map(one, prompts) if self.exact else jax.vmap(one)(prompts)
        )
        chex.assert_shape(states.tokens_T, (rows, capacity))
        return DecodeState(states, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), cache))

    def step(
        self, params: Any, cap: jax.Array, state: DecodeState
    ) -> tuple[DecodeState, Info]:
        """One call of every row that has not ended: a verify call, or its refresh.

        cap: int32, how many drafts may be used: 1 is the plain policy, in this very
        program; more never changes the text.
        """
        resting_B = state.rows.done | state.rows.stale
        state = self._refreshed(params, state)

        def call(held, cache):
            row, rests = held
            act = lambda: calls.verify(self, params, cap, row, cache)  # noqa: E731
            return jax.lax.cond(rests, lambda: _rest(row, act), act)

        moved, added, info = self.over_rows(call)((state.rows, resting_B), state.cache)
        cache = put_windows(state.cache, added, state.rows.start)
        return DecodeState(moved, cache), Info(*info)

    def _refreshed(self, params: Any, state: DecodeState) -> DecodeState:
        """The state after the refresh calls of those rows that need one."""
        stale_B = state.rows.stale & ~state.rows.done

        def one(row: RowState):
            stats = row.stats._replace(refresh=row.stats.refresh + 1)
            row = dataclasses.replace(row, stats=stats)
            return calls.prime(self, params, row, row.tokens_T.shape[0])

        def some(held: DecodeState) -> DecodeState:
            made = put_rows(one, held.rows, held.cache, stale_B, self.exact)
            return DecodeState(*made)

        return jax.lax.cond(jnp.any(stale_B), some, lambda held: held, state)

    def over_rows(self, function):
        """A function of (one row, its cache) as a function of all rows."""
        if not self.exact:
            return jax.vmap(function, in_axes=(0, 1))

        def mapped(rows, cache):
            def one(index):
                row = jax.tree.map(lambda a: a[index], rows)
                return function(row, jax.tree.map(lambda a: a[:, index], cache))

            count = jax.tree.leaves(rows)[0].shape[0]
            return jax.lax.map(one, jnp.arange(count))

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


def _rest(row: RowState, act):
    """The outcome of a step for a row that makes no verify call in it."""
    _, added, info = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(act)
    )
    return row, added, info

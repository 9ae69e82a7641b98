"""One step of the policy on a window, for decisions and for guesses alike."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftState
from jaxdave.core.policy_api import Candidates, PolicyView
from jaxdave.core.prediction import ErrorBound, Prediction
from jaxdave.core.state import PolicyState, RowState
from jaxdave.sampling.predictions import model_queries

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec


POLICY_NOISE = 0x7FFFFFFF
"""Folded into a step's key for the policy's own noise; no position is as large."""

ReadFn = Callable[[jax.Array], tuple[Prediction, jax.Array]]
"""Branch -> what is said of its active block [W], and the vectors it was read from."""


def choose_and_step(
    program: "DecodeSpec",
    params,
    row: RowState,
    stand: PolicyState,
    tokens_NL,
    read: ReadFn,
) -> tuple[jax.Array, PolicyState]:
    """Where a policy goes from a stand, and its step from there.

    tokens_NL: the states that the stand leads to (`ahead`), evaluated: `read` tells
    them apart. Returns the branch taken, and where the policy stands next.
    """
    branch = _choose_candidate(program, params, row, stand, tokens_NL, read)
    here = stand._replace(tokens_L=tokens_NL[branch])
    return branch, take_step(program, params, row, here, *read(branch))


def states_to_evaluate(
    program: "DecodeSpec", row: RowState, stand: PolicyState
) -> jax.Array:
    """The states [N, L] of which one is the policy's next state."""
    grid = program.grid
    if program.policy.branching is None:
        return stand.tokens_L[None]
    block, open_L = grid.active(stand.tokens_L, row)
    tokens_W, open_W = (grid.cut(a, block) for a in (stand.tokens_L, open_L))
    parts_NW = jnp.where(open_W[None], stand.memory.tokens_NW, tokens_W[None])
    return jax.vmap(lambda part_W: grid.paste(stand.tokens_L, part_W, block))(parts_NW)


def take_step(
    program: "DecodeSpec",
    params,
    row: RowState,
    stand: PolicyState,
    pred: Prediction,
    hidden_WE,
) -> PolicyState:
    """Where the policy stands after a step from an evaluated state.

    pred: [W], of its active block; hidden_WE: the vectors that it was read from.
    """
    grid, policy = program.grid, program.policy
    view, block = _policy_view(program, params, row, stand, pred, hidden_WE)
    moved_W, memory = policy.step(view, stand.memory)
    if policy.branching is not None:
        return _await_scores(program, row, stand, view, block, memory)
    # A policy may move nothing else, whatever it returns.
    may_W = view.open_W | view.decoded_W if policy.revises else view.open_W
    moved_W = jnp.where(may_W, moved_W, view.tokens_W)
    return PolicyState(grid.paste(stand.tokens_L, moved_W, block), memory, stand.n + 1)


def is_certain(
    program: "DecodeSpec",
    params,
    row: RowState,
    stand: PolicyState,
    pred,
    hidden_WE,
    doubt: ErrorBound,
) -> jax.Array:
    """Whether the step from an evaluated state holds for all numbers this near.

    Then no open position has another token, and the rule no other choice.
    """
    rule = program.policy.sure
    assert rule is not None, "guarded numerics need a policy that can tell"
    view, _ = _policy_view(program, params, row, stand, pred, hidden_WE)
    same_W = ~view.open_W | (pred.lead > doubt.lead)
    return jnp.all(same_W) & rule(view, stand.memory, doubt)


def simulate_step(
    program: "DecodeSpec", params, row: RowState, stand: PolicyState, depth
) -> DraftState:
    """The policy's next stand as far as the last evaluated state can tell.

    depth: steps after the first draft, for the noise of that step. It is worth
    evaluating where something was open, a prediction was at hand, and the row does not
    end there.
    """
    grid = program.grid
    depth = jnp.minimum(depth, row.pred.token.shape[0] - 1)
    tokens_NL = states_to_evaluate(program, row, stand)

    def read(branch):
        block, _ = grid.active(tokens_NL[branch], row)
        pred = Prediction(*(grid.cut(part[depth], block) for part in row.pred))
        return pred, grid.cut(row.hidden_LE, block)

    branch, moved = choose_and_step(program, params, row, stand, tokens_NL, read)
    open_L = grid.active(tokens_NL[branch], row)[1]
    usable = jnp.any(open_L) & jnp.all(read(branch)[0].token >= 0)
    valid = usable & ~grid.ended(moved.tokens_L, row)
    return DraftState(moved, states_to_evaluate(program, row, moved), valid)


def _choose_candidate(
    program: "DecodeSpec", params, row, stand: PolicyState, tokens_NL, read: ReadFn
):
    """The branch that the policy goes to; there is no choice where there is one."""
    count, branching = tokens_NL.shape[0], program.policy.branching
    if count == 1 or branching is None:
        return jnp.int32(0)

    def worth(branch):
        here = stand._replace(tokens_L=tokens_NL[branch])
        return branching.worth(
            _policy_view(program, params, row, here, *read(branch))[0]
        )

    worth_N = jax.vmap(worth)(jnp.arange(count, dtype=jnp.int32))
    return jnp.argmax(stand.memory.merit_N + worth_N).astype(jnp.int32)


def _await_scores(
    program: "DecodeSpec",
    row,
    stand: PolicyState,
    view: PolicyView,
    block,
    memory: Candidates,
) -> PolicyState:
    """A stand whose candidates are yet to be weighed, unless they are one and last.

    A candidate without rival needs no call to be chosen. At the end of a row nothing
    more would be asked of that call, and where the cache is made anew that call tells.
    """
    grid = program.grid
    open_W = view.open_W
    parts_NW = jnp.where(open_W[None], memory.tokens_NW, view.tokens_W[None])
    only_L = grid.paste(stand.tokens_L, parts_NW[0], block)
    _, is_refreshed = grid.slide(grid, stand.tokens_L, only_L, row)
    is_last = grid.ended(only_L, row) | is_refreshed
    goes_on = jnp.any(open_W) & ~grid.ended(stand.tokens_L, row)
    is_known = goes_on & is_last & jnp.all(parts_NW == parts_NW[:1])
    tokens_L = jnp.where(is_known, only_L, stand.tokens_L)
    n = stand.n + goes_on.astype(jnp.int32)
    return PolicyState(tokens_L, memory._replace(tokens_NW=parts_NW), n)


def _policy_view(
    program: "DecodeSpec", params, row: RowState, stand: PolicyState, pred, hidden_WE
):
    """What the policy sees of an evaluated state, and which block that is."""
    grid = program.grid
    block, open_L = grid.active(stand.tokens_L, row)
    tokens_W, open_W = (grid.cut(a, block) for a in (stand.tokens_L, open_L))
    place_W = grid.cut(grid.places(row), block) - row.begin
    decoded_W = (place_W >= 0) & (tokens_W != grid.mask_id)
    key = jax.random.fold_in(jax.random.fold_in(row.key, stand.n), POLICY_NOISE)
    view = PolicyView(
        tokens_W, open_W, decoded_W, pred, place_W, row.end - row.begin,
        jnp.int32(grid.mask_id), stand.n, key,
        model_queries(program, params, hidden_WE),
    )  # fmt: skip
    return view, block

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
    spec: "DecodeSpec",
    params,
    row: RowState,
    policy_state: PolicyState,
    tokens_NL,
    read: ReadFn,
) -> tuple[jax.Array, PolicyState]:
    """Where a policy goes from a stand, and its step from there.

    tokens_NL: the states that the stand leads to (`ahead`), evaluated: `read` tells
    them apart. Returns the branch taken, and where the policy stands next.
    """
    branch = _choose_candidate(spec, params, row, policy_state, tokens_NL, read)
    here = policy_state._replace(tokens_L=tokens_NL[branch])
    return branch, take_step(spec, params, row, here, *read(branch))


def states_to_evaluate(
    spec: "DecodeSpec", row: RowState, policy_state: PolicyState
) -> jax.Array:
    """The states [N, L] of which one is the policy's next state."""
    layout = spec.layout
    if spec.policy.scoring is None:
        return policy_state.tokens_L[None]
    block, open_L = layout.active(policy_state.tokens_L, row)
    tokens_W, open_W = (layout.cut(a, block) for a in (policy_state.tokens_L, open_L))
    parts_NW = jnp.where(open_W[None], policy_state.memory.tokens_NW, tokens_W[None])
    return jax.vmap(lambda part_W: layout.paste(policy_state.tokens_L, part_W, block))(
        parts_NW
    )


def take_step(
    spec: "DecodeSpec",
    params,
    row: RowState,
    policy_state: PolicyState,
    pred: Prediction,
    hidden_WE,
) -> PolicyState:
    """Where the policy stands after a step from an evaluated state.

    pred: [W], of its active block; hidden_WE: the vectors that it was read from.
    """
    layout, policy = spec.layout, spec.policy
    view, block = _policy_view(spec, params, row, policy_state, pred, hidden_WE)
    moved_W, memory = policy.step(view, policy_state.memory)
    if policy.scoring is not None:
        return _await_scores(spec, row, policy_state, view, block, memory)
    # A policy may move nothing else, whatever it returns.
    may_W = view.open_W | view.decoded_W if policy.revises else view.open_W
    moved_W = jnp.where(may_W, moved_W, view.tokens_W)
    return PolicyState(
        layout.paste(policy_state.tokens_L, moved_W, block), memory, policy_state.n + 1
    )


def is_certain(
    spec: "DecodeSpec",
    params,
    row: RowState,
    policy_state: PolicyState,
    pred,
    hidden_WE,
    doubt: ErrorBound,
) -> jax.Array:
    """Whether the step from an evaluated state holds for all numbers this near.

    Then no open position has another token, and the rule no other choice.
    """
    rule = spec.policy.is_certain
    assert rule is not None, "guarded numerics need a policy that can tell"
    view, _ = _policy_view(spec, params, row, policy_state, pred, hidden_WE)
    same_W = ~view.open_W | (pred.lead > doubt.lead)
    return jnp.all(same_W) & rule(view, policy_state.memory, doubt)


def simulate_step(
    spec: "DecodeSpec", params, row: RowState, policy_state: PolicyState, depth
) -> DraftState:
    """The policy's next stand as far as the last evaluated state can tell.

    depth: steps after the first draft, for the noise of that step. It is worth
    evaluating where something was open, a prediction was at hand, and the row does not
    end there.
    """
    layout = spec.layout
    depth = jnp.minimum(depth, row.pred.token.shape[0] - 1)
    tokens_NL = states_to_evaluate(spec, row, policy_state)

    def read(branch):
        block, _ = layout.active(tokens_NL[branch], row)
        pred = Prediction(*(layout.cut(part[depth], block) for part in row.pred))
        return pred, layout.cut(row.hidden_LE, block)

    branch, moved = choose_and_step(spec, params, row, policy_state, tokens_NL, read)
    open_L = layout.active(tokens_NL[branch], row)[1]
    usable = jnp.any(open_L) & jnp.all(read(branch)[0].token >= 0)
    valid = usable & ~layout.ended(moved.tokens_L, row)
    return DraftState(moved, states_to_evaluate(spec, row, moved), valid)


def _choose_candidate(
    spec: "DecodeSpec", params, row, policy_state: PolicyState, tokens_NL, read: ReadFn
):
    """The branch that the policy goes to; there is no choice where there is one."""
    count, branching = tokens_NL.shape[0], spec.policy.scoring
    if count == 1 or branching is None:
        return jnp.int32(0)

    def worth(branch):
        here = policy_state._replace(tokens_L=tokens_NL[branch])
        view, _ = _policy_view(spec, params, row, here, *read(branch))
        return branching.score_fn(view)

    worth_N = jax.vmap(worth)(jnp.arange(count, dtype=jnp.int32))
    return jnp.argmax(policy_state.memory.prior_N + worth_N).astype(jnp.int32)


def _await_scores(
    spec: "DecodeSpec",
    row,
    policy_state: PolicyState,
    view: PolicyView,
    block,
    memory: Candidates,
) -> PolicyState:
    """A stand whose candidates are yet to be weighed, unless they are one and last.

    A candidate without rival needs no call to be chosen. At the end of a row nothing
    more would be asked of that call, and where the cache is made anew that call tells.
    """
    layout = spec.layout
    open_W = view.open_W
    parts_NW = jnp.where(open_W[None], memory.tokens_NW, view.tokens_W[None])
    only_L = layout.paste(policy_state.tokens_L, parts_NW[0], block)
    _, is_refreshed = layout.slide(layout, policy_state.tokens_L, only_L, row)
    is_last = layout.ended(only_L, row) | is_refreshed
    goes_on = jnp.any(open_W) & ~layout.ended(policy_state.tokens_L, row)
    is_known = goes_on & is_last & jnp.all(parts_NW == parts_NW[:1])
    tokens_L = jnp.where(is_known, only_L, policy_state.tokens_L)
    n = policy_state.n + goes_on.astype(jnp.int32)
    return PolicyState(tokens_L, memory._replace(tokens_NW=parts_NW), n)


def _policy_view(
    spec: "DecodeSpec",
    params,
    row: RowState,
    policy_state: PolicyState,
    pred,
    hidden_WE,
):
    """What the policy sees of an evaluated state, and which block that is."""
    layout = spec.layout
    block, open_L = layout.active(policy_state.tokens_L, row)
    tokens_W, open_W = (layout.cut(a, block) for a in (policy_state.tokens_L, open_L))
    place_W = layout.cut(layout.places(row), block) - row.begin
    decoded_W = (place_W >= 0) & (tokens_W != layout.mask_id)
    key = jax.random.fold_in(jax.random.fold_in(row.key, policy_state.n), POLICY_NOISE)
    view = PolicyView(
        tokens_W, open_W, decoded_W, pred, place_W, row.end - row.begin,
        jnp.int32(layout.mask_id), policy_state.n, key,
        model_queries(spec, params, hidden_WE),
    )  # fmt: skip
    return view, block

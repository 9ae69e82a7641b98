"""One step of the policy on a window, for decisions and for drafts alike."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import Candidates, ModelQueries, PolicyView
from jaxdave.core.prediction import ErrorBound, Prediction
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import EditProgress, PolicyState, RowState
from jaxdave.sampling.predictions import model_queries

POLICY_NOISE = 0x7FFFFFFF
"""Folded into a step's key for the policy's own noise; no position is as large."""

ReadFn = Callable[[jax.Array], tuple[Prediction, jax.Array]]
"""candidate -> (prediction of its active block [W], the hidden vectors [W, E] that it
was read from)."""


def row_policy_state(spec: DecodeSpec, row: RowState) -> PolicyState:
    """The policy's state at which a row stands.

    Args:
        spec: Its layout says where the window is.
        row: One row.

    Returns:
        The state; it is evaluated by the next call.
    """
    tokens_L = spec.layout.window_tokens(row)
    return PolicyState(tokens_L, row.memory, row.n, row.progress)


def has_pending(
    spec: DecodeSpec, row: RowState, tokens_L: jax.Array, progress: EditProgress | None
) -> jax.Array:
    """True if the policy has a step to take from a state before the window moves.

    Args:
        spec: Its layout is read.
        row: One row.
        tokens_L: A state of its window, int32 [L].
        progress: That of the state.

    Returns:
        A bool scalar; where it is False the policy would stand still.
    """
    if progress is None:
        return jnp.any(spec.layout.active_block(tokens_L, row, None)[1])
    return jnp.any(spec.layout.pending_positions(tokens_L, row, progress))


def choose_and_step(
    spec: DecodeSpec,
    params: Any,
    row: RowState,
    state: PolicyState,
    tokens_NL: jax.Array,
    read: ReadFn,
) -> tuple[jax.Array, PolicyState]:
    """Choose among the evaluated candidates of a state, and step from the chosen one.

    Args:
        spec: Its policy chooses and steps.
        params: Parameters, for policies that query the model.
        row: One row.
        state: The policy state that the candidates belong to.
        tokens_NL: The candidates (see `states_to_evaluate`), int32 [N, L].
        read: Gives the prediction of each.

    Returns:
        (index of the chosen candidate, the policy's state after its step).
    """
    candidate = _choose_candidate(spec, params, row, state, tokens_NL, read)
    chosen = state._replace(tokens_L=tokens_NL[candidate])
    return candidate, take_step(spec, params, row, chosen, *read(candidate))


def states_to_evaluate(
    spec: DecodeSpec, row: RowState, state: PolicyState
) -> jax.Array:
    """The states that must be evaluated to go on from a policy state.

    For most policies that is the one state itself; a policy that scores candidates has
    several, of which one becomes its next state.

    Args:
        spec: Its policy may score candidates.
        row: One row.
        state: The policy's state.

    Returns:
        States of the window, int32 [N, L].
    """
    layout = spec.layout
    if spec.policy.scoring is None:
        return state.tokens_L[None]
    # A candidate may differ from the state at open positions only, whatever the policy
    # has returned (as in `take_step`).
    block, open_L = layout.active_block(state.tokens_L, row, state.progress)
    tokens_W, open_W = layout.block_slice((state.tokens_L, open_L), block)
    blocks_NW = jnp.where(open_W[None], state.memory.tokens_NW, tokens_W[None])
    return jax.vmap(lambda block_W: layout.with_block(state.tokens_L, block_W, block))(
        blocks_NW
    )


def take_step(
    spec: DecodeSpec,
    params: Any,
    row: RowState,
    state: PolicyState,
    pred: Prediction,
    hidden_WE: jax.Array,
) -> PolicyState:
    """The policy's next state after an evaluated one.

    Args:
        spec: Its policy steps.
        params: Parameters, for policies that query the model.
        row: One row.
        state: An evaluated state.
        pred: Prediction of its active block, [W].
        hidden_WE: The hidden vectors that the prediction was read from.

    Returns:
        The state after the step, with the policy's new memory.
    """
    layout, policy = spec.layout, spec.policy
    queries = model_queries(spec, params, hidden_WE)
    view, block = _policy_view(spec, row, state, pred, queries)
    stepped = policy.step(view, state.memory)
    if not (isinstance(stepped, tuple) and len(stepped) == 2):
        raise ValueError(
            f"policy {policy.name!r}: its step must return (tokens_W, memory) and "
            f"gave a {type(stepped).__name__}; see Policy.step"
        )
    next_W, memory = stepped
    if policy.scoring is not None:
        return _await_scores(spec, row, state, view, block, memory)
    # A policy may change nothing else, whatever it returns.
    next_W = jnp.where(_may_change(spec, view), next_W, view.tokens_W)
    if policy.edits:
        is_mask_W = view.decoded_W & (next_W == layout.mask_id)
        next_W = jnp.where(is_mask_W, view.tokens_W, next_W)
    return PolicyState(
        layout.with_block(state.tokens_L, next_W, block),
        memory,
        state.n + 1,
        _next_progress(spec, row, state, view, next_W, block),
    )


def is_certain(
    spec: DecodeSpec,
    params: Any,
    row: RowState,
    state: PolicyState,
    pred: Prediction,
    hidden_WE: jax.Array,
    error_bound: ErrorBound,
) -> jax.Array:
    """True if no error within the bound can change the step from an evaluated state.

    Then no router chooses other experts; no open position, and of a policy that edits
    no decoded one, is predicted another token; and the policy makes no other choice.

    Args:
        spec: Its policy must have a certificate, `Policy.is_certain`.
        params: Parameters, for policies that query the model.
        row: One row.
        state: An evaluated state.
        pred: Prediction of its active block, [W].
        hidden_WE: The hidden vectors that the prediction was read from.
        error_bound: How far the prediction may be off.

    Returns:
        A bool scalar.
    """
    certificate = spec.policy.is_certain
    assert certificate is not None, "guarded numerics need a policy with a certificate"
    queries = model_queries(spec, params, hidden_WE)
    view, _ = _policy_view(spec, row, state, pred, queries)
    # `lead` is by how much the sampler preferred its token to the next best one, noise
    # included. The bound is on the error of that difference, not of each of its terms.
    # A policy that edits compares the predicted token with the one that stands there.
    is_read_W = view.open_W
    if spec.policy.edits:
        is_read_W |= view.decoded_W
    same_token_W = ~is_read_W | (pred.lead > error_bound.lead)
    certain = jnp.all(same_token_W) & certificate(view, state.memory, error_bound)
    if spec.model.router_trace is not None:
        # Past a router's near tie nothing bounds the error of the prediction.
        margin_W = spec.model.router_trace(hidden_WE).margin
        certain &= jnp.all(margin_W > error_bound.router)
    return certain


def commit_orders(
    spec: DecodeSpec, params: Any, row: RowState, state: PolicyState, pred: Prediction
) -> jax.Array:
    """In which of its steps a policy would commit each position, block by block.

    Args:
        spec: Its policy says an order, `Policy.commit_order`.
        params: The model's parameters.
        row: One row.
        state: The policy's state, which the steps are counted from.
        pred: A prediction of the window, [L], which every step would see.

    Returns:
        For each block, the step at which each open position is committed, counted from
        the first step in that block; int32 [J, W].
    """
    layout, commit_order = spec.layout, spec.policy.commit_order
    assert commit_order is not None, "this policy has to be simulated"
    open_L = layout.open_positions(state.tokens_L, row)

    def order_of(places, pred, hidden_WE):
        queries = model_queries(spec, params, hidden_WE)
        view = _block_view(spec, row, state.n, places, pred, queries)
        return commit_order(view, state.memory)

    def by_blocks(array_L):
        shape = layout.num_blocks, layout.block_length, *array_L.shape[1:]
        return array_L.reshape(shape)

    places = state.tokens_L, open_L, layout.positions(row)
    window = jax.tree.map(by_blocks, (places, pred, row.hidden_LE))
    return jax.vmap(order_of)(*window).astype(jnp.int32)


def remembers_nothing(
    spec: DecodeSpec, row: RowState, state: PolicyState, pred: Prediction
) -> bool:
    """True for a policy that looks at nothing but its view of a state.

    It has no memory and asks the model nothing beyond the prediction. What it does from
    many states can be computed side by side: a query could not, as the products of
    another shape that it is made of are rounded otherwise.

    Args:
        spec: Its policy steps.
        row: One row.
        state: A state of the policy; only shapes are looked at.
        pred: Prediction of its active block, [W].

    Returns:
        Known while the decode is traced.
    """
    policy = spec.policy
    if jax.tree.leaves(state.memory) or policy.scoring is not None:
        return False

    def look(state: PolicyState, pred: Prediction) -> None:
        queries = cast(ModelQueries, _Unanswered())
        view, _ = _policy_view(spec, row, state, pred, queries)
        policy.step(view, state.memory)
        if policy.is_certain is not None:
            error_bound = ErrorBound.uniform(jnp.float32(0))
            policy.is_certain(view, state.memory, error_bound)

    try:
        jax.eval_shape(look, state, pred)
    except _QueryError:
        return False
    return True


class _QueryError(Exception):
    """A policy has asked the model something."""


class _Unanswered:
    """Stands for `ModelQueries` to find out whether a policy makes use of it."""

    def __getattr__(self, name: str) -> Any:
        raise _QueryError(name)


def _choose_candidate(
    spec: DecodeSpec, params, row, state: PolicyState, tokens_NL, read: ReadFn
) -> jax.Array:
    """The candidate of the highest prior + score; there is no choice among one."""
    count, scoring = tokens_NL.shape[0], spec.policy.scoring
    if count == 1 or scoring is None:
        return jnp.int32(0)

    def score(candidate):
        evaluated = state._replace(tokens_L=tokens_NL[candidate])
        pred, hidden_WE = read(candidate)
        queries = model_queries(spec, params, hidden_WE)
        view, _ = _policy_view(spec, row, evaluated, pred, queries)
        return scoring.score_fn(view)

    score_N = jax.vmap(score)(jnp.arange(count, dtype=jnp.int32))
    # Argmax takes the first maximum, which is the
    # tie rule that `CandidateScoring` states.
    return jnp.argmax(state.memory.prior_N + score_N).astype(jnp.int32)


def _await_scores(
    spec: DecodeSpec,
    row: RowState,
    state: PolicyState,
    view: PolicyView,
    block: jax.Array,
    memory: Candidates,
) -> PolicyState:
    """The state whose candidates the next call will evaluate and score.

    If all candidates are equal there is nothing to weigh. The candidate is then
    committed at once in the two cases in which no call would evaluate it: the row ends
    with it, or the cache is refreshed there, and the refresh evaluates the committed
    state itself.
    """
    layout, open_W = spec.layout, view.open_W
    blocks_NW = jnp.where(open_W[None], memory.tokens_NW, view.tokens_W[None])
    only_L = layout.with_block(state.tokens_L, blocks_NW[0], block)
    only = state._replace(tokens_L=only_L)
    _, is_refreshed = layout.advance(state, only, row)
    is_last = layout.is_ended(only_L, row, None) | is_refreshed
    goes_on = jnp.any(open_W) & ~layout.is_ended(state.tokens_L, row, None)
    is_known = goes_on & is_last & jnp.all(blocks_NW == blocks_NW[:1])
    tokens_L = jnp.where(is_known, only_L, state.tokens_L)
    # The index counts steps, as the noise is keyed
    # by it. A state that is over takes none.
    n = state.n + goes_on.astype(jnp.int32)
    return PolicyState(tokens_L, memory._replace(tokens_NW=blocks_NW), n)


def _may_change(spec: DecodeSpec, view: PolicyView) -> jax.Array:
    """The positions of the active block that a step may change, bool [W]."""
    changes_decoded = spec.policy.revises or spec.policy.edits
    return view.open_W | view.decoded_W if changes_decoded else view.open_W


def _next_progress(
    spec: DecodeSpec,
    row: RowState,
    state: PolicyState,
    view: PolicyView,
    next_W: jax.Array,
    block: jax.Array,
) -> EditProgress | None:
    """How far the blocks are after a step: the block ends, or has one more post step.

    A block ends with a step that leaves no mask in it and either is the last post step
    that is allowed, or began without masks and has changed nothing.
    """
    layout, progress = spec.layout, state.progress
    if progress is None:
        return None
    is_post = ~jnp.any(view.open_W)
    post_steps = progress.post_steps + is_post.astype(jnp.int32)
    has_masks = jnp.any(view.open_W & (next_W == layout.mask_id))
    stays = is_post & jnp.all(next_W == view.tokens_W)
    max_post_steps = spec.policy.max_post_steps or 0
    ends = ~has_masks & (stays | (post_steps >= max_post_steps))
    # Of a state without anything pending the last block stands in for the active one.
    ends &= has_pending(spec, row, state.tokens_L, progress)
    block_end = row.start + (block + 1) * layout.block_length
    return EditProgress(
        final_until=jnp.where(ends, block_end, progress.final_until),
        post_steps=jnp.where(ends, 0, post_steps),
    )


def _policy_view(
    spec: DecodeSpec, row: RowState, state: PolicyState, pred, queries: ModelQueries
) -> tuple[PolicyView, jax.Array]:
    """What the policy sees of an evaluated state, and the index of its active block."""
    layout = spec.layout
    block, open_L = layout.active_block(state.tokens_L, row, state.progress)
    places = state.tokens_L, open_L, layout.positions(row)
    view = _block_view(
        spec, row, state.n, layout.block_slice(places, block), pred, queries
    )
    return view, block


def _block_view(
    spec: DecodeSpec,
    row: RowState,
    n: jax.Array,
    places: tuple[jax.Array, jax.Array, jax.Array],
    pred: Prediction,
    queries: ModelQueries,
) -> PolicyView:
    """The view of a block by its tokens, open positions and places in the canvas."""
    tokens_W, open_W, position_W = places
    # Policies count positions from the first generated one, as the papers do.
    position_W = position_W - row.begin
    # Keyed by the step index of the state itself, so that a draft k steps ahead draws
    # what the policy will draw there.
    key = jax.random.fold_in(jax.random.fold_in(row.key, n), POLICY_NOISE)
    return PolicyView(
        tokens_W=tokens_W,
        open_W=open_W,
        decoded_W=(position_W >= 0) & (tokens_W != spec.layout.mask_id),
        pred=pred,
        position_W=position_W,
        max_new_tokens=row.end - row.begin,
        mask_id=jnp.int32(spec.layout.mask_id),
        step=n,
        key=key,
        queries=queries,
    )

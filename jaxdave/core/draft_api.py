"""The draft-function protocol: guesses of the states that the next steps will reach.

A draft function costs no call of the model and cannot change the text: a draft that the
policy does not confirm is dropped. It is a triple of pure functions, `DraftFn`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax

from jaxdave.core.prediction import Prediction
from jaxdave.core.state import EditProgress, PolicyState, RowState

DraftMemory = Any
"""A draft function's own pytree of arrays; () for one that remembers nothing."""


class DraftState(NamedTuple):
    """A future point of the decoding path, and what must be evaluated to go on from it.

    Attributes:
        policy_state: Where the policy would be.
        tokens_NL: The states of which the model's verdict is needed, int32 [N, L]: the
            state itself, or all candidates of a policy that scores candidates.
        valid: True where it is worth evaluating, bool.
    """

    policy_state: PolicyState
    tokens_NL: jax.Array
    valid: jax.Array


class StatesAhead(NamedTuple):
    """The states of the policy's next steps, as far as the last prediction tells.

    Attributes:
        tokens_KNL: The states after one step, two steps, ..., int32 [K, N, L].
        valid_K: True as far as all steps up to there are valid, bool [K].
        progress_K: For a policy that edits, the progress of each, arrays [K]; else
            None.
    """

    tokens_KNL: jax.Array
    valid_K: jax.Array
    progress_K: EditProgress | None


SimulateFn = Callable[[PolicyState, jax.Array], DraftState]
RunAheadFn = Callable[[DraftState, int], StatesAhead]


class DraftContext(NamedTuple):
    """What a draft function may look at; all of it is stale, none of it decides.

    Attributes:
        simulate: (policy state, depth) -> the policy's next `DraftState` by the last
            prediction; depth counts policy steps after the first draft (for the noise).
        run_ahead: (first, count) -> the states after one step, two steps, ... from
            `first`: what `simulate` gives step by step, but for many policies without a
            loop.
        pred: The last prediction of the window, [D, L].
        open_L: Positions that are still masked in the policy's own next state and may
            be decoded before the window moves, bool [L].
        block_L: The block of each position, int32 [L].
        is_ended: tokens_L -> True where a row would end with this state.
        row: The row itself.
        mask_id: Token id of a masked position.
        params: Parameters for draft functions that take some: `DraftedParams.draft`.
        memory: The draft function's memory at the last accepted state.
        with_tokens: token_L -> this context with other predicted tokens wherever
            `token_L` is not -1; confidence scores stay those of the prediction.
    """

    simulate: SimulateFn
    run_ahead: RunAheadFn
    pred: Prediction
    open_L: jax.Array
    block_L: jax.Array
    is_ended: Callable[[jax.Array], jax.Array]
    row: RowState
    mask_id: int
    params: Any
    memory: DraftMemory
    with_tokens: Callable[[jax.Array], "DraftContext"]


class DraftSet(NamedTuple):
    """Guesses of future states; the first is the policy's own next state.

    Attributes:
        tokens_KNL: States to evaluate, int32 [K, N, L]: for each of K drafts the N
            states that one policy step weighs, 1 for most policies.
        depth_K: Policy steps after the first draft, int32 [K].
        valid_K: True where a draft is worth evaluating, bool [K].
        worth_K: Roughly how likely the path is to reach each draft, float32 [K]; never
            likelier than a draft on the way there.
        progress_K: For a policy that edits, how far the blocks of each draft are,
            arrays [K], as `simulate` and `run_ahead` give it; else None.
    """

    tokens_KNL: jax.Array
    depth_K: jax.Array
    valid_K: jax.Array
    worth_K: jax.Array
    progress_K: EditProgress | None = None


ProposeFn = Callable[[DraftContext, DraftState, int], DraftSet]


def no_memory(params: Any, row: RowState) -> DraftMemory:
    """The initial memory of a draft function that remembers nothing.

    Args:
        params: Ignored.
        row: Ignored.

    Returns:
        The empty tuple, a pytree without leaves.
    """
    del params, row
    return ()


def keep_memory(params: Any, memory: DraftMemory, row: RowState) -> DraftMemory:
    """The update of a draft function that remembers nothing.

    Args:
        params: Ignored.
        memory: The memory before the call.
        row: Ignored.

    Returns:
        The same memory.
    """
    del params, row
    return memory


class DraftFn(NamedTuple):
    """A draft function as three pure functions, compiled into the decode loop.

    Attributes:
        propose: (context, first, num_drafts) -> DraftSet of exactly `num_drafts`
            drafts. `first` is the policy's own next state and must be its first.
        init: (params, row) -> memory, for a row that begins; its prompt is in
            `row.tokens_T` before `row.begin`.
        update: (params, memory, row) -> memory, after every call, for the row with the
            accepted tokens committed. Called along the accepted path only: rejected
            drafts leave no trace.
        takes_params: The three functions need parameters of their own, so that a decode
            is given `DraftedParams`. Otherwise they see None.
        reads_text: It makes use of the user's draft text, `row.draft_text_T`.

    Example:
        def propose(context, first, num_drafts): ...
        decoder = jaxdave.freedave(model.config, draft=DraftFn(propose))
    """

    propose: ProposeFn
    init: Callable[[Any, RowState], DraftMemory] = no_memory
    update: Callable[[Any, DraftMemory, RowState], DraftMemory] = keep_memory
    takes_params: bool = False
    reads_text: bool = False


class DraftedParams(NamedTuple):
    """The parameters of a decode whose draft function has parameters of its own.

    Attributes:
        model: The model's parameters.
        draft: The draft function's parameters, any pytree of arrays.
    """

    model: Any
    draft: Any


def draft_params(params: Any) -> Any:
    """The draft function's part of a decode's parameters.

    Args:
        params: A model's parameters, or `DraftedParams`.

    Returns:
        `DraftedParams.draft`; None where the draft function has no parameters.
    """
    return params.draft if isinstance(params, DraftedParams) else None


def as_draft_fn(draft: Any) -> DraftFn:
    """A draft function from a triple, or from a `propose` function alone.

    Args:
        draft: A `DraftFn`, or a function (context, first, num_drafts) -> DraftSet.

    Returns:
        The triple; equal arguments give equal triples.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(draft, DraftFn):
        parts = {name: getattr(draft, name) for name in ("propose", "init", "update")}
        # Checked here, on the host: inside the traced loop a part that cannot be called
        # would fail with an error that names neither the argument nor the part.
        broken = [name for name, part in parts.items() if not callable(part)]
        if broken:
            raise ValueError(
                f"draft has {broken[0]}={parts[broken[0]]!r}, which is no function; "
                "give propose(context, first, num_drafts), init(params, row) and "
                "update(params, memory, row)"
            )
        return draft
    if not callable(draft):
        raise ValueError(
            f"draft={draft!r} is no draft function; give a DraftFn, or a function "
            "(context, first, num_drafts) -> DraftSet"
        )
    return DraftFn(cast(ProposeFn, draft))

"""Draft functions: guesses of the states that the next steps will reach.

A draft function costs no network call and cannot change the text: a wrong guess is not
confirmed, that is all.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxdave.core.prediction import Prediction
from jaxdave.core.state import PolicyState, RowState


class DraftState(NamedTuple):
    """A stand that the policy may reach, the states to be evaluated to go on from
    there, and whether that is worth a slot."""

    policy_state: PolicyState
    tokens_NL: jax.Array
    valid: jax.Array


SimulateFn = Callable[[PolicyState, jax.Array], DraftState]


class DraftContext(NamedTuple):
    """What a draft function may look at; all of it is stale, none of it decides.

    simulate(stand, depth) -> the policy's next stand, by the last prediction. pred:
    that prediction [D, L]. open_L: what may be decoded after the policy's own next
    state, before the window moves. block_L: the block of each position. ended(tokens_L)
    -> whether a row would end there. row, mask_id: the row itself. believing(token_L)
    -> the outlook were these the tokens predicted (where they are not -1), at the
    confidence of those that are.
    """

    simulate: SimulateFn
    pred: Prediction
    open_L: jax.Array
    block_L: jax.Array
    ended: Callable[[jax.Array], jax.Array]
    row: RowState
    mask_id: int
    with_tokens: Callable[[jax.Array], "DraftContext"]


class DraftSet(NamedTuple):
    """Guesses of future states; the first is the policy's own next state.

    tokens_KNL: the N states that one step weighs, 1 for most policies; depth_K: policy
    steps after the first draft; valid_K: worth evaluating. worth_K: float32, about how
    likely the walk is to get there, never likelier than to a draft on the way.
    """

    tokens_KNL: jax.Array
    depth_K: jax.Array
    valid_K: jax.Array
    worth_K: jax.Array


DraftFn = Callable[[DraftContext, DraftState, int], DraftSet]

"""Draft functions: guesses of the states that the next steps will reach.

A draft function costs no network call and cannot change the text: a wrong guess is not
confirmed, that is all.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.state import Drafts, Guess, RowState, Stand
from jaxdave.types import Prediction

HOPE = 0.8
"""How likely a step is what it was drafted to be, where nobody has counted."""

Simulate = Callable[[Stand, jax.Array], Guess]


class Outlook(NamedTuple):
    """What a draft function may look at; all of it is stale, none of it decides.

    simulate(stand, depth) -> the policy's next stand, by the last prediction. pred:
    that prediction [D, L]. open_L: what may be decoded after the policy's own next
    state, before the window moves. block_L: the block of each position. ended(tokens_L)
    -> whether a row would end there. row, mask_id: the row itself. believing(token_L)
    -> the outlook were these the tokens predicted (where they are not -1), at the
    confidence of those that are.
    """

    simulate: Simulate
    pred: Prediction
    open_L: jax.Array
    block_L: jax.Array
    ended: Callable[[jax.Array], jax.Array]
    row: RowState
    mask_id: int
    believing: Callable[[jax.Array], "Outlook"]


DraftFn = Callable[[Outlook, Guess, int], Drafts]


def nested(outlook: Outlook, first: Guess, budget: int) -> Drafts:
    """The policy itself, run ahead on the last prediction (FreeDave, Algorithm 2).

    For one token a step these are the paper's nested top-k sets; any other policy is
    simulated as it is. Depth k uses the noise of the step that it stands for. The chain
    ends where the request would end or where no prediction is at hand.
    """

    def deeper(held: Guess, depth):
        moved = outlook.simulate(held.stand, depth)
        moved = moved._replace(valid=held.valid & moved.valid)
        return moved, (moved.tokens_NL, moved.valid)

    depth_K = jnp.arange(budget, dtype=jnp.int32)
    _, (later_KNL, valid_K) = jax.lax.scan(deeper, first, depth_K[:-1])
    return Drafts(
        jnp.concatenate([first.tokens_NL[None], later_KNL]),
        depth_K,
        jnp.concatenate([first.valid[None], valid_K]),
        HOPE ** depth_K.astype(jnp.float32),
    )

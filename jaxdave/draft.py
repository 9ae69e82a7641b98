"""Draft functions: guesses of the states that the next steps will reach.

A draft function costs no network call and cannot change the text: a wrong guess is not
confirmed, that is all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.grid import Grid
from jaxdave.types import Drafts, Policy, Prediction, RowState

DraftFn = Callable[[Grid, Policy, RowState, int], Drafts]


def nested(grid: Grid, policy: Policy, state: RowState, budget: int) -> Drafts:
    """The policy itself, run ahead on the last prediction (FreeDave, Algorithm 2).

    For one token a step these are the paper's nested top-k sets; any other policy is
    simulated as it is. Depth k uses the noise of the step that it stands for. The chain
    ends where the request would end or where no prediction is at hand.
    """
    first_L = grid.window(state)

    def deeper(held, k):
        tokens_L, valid = held
        block, open_L = grid.active(tokens_L, state)
        depth = jnp.minimum(k - 1, state.pred.token.shape[0] - 1)
        pred = Prediction(*(grid.cut(part[depth], block) for part in state.pred))
        moved_L = grid.step(policy, tokens_L, open_L, block, pred)
        valid &= jnp.any(open_L) & jnp.all(pred.token >= 0)
        valid &= ~grid.ended(moved_L, state)
        return (moved_L, valid), (moved_L, valid)

    depth_K = jnp.arange(budget, dtype=jnp.int32)
    start = first_L, jnp.bool_(True)
    _, (later_KL, valid_K) = jax.lax.scan(deeper, start, depth_K[1:])
    return Drafts(
        jnp.concatenate([first_L[None], later_KL]),
        depth_K,
        jnp.concatenate([jnp.ones((1,), bool), valid_K]),
    )

"""Draft functions: guesses of the states that the next steps will reach.

A draft function costs no network call and cannot change the text: a wrong guess is not
confirmed, that is all.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftSet, DraftState

ACCEPTANCE_PRIOR = 0.8
"""How likely a step is what it was drafted to be, where nobody has counted."""


def nested(context: DraftContext, first: DraftState, budget: int) -> DraftSet:
    """The policy itself, run ahead on the last prediction (FreeDave, Algorithm 2).

    For one token a step these are the paper's nested top-k sets; any other policy is
    simulated as it is. Depth k uses the noise of the step that it stands for. The chain
    ends where the request would end or where no prediction is at hand.
    """

    def deeper(held: DraftState, depth):
        moved = context.simulate(held.policy_state, depth)
        moved = moved._replace(valid=held.valid & moved.valid)
        return moved, (moved.tokens_NL, moved.valid)

    depth_K = jnp.arange(budget, dtype=jnp.int32)
    _, (later_KNL, valid_K) = jax.lax.scan(deeper, first, depth_K[:-1])
    return DraftSet(
        jnp.concatenate([first.tokens_NL[None], later_KNL]),
        depth_K,
        jnp.concatenate([first.valid[None], valid_K]),
        ACCEPTANCE_PRIOR ** depth_K.astype(jnp.float32),
    )

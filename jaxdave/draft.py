"""Draft functions: guesses of the states that the next steps will reach.

A draft function costs no network call and cannot change the text: a wrong guess is not
confirmed, that is all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.types import Drafts, Guess, Stand

Simulate = Callable[[Stand, jax.Array], Guess]
DraftFn = Callable[[Simulate, Guess, int], Drafts]


def nested(simulate: Simulate, first: Guess, budget: int) -> Drafts:
    """The policy itself, run ahead on the last prediction (FreeDave, Algorithm 2).

    For one token a step these are the paper's nested top-k sets; any other policy is
    simulated as it is. Depth k uses the noise of the step that it stands for. The chain
    ends where the request would end or where no prediction is at hand.
    """

    def deeper(held: Guess, depth):
        moved = simulate(held.stand, depth)
        moved = moved._replace(valid=held.valid & moved.valid)
        return moved, (moved.tokens_NL, moved.valid)

    depth_K = jnp.arange(budget, dtype=jnp.int32)
    _, (later_KNL, valid_K) = jax.lax.scan(deeper, first, depth_K[:-1])
    return Drafts(
        jnp.concatenate([first.tokens_NL[None], later_KNL]),
        depth_K,
        jnp.concatenate([first.valid[None], valid_K]),
    )

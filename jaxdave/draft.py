"""Draft functions: guesses of the states that the next steps will reach.

A draft function costs no network call and cannot change the text: a wrong guess is not
confirmed, that is all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.types import Drafts, Stand

Simulate = Callable[[Stand, jax.Array], tuple[Stand, jax.Array]]
DraftFn = Callable[[Simulate, Stand, int], Drafts]


def nested(simulate: Simulate, first: Stand, budget: int) -> Drafts:
    """The policy itself, run ahead on the last prediction (FreeDave, Algorithm 2).

    For one token a step these are the paper's nested top-k sets; any other policy is
    simulated as it is. Depth k uses the noise of the step that it stands for. The chain
    ends where the request would end or where no prediction is at hand.
    """

    def deeper(held, depth):
        stand, valid = held
        moved, usable = simulate(stand, depth)
        valid &= usable
        return (moved, valid), (moved.tokens_L, valid)

    depth_K = jnp.arange(budget, dtype=jnp.int32)
    start = first, jnp.bool_(True)
    _, (later_KL, valid_K) = jax.lax.scan(deeper, start, depth_K[:-1])
    return Drafts(
        jnp.concatenate([first.tokens_L[None], later_KL]),
        depth_K,
        jnp.concatenate([jnp.ones((1,), bool), valid_K]),
    )

"""The walk: how far the drafts were right.

Nothing can accept more for a given set of drafts: a state outside the set was never
evaluated, so what follows it is unknown.
"""

import jax
import jax.numpy as jnp

from jaxdave.types import Drafts


def successors(drafts: Drafts, targets_KL: jax.Array, in_order: bool) -> jax.Array:
    """For each draft, which draft equals its target: int32 [K], -1 for none.

    Equality is of whole states. in_order: the draft must also lie one step deeper, as
    it must when the noise of a state depends on its step index.
    """
    same_KK = jnp.all(
        targets_KL[:, None, :] == drafts.tokens_KL[None, :, :], axis=-1
    ) & (drafts.valid_K[:, None] & drafts.valid_K[None, :])
    if in_order:
        same_KK &= drafts.depth_K[None, :] == drafts.depth_K[:, None] + 1
    else:
        # A target never equals its own draft unless a policy stands still.
        same_KK &= ~jnp.eye(len(drafts.depth_K), dtype=bool)
    found_K = jnp.argmax(same_KK, axis=1).astype(jnp.int32)
    return jnp.where(jnp.any(same_KK, axis=1), found_K, -1)


def walk(next_K: jax.Array) -> tuple[jax.Array, jax.Array]:
    """From draft 0 step to the successor while there is one.

    Returns the draft where the walk ends, and how many steps it took (at most K - 1).
    """

    def step(_, held):
        at, steps = held
        to = next_K[at]
        return jnp.where(to >= 0, to, at), steps + (to >= 0).astype(jnp.int32)

    start = jnp.int32(0), jnp.int32(0)
    return jax.lax.fori_loop(0, next_K.shape[0] - 1, step, start)

"""Counter-based noise, the same whoever draws it and how much at once.

A position's Gumbel noise at a policy step is a function of (seed, request, step index,
position, token id) alone, so a draft at depth k can use the noise that the policy
itself will use k steps later, and no rejected draft consumes any (a Gumbel coupling).
"""

import jax
import jax.numpy as jnp

from jaxdave.core.config import NOISE_CHUNK


def request_key(seed: jax.Array, request: jax.Array) -> jax.Array:
    """The key of one request of a seed: uint32[2]."""
    return jax.random.fold_in(jax.random.PRNGKey(seed), request)


def position_keys(key: jax.Array, step_R: jax.Array, position_R: jax.Array):
    """Keys [R, 2] of (request key, policy-step index, position)."""
    fold = lambda n, at: jax.random.fold_in(  # noqa: E731
        jax.random.fold_in(key, n), at
    )
    return jax.vmap(fold)(step_R, position_R)


def gumbel(key_R: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    """The noise of one chunk of ids, float32 [R, chunk], by the keys of positions.

    chunk: at most `DRAWN`, or a multiple of it.
    """
    whole = max(chunk // NOISE_CHUNK, 1)
    size = chunk // whole

    def draw(key, part):
        # "high": the default mode cannot produce events rarer than about 1e-7.
        folded = jax.random.fold_in(key, index * whole + part)
        return jax.random.gumbel(folded, (size,), jnp.float32, mode="high")

    part_P = jnp.arange(whole, dtype=jnp.int32)
    drawn_RPX = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(key_R, part_P)
    return drawn_RPX.reshape(-1, chunk)

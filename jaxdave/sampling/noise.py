"""Counter-based Gumbel noise: the same whoever draws it, and however much at once.

A position's noise at a policy step is a function of (seed, request, step index,
position, token id) alone. So a draft at depth k can use the very noise that the policy
itself will use k steps later, and rejected drafts consume none. This coupling is what
keeps sampled decoding lossless: draft and policy draw the same token from the same
distribution, not just from equal distributions.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.config import NOISE_CHUNK


def request_key(seed: jax.Array, request: jax.Array) -> jax.Array:
    """Derive the key of one request.

    Args:
        seed: The user's seed, uint32 scalar.
        request: The request's number, uint32 scalar.

    Returns:
        A PRNG key, uint32 [2].
    """
    return jax.random.fold_in(jax.random.PRNGKey(seed), request)


def position_keys(key: jax.Array, step_R: jax.Array, position_R: jax.Array):
    """Derive the keys of positions at policy steps.

    Args:
        key: The request's key, uint32 [2].
        step_R: Policy-step indices, int32 [R].
        position_R: Positions in the canvas, int32 [R].

    Returns:
        PRNG keys, uint32 [R, 2].
    """

    def fold(step, position):
        return jax.random.fold_in(jax.random.fold_in(key, step), position)

    return jax.vmap(fold)(step_R, position_R)


def gumbel(key_R: jax.Array, index: jax.Array, chunk: int) -> jax.Array:
    """Draw the noise of one chunk of the vocabulary.

    Ids are always drawn `NOISE_CHUNK` at a time, one key each, so that a larger chunk
    of the head gets the same noise as several smaller ones.

    Args:
        key_R: Keys of positions, uint32 [R, 2].
        index: The chunk's index, int32 scalar.
        chunk: Ids per chunk: at most `NOISE_CHUNK`, or a multiple of it; any number
            where there is one chunk only.

    Returns:
        float32 [R, chunk].
    """
    num_parts = -(-chunk // NOISE_CHUNK)
    size = min(chunk, NOISE_CHUNK)

    def draw(key, part):
        # "high": the default mode cannot produce events rarer than about 1e-7.
        part_key = jax.random.fold_in(key, index * num_parts + part)
        return jax.random.gumbel(part_key, (size,), jnp.float32, mode="high")

    part_P = jnp.arange(num_parts, dtype=jnp.int32)
    noise_RPX = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(key_R, part_P)
    # A head that is read whole may end inside the last part.
    return noise_RPX.reshape(key_R.shape[0], -1)[:, :chunk]


def gumbel_of_ids(
    key_R: jax.Array, first: jax.Array, size: int, vocab_rows: int
) -> jax.Array:
    """Draw the noise of consecutive ids that begin anywhere.

    It is what `gumbel` draws for them, but the parts that they begin and end in are
    drawn whole. So each device of a mesh draws the noise of its own ids.

    Args:
        key_R: Keys of positions, uint32 [R, 2].
        first: The first id, int32 scalar.
        size: How many.
        vocab_rows: Rows of the whole vocabulary; of ids behind it anything is drawn.

    Returns:
        float32 [R, size].
    """
    part = min(vocab_rows, NOISE_CHUNK)
    num_parts = (size - 1) // part + 2
    index = first // part

    def draw(key, number):
        part_key = jax.random.fold_in(key, index + number)
        return jax.random.gumbel(part_key, (part,), jnp.float32, mode="high")

    number_P = jnp.arange(num_parts, dtype=jnp.int32)
    noise_RPX = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(key_R, number_P)
    noise_RV = noise_RPX.reshape(-1, num_parts * part)
    return jax.lax.dynamic_slice_in_dim(noise_RV, first - index * part, size, axis=1)

"""Predictions: what the model says, asked for in the two ways the loop needs.

`decide` reads the active block of every draft, always in the same shapes: the text
depends on nothing else. `guess` reads the whole window of the one draft that was kept,
at the noise of the steps to come: drafts are made of it, and it may be wrong.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxdave.sampling import NEVER, position_keys, read
from jaxdave.types import Drafts, Prediction, RowState

if TYPE_CHECKING:
    from jaxdave.decode import Program


def decide(program: "Program", params, hidden_KLE, drafts: Drafts, row: RowState):
    """The policy's next state from each evaluated draft, [K, L]."""
    grid = program.grid
    block_K, open_KL = jax.vmap(lambda t: grid.active(t, row))(drafts.tokens_KL)
    hidden_KWE = jax.vmap(grid.cut)(hidden_KLE, block_K)
    place_KW = row.start + (
        block_K[:, None] * grid.length + jnp.arange(grid.length, dtype=jnp.int32)[None]
    )
    step_KW = jnp.broadcast_to((row.n + drafts.depth_K)[:, None], place_KW.shape)
    pred = predict(program, params, hidden_KWE, row.key, step_KW, place_KW)
    step = lambda *a: grid.step(program.policy, *a)  # noqa: E731
    return jax.vmap(step)(drafts.tokens_KL, open_KL, block_K, pred)


def guess(program: "Program", params, hidden_LE, row: RowState) -> Prediction:
    """The prediction of the whole window at the noise of the steps to come, [D, L]."""
    if program.draft_steps == 1:
        return nothing(program)
    depths = depths_of(program)
    place_L = program.grid.places(row)
    shape = (depths, *place_L.shape)
    step_DL = jnp.broadcast_to(
        (row.n + jnp.arange(depths, dtype=jnp.int32))[:, None], shape
    )
    place_DL = jnp.broadcast_to(place_L[None], shape)
    hidden_DLE = jnp.broadcast_to(hidden_LE[None], (*shape, hidden_LE.shape[-1]))
    return predict(program, params, hidden_DLE, row.key, step_DL, place_DL)


def predict(program: "Program", params, hidden, key, step, place) -> Prediction:
    """Predictions of hidden states [..., E] at policy steps and positions [...]."""
    network = program.network
    chunk = network.chunk
    hidden_RE = hidden.reshape(-1, hidden.shape[-1])
    id_X = jnp.arange(chunk, dtype=jnp.int32)

    def logits(index):
        # The last chunk is moved back to fit; ids that it repeats do not count again.
        first = jnp.minimum(index * chunk, network.vocab_rows - chunk)
        ids = first + id_X
        raw = network.logits(params, hidden_RE, first)
        dead = (ids < index * chunk) | (ids >= network.vocab_size)
        dead |= jnp.isin(ids, jnp.asarray(network.banned, jnp.int32))
        return jnp.roll(
            jnp.where(dead[None], NEVER, raw), first - index * chunk, axis=1
        )

    key_R = jnp.zeros((hidden_RE.shape[0], 2), jnp.uint32)
    if program.sampling.noisy:
        key_R = position_keys(key, step.reshape(-1), place.reshape(-1))
    chunks = -(-network.vocab_rows // chunk)
    pred = read(logits, chunks, chunk, program.sampling, key_R)
    return Prediction(*(part.reshape(step.shape) for part in pred))


def depths_of(program: "Program") -> int:
    """Depths of future noise that drafts need; without noise all depths are one."""
    return max(program.draft_steps - 1, 1) if program.sampling.noisy else 1


def nothing(program: "Program") -> Prediction:
    """No prediction, [D, L]."""
    shape = (depths_of(program), program.grid.window_length)
    return Prediction(jnp.full(shape, -1, jnp.int32), jnp.full(shape, NEVER))

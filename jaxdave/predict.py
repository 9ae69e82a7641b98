"""Predictions: what the model says, asked for in the two ways the loop needs.

`decide` reads the active block of every draft, always in the same shapes: the text
depends on nothing else. `guess` reads the whole window of the one draft that was kept,
at the noise of the steps to come: drafts are made of it, and it may be wrong.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxdave.noise import position_keys
from jaxdave.sampling import NEVER, over_chunks, read, scale_of
from jaxdave.state import RowState
from jaxdave.types import Doubt, Look, Network, Prediction

if TYPE_CHECKING:
    from jaxdave.spec import Program


def decide(program: "Program", params, hidden_SWE, block_S, depth_S, row: RowState):
    """The prediction of every evaluated state's active block, [S, W]."""
    grid = program.grid
    place_SW = row.start + (
        block_S[:, None] * grid.length + jnp.arange(grid.length, dtype=jnp.int32)[None]
    )
    step_SW = jnp.broadcast_to((row.n + depth_S)[:, None], place_SW.shape)
    return predict(program, params, hidden_SWE, row.key, step_SW, place_SW)


def guess(program: "Program", params, hidden_LE, row: RowState) -> Prediction:
    """The prediction of the window at the noise of the steps to come, [D, L].

    Only as far as calls of this size look; beyond that there is none.
    """
    if program.most == 1 and not program.guarded:
        return nothing(program)
    depths, near = depths_of(program), program.near
    place_L, hidden_LE = program.grid.places(row)[:near], hidden_LE[:near]
    shape = (depths, *place_L.shape)
    step_DL = jnp.broadcast_to(
        (row.n + jnp.arange(depths, dtype=jnp.int32))[:, None], shape
    )
    place_DL = jnp.broadcast_to(place_L[None], shape)
    hidden_DLE = jnp.broadcast_to(hidden_LE[None], (*shape, hidden_LE.shape[-1]))
    pred = predict(program, params, hidden_DLE, row.key, step_DL, place_DL)
    rest = jax.tree.map(lambda a: a[:, near:], nothing(program))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), pred, rest)


def predict(program: "Program", params, hidden, key, step, place) -> Prediction:
    """Predictions of hidden states [..., E] at policy steps and positions [...]."""
    network = program.network
    hidden_RE = hidden.reshape(-1, hidden.shape[-1])
    key_R = jnp.zeros((hidden_RE.shape[0], 2), jnp.uint32)
    if program.sampling.noisy:
        key_R = position_keys(key, step.reshape(-1), place.reshape(-1))
    pred = read(
        chunk_logits(network, params, hidden_RE),
        chunks_of(network),
        network.chunk,
        program.sampling,
        key_R,
    )
    return Prediction(*(part.reshape(step.shape) for part in pred))


def difference(now: Prediction, then: Prediction, open_W: jax.Array) -> Doubt:
    """How far two predictions of a stretch are apart; -1 as a token: none at hand."""
    told_W, same_W = then.token >= 0, then.token == now.token
    # With the other token in front a lead points the other way.
    then = then._replace(lead=jnp.where(same_W, then.lead, -then.lead))

    def largest(name: str, of_W: jax.Array) -> jax.Array:
        one_W, other_W = getattr(now, name), getattr(then, name)
        # What is infinite in both is the same.
        off_W = jnp.where(one_W == other_W, 0.0, jnp.abs(one_W - other_W))
        if name == "entropy":
            off_W = jnp.where(off_W > 0, off_W / jnp.minimum(one_W, other_W), 0.0)
        return jnp.max(jnp.where(of_W, off_W, 0.0))

    among = dict.fromkeys(Doubt._fields, told_W & open_W)
    # Scores are of a token. A rule may look at gaps of known positions too.
    among |= {"score": told_W & open_W & same_W, "gap": told_W}
    return Doubt(**{name: largest(name, of_W) for name, of_W in among.items()})


def chunk_logits(
    network: Network, params, hidden_RE
) -> Callable[[jax.Array], jax.Array]:
    """logits(chunk index) -> [R, X], `NEVER` where an id may not be predicted."""
    chunk = network.chunk
    id_X = jnp.arange(chunk, dtype=jnp.int32)

    def logits(index):
        # The last chunk is moved back to fit; ids that it repeats do not count again.
        first = jnp.minimum(index * chunk, network.vocab_rows - chunk)
        ids = first + id_X
        raw = network.logits(params, hidden_RE, first)
        dead = (ids < index * chunk) | (ids >= network.vocab_size)
        dead |= jnp.isin(ids, jnp.asarray(network.banned, jnp.int32))
        told = jnp.where(dead[None], NEVER, raw)
        is_even = network.vocab_rows % chunk == 0
        return told if is_even else jnp.roll(told, first - index * chunk, axis=1)

    return logits


def look(program: "Program", params, hidden_WE) -> Look:
    """The closer look at a stretch that some policies ask for."""
    scale, network = scale_of(program.sampling), program.network

    def logits_at(ids_WM):
        return network.logits_at(params, hidden_WE, ids_WM) * scale

    def divergence(then_WE):
        # E.g. at float32 memory of bfloat16 vectors: the cast back is exact.
        both = jnp.concatenate([hidden_WE, then_WE.astype(hidden_WE.dtype)])
        logits = chunk_logits(network, params, both)
        return _divergence(logits, chunks_of(network), scale)

    def shadow_at(ids_W):
        shadow = network.shadow
        assert shadow is not None, "the policy did not ask for a shadow"
        logits = chunk_logits(network, params, shadow(hidden_WE))
        return odds(logits, chunks_of(network), scale, ids_W)

    return Look(hidden_WE, logits_at, divergence, shadow_at)


def odds(logits, chunks: int, scale: float, ids_W) -> jax.Array:
    """Log of the odds of one id a row against all others, [W]; never saturated."""

    def fold(index, held):
        raw = logits(index)
        z = jnp.where(raw > NEVER, raw * scale, NEVER)
        id_X = index * z.shape[1] + jnp.arange(z.shape[1], dtype=jnp.int32)
        is_it = id_X[None] == ids_W[:, None]
        mine = jnp.max(jnp.where(is_it, z, NEVER), axis=1)
        others = jax.nn.logsumexp(jnp.where(is_it, NEVER, z), axis=1)
        return jnp.maximum(held[0], mine), jnp.logaddexp(held[1], others)

    low = jnp.full(ids_W.shape, NEVER)
    mine, others = over_chunks(0, chunks, fold, (low, low))
    return mine - others


def _divergence(logits, chunks: int, scale: float) -> jax.Array:
    """KL [W] of the first half of the rows' distributions from the second half's."""

    def halves(index):
        raw = logits(index)
        z = jnp.where(raw > NEVER, raw * scale, NEVER)
        return jnp.split(z, 2)

    def fold(index, held):
        top, total, cross, then = held
        now_z, then_z = halves(index)
        new_top = jnp.maximum(top, jnp.max(now_z, axis=1))
        fade = jnp.exp(top - new_top)
        weight = jnp.exp(now_z - new_top[:, None])
        apart = jnp.where(now_z > NEVER, now_z - then_z, 0.0)
        total = total * fade + jnp.sum(weight, axis=1)
        cross = cross * fade + jnp.sum(weight * apart, axis=1)
        return new_top, total, cross, jnp.logaddexp(then, jax.nn.logsumexp(then_z, 1))

    size = jax.eval_shape(halves, jnp.int32(0))[0].shape[0]
    low, zero = jnp.full((size,), NEVER), jnp.zeros((size,), jnp.float32)
    top, total, cross, then = over_chunks(0, chunks, fold, (low, zero, zero, low))
    return jnp.maximum(cross / total - (top + jnp.log(total)) + then, 0.0)


def chunks_of(network: Network) -> int:
    """Chunks that the head is read in."""
    return -(-network.vocab_rows // network.chunk)


def depths_of(program: "Program") -> int:
    """Depths of future noise that drafts need; without noise all depths are one."""
    return max(program.most - 1, 1) if program.sampling.noisy else 1


def nothing(program: "Program") -> Prediction:
    """No prediction, [D, L]."""
    shape = (depths_of(program), program.grid.window_length)
    low: Any = jnp.full(shape, NEVER)
    none: Any = jnp.full(shape, -1, jnp.int32)
    return Prediction(none, low, low, low, low, none, low)

"""One step of the policy on a window, for decisions and for guesses alike."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxdave.predict import look
from jaxdave.types import Prediction, RowState, Stand, View

if TYPE_CHECKING:
    from jaxdave.decode import Program

OWN_NOISE = 0x7FFFFFFF
"""Folded into a step's key for the policy's own noise; no position is as large."""


def step(
    program: "Program", params, row: RowState, stand: Stand, pred: Prediction, hidden_WE
) -> Stand:
    """Where the policy goes from a state, given what is said of its active block.

    pred: [W]; hidden_WE: the vectors that it was read from.
    """
    grid, policy = program.grid, program.policy
    block, open_L = grid.active(stand.tokens_L, row)
    tokens_W, open_W = (grid.cut(a, block) for a in (stand.tokens_L, open_L))
    place_W = grid.cut(grid.places(row), block) - row.begin
    decoded_W = (place_W >= 0) & (tokens_W != grid.mask_id)
    key = jax.random.fold_in(jax.random.fold_in(row.key, stand.n), OWN_NOISE)
    view = View(
        tokens_W, open_W, decoded_W, pred, place_W, row.end - row.begin,
        jnp.int32(grid.mask_id), stand.n, key, look(program, params, hidden_WE),
    )  # fmt: skip
    moved_W, memory = policy.step(view, stand.memory)
    # A policy may move nothing else, whatever it returns.
    may_W = open_W | decoded_W if policy.revises else open_W
    moved_W = jnp.where(may_W, moved_W, tokens_W)
    return Stand(grid.paste(stand.tokens_L, moved_W, block), memory, stand.n + 1)


def simulate(program: "Program", params, row: RowState, stand: Stand, depth):
    """The policy's next state as far as the last evaluated state can tell.

    depth: steps after the first draft, for the noise of that step. Returns it, and
    whether it is worth evaluating: something was open, a prediction was at hand, and
    the row does not end there.
    """
    grid = program.grid
    block, open_L = grid.active(stand.tokens_L, row)
    depth = jnp.minimum(depth, row.pred.token.shape[0] - 1)
    pred = Prediction(*(grid.cut(part[depth], block) for part in row.pred))
    moved = step(program, params, row, stand, pred, grid.cut(row.hidden_LE, block))
    usable = jnp.any(open_L) & jnp.all(pred.token >= 0)
    return moved, usable & ~grid.ended(moved.tokens_L, row)

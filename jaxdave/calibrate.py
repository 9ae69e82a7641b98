"""Calibration: which drafts the plain policy would have confirmed, by the thousand.

The policy decodes prompts one state at a time. After every call its path ahead is
compared with the order of the prediction that drafts would be made of then.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxdave import calls, trees
from jaxdave.decoders import Decoder
from jaxdave.run import begin
from jaxdave.trees import MOST_LEFT, PLACES, Slot, Table


class Sight(NamedTuple):
    """One row after one call: what is known [T], and how the rest looks [L]."""

    tokens_T: jax.Array
    start: jax.Array
    place_L: jax.Array
    token_L: jax.Array
    open_L: jax.Array
    left: jax.Array
    done: jax.Array


def calibrate(decoder: Decoder, params, batches: Sequence[Sequence], tick) -> Table:
    """The slots that the decoder's policy visits on prompts, one token a step.

    batches: lists of prompts; tick(number of prompts) is called after each.
    """
    paths: list[list[list[Slot]]] = [[] for _ in range(MOST_LEFT + 1)]
    for batch in batches:
        seen = list(_sights(decoder, params, batch))
        for row in range(len(batch)):
            film = [Sight(*(part[row] for part in sight)) for sight in seen]
            for now, sight in enumerate(film):
                paths[int(sight.left)].append(list(visited(film[now:])))
        tick(len(batch))
    return Table(tuple(trees.grown(some) for some in paths))


def visited(film: Sequence[Sight]) -> Iterator[Slot]:
    """The slots that a row's path visits after the first sight, while it can."""
    sight, slot = film[0], ()
    for now, then in zip(film, film[1:], strict=False):
        if now.done or then.done:
            return
        moved = np.flatnonzero(now.tokens_T != then.tokens_T)
        if len(moved) != 1:
            return
        at = int(moved[0]) - int(sight.start)
        if not 0 <= at < len(sight.open_L) or not sight.open_L[at]:
            return
        place = int(sight.place_L[at])
        if place >= PLACES or sight.token_L[at] != then.tokens_T[moved[0]]:
            return
        slot = tuple(sorted((*slot, place)))
        yield slot


def _sights(decoder: Decoder, params, prompts: Sequence) -> Iterator[Sight]:
    """What every row sees after each call of the plain policy, on the host."""
    program = decoder.program
    terms = program.terms(1)
    state = begin(decoder, params, prompts).state

    def look(row):
        outlook = calls.outlook(program, params, row)
        return Sight(
            row.tokens_T, row.start, trees.place_of(outlook), row.pred.token[0],
            outlook.open_L, trees.left_of(outlook), row.done,
        )  # fmt: skip

    step = jax.jit(lambda params, state: program.step(params, terms, state)[0])
    look_at = jax.jit(jax.vmap(look))
    for _ in range(decoder.max_new_tokens + 1):
        sight = Sight(*jax.device_get(look_at(state.rows)))
        yield sight
        if sight.done.all():
            return
        state = step(params, state)

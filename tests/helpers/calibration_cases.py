# pyright: reportArgumentType=false
"""Films of one row for the calibrator, made by hand."""

from collections.abc import Sequence

import numpy as np

from jaxdave.drafting.tree_table import NUM_GAPS
from jaxdave.engine.calibration import Observation

MASK = -5


def film_of(
    steps: Sequence[tuple[int, int]],
    places: Sequence[int],
    tokens: Sequence[int],
    runners: Sequence[int],
) -> list[Observation]:
    """A row that starts at position 3 and fills one (position, token) a step.

    places, tokens, runners: what the prediction says of each position, in every sight.
    """
    size = len(places)
    canvas, film = np.full(3 + size + 2, MASK), []
    for n, (at, token) in enumerate([(-1, 0), *steps]):
        canvas = canvas.copy()
        if at >= 0:
            canvas[3 + at] = token
        film.append(
            Observation(
                canvas,
                np.int32(3),
                np.int32(n),
                np.array(places),
                np.array(tokens),
                np.array(runners),
                np.ones(size, bool),
                np.int32(size),
                np.full(NUM_GAPS, np.inf),
                np.bool_(False),
            )  # fmt: skip
        )
    return film

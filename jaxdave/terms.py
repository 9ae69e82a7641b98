"""What a compiled decode is given: prompts, and terms that may differ at every run."""

from typing import NamedTuple

import jax
import numpy as np

from jaxdave.types import Doubt


class Terms(NamedTuple):
    """What a compiled decode may be told anew at every run; the text is the same.

    cap: how many drafts may be used; 1 is the plain policy. calls: at most so many
    rounds of a loop. fewest: until no more rows are left. doubt: how far predictions
    may be off, under guarded numerics; infinite: every decision is checked. seconds_Z:
    what a call of each size takes. forced: use this size whatever it takes, and go on
    after the rows' end (to time it); -1: no.
    """

    cap: jax.Array
    calls: jax.Array
    fewest: jax.Array
    doubt: Doubt
    seconds_Z: jax.Array
    forced: jax.Array


class Prompts(NamedTuple):
    """What a decode starts from: canvases, where rows begin and end, the users' draft
    texts (-1 where there is none), noise ids."""

    tokens_BT: jax.Array
    begin_B: jax.Array
    end_B: jax.Array
    told_BT: jax.Array
    seed_B: jax.Array
    request_B: jax.Array


def plain_terms(cap: int, calls: int, sizes: int) -> Terms:
    """Terms by which nothing is doubted and all `sizes` cost the same."""
    whole = lambda value: hosted(np.int32(value))  # noqa: E731
    none = Doubt.every(hosted(np.float32(0)))
    same = hosted(np.ones(sizes, np.float32))
    return Terms(whole(cap), whole(calls), whole(0), none, same, whole(-1))


def hosted(value: np.ndarray | np.generic) -> jax.Array:
    """An array that a compiled program fetches itself.

    All of a call's go together then: putting each on the device first costs a third of
    a millisecond, and `jnp.asarray` would compile a program for its shape.
    """
    return value  # pyright: ignore[reportReturnType]

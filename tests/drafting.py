# pyright: reportArgumentType=false, reportCallIssue=false
"""Outlooks and tables made by hand."""

import jax.numpy as jnp

from jaxdave.draft import Outlook
from jaxdave.state import Guess, Stand
from jaxdave.tables import CONTEXTS, Leaf, Table
from jaxdave.types import Prediction


def looking(scores, blocks, is_open) -> Outlook:
    """An outlook of a row whose prediction says only how sure it is."""
    score_L = jnp.asarray(scores, jnp.float32)
    none = jnp.zeros((1, len(scores)), jnp.int32)
    pred = Prediction(none, *[score_L[None]] * 4, none, score_L[None])
    masks = jnp.asarray(is_open, bool), jnp.asarray(blocks, jnp.int32)
    return Outlook(
        None, pred, *masks, lambda tokens_L: jnp.bool_(False), None, -9, None
    )


def same_everywhere(leaf: Leaf, edge: float = 0.5) -> Table:
    """A table that does not look at its contexts."""
    return Table(edge, ((leaf,) * CONTEXTS[1],) * CONTEXTS[0])


def guess_of(tokens) -> Guess:
    """A stand that a row knows to be next, to be evaluated as it is."""
    tokens_L = jnp.asarray(tokens, jnp.int32)
    return Guess(Stand(tokens_L, (), jnp.int32(1)), tokens_L[None], jnp.bool_(True))

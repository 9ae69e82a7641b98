# pyright: reportArgumentType=false, reportCallIssue=false
"""Outlooks and tables made by hand."""

import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftState
from jaxdave.core.prediction import Prediction
from jaxdave.core.state import PolicyState
from jaxdave.drafting.tree_table import CONTEXT_SHAPE, Leaf, TreeTable


def looking(scores, blocks, is_open) -> DraftContext:
    """An outlook of a row whose prediction says only how sure it is."""
    score_L = jnp.asarray(scores, jnp.float32)
    none = jnp.zeros((1, len(scores)), jnp.int32)
    pred = Prediction(none, *[score_L[None]] * 4, none, score_L[None])
    masks = jnp.asarray(is_open, bool), jnp.asarray(blocks, jnp.int32)
    return DraftContext(
        simulate=None,
        run_ahead=None,
        pred=pred,
        open_L=masks[0],
        block_L=masks[1],
        is_ended=lambda tokens_L: jnp.bool_(False),
        row=None,
        mask_id=-9,
        params=None,
        memory=(),
        with_tokens=None,
    )


def same_everywhere(leaf: Leaf, edge: float = 0.5) -> TreeTable:
    """A table that does not look at its contexts."""
    return TreeTable(edge, ((leaf,) * CONTEXT_SHAPE[1],) * CONTEXT_SHAPE[0])


def guess_of(tokens) -> DraftState:
    """A stand that a row knows to be next, to be evaluated as it is."""
    tokens_L = jnp.asarray(tokens, jnp.int32)
    return DraftState(
        PolicyState(tokens_L, (), jnp.int32(1)), tokens_L[None], jnp.bool_(True)
    )

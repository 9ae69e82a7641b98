"""Draft trees: the states that one-token steps are most likely to visit.

A nested draft bets on one order of the positions. A tree spreads its budget over the
orders that were seen when the model was calibrated: a slot is a set of places in the
last prediction's order, e.g. the best and the third best of what is open. Orders that
meet again share their slots. Source: the calibrated graphs of Spiffy (arXiv
2509.18085), with sets in place of paths.
"""

import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.draft_api import DraftContext, DraftFn, DraftSet, DraftState
from jaxdave.core.policy_api import Policy
from jaxdave.drafting.nested import nested
from jaxdave.drafting.tree_table import (
    CONTEXT_SHAPE,
    MAX_PLACES,
    NUM_GAPS,
    OPEN_COUNTS,
    TreeTable,
    pack,
    table_key,
)
from jaxdave.policies.basic import static


def draft_order(context: DraftContext) -> jax.Array:
    """Place of each open position [L] in the order that the last prediction says."""
    score_L, block_L, open_L = context.pred.score[0], context.block_L, context.open_L
    at_L = jnp.arange(score_L.shape[0], dtype=jnp.int32)
    sooner_LL = score_L[None, :] > score_L[:, None]
    sooner_LL |= (score_L[None, :] == score_L[:, None]) & (
        at_L[None, :] < at_L[:, None]
    )
    sooner_LL &= block_L[None, :] == block_L[:, None]
    sooner_LL |= block_L[None, :] < block_L[:, None]
    return jnp.sum(sooner_LL & open_L[None, :], axis=1, dtype=jnp.int32)


def open_count_index(context: DraftContext) -> jax.Array:
    """Which of `LEFTS` counts the open positions of the first block with any."""
    open_L, block_L = context.open_L, context.block_L
    active = jnp.min(jnp.where(open_L, block_L, block_L[-1]))
    left = jnp.sum(open_L & (block_L == active), dtype=jnp.int32)
    return jnp.sum(left > jnp.asarray(OPEN_COUNTS, jnp.int32), dtype=jnp.int32)


def score_gaps(context: DraftContext, place_L: jax.Array) -> jax.Array:
    """By how much each of the first places outscores the next one of its block.

    [CLOSE]; infinite where there is no next one in the block.
    """
    known_L = context.open_L & (context.pred.token[0] >= 0)
    at_P = jnp.arange(NUM_GAPS + 1, dtype=jnp.int32)
    is_at_PL = (place_L[None] == at_P[:, None]) & known_L[None]
    score_P = jnp.sum(jnp.where(is_at_PL, context.pred.score[:1], 0.0), axis=1)
    block_P = jnp.max(jnp.where(is_at_PL, context.block_L[None], -1), axis=1)
    same_P = (block_P[:-1] == block_P[1:]) & (block_P[:-1] >= 0)
    return jnp.where(same_P, score_P[:-1] - score_P[1:], jnp.inf)


@functools.cache
def tree(table: TreeTable) -> DraftFn:
    """The draft function of a table, for policies of one token a step, the best first.

    At a temperature, where every step draws its tokens anew, use `draft.nested`.
    """

    def draft(context: DraftContext, first: DraftState, budget: int) -> DraftSet:
        place_L = draft_order(context)
        is_close = score_gaps(context, place_L) < table.edge
        close = jnp.where(jnp.any(is_close), jnp.argmax(is_close), NUM_GAPS)
        leaf = open_count_index(context), close.astype(jnp.int32)
        code_KP, worth_K = (jnp.asarray(a)[leaf] for a in pack(table, budget))
        near_L = context.open_L & (place_L < MAX_PLACES)
        code_KL = code_KP[:, jnp.minimum(place_L, MAX_PLACES - 1)] * near_L[
            None
        ].astype(jnp.int8)
        pred, first_L = context.pred, first.tokens_NL[0]
        said_KL = jnp.where(code_KL == 2, pred.runner_up[:1], pred.token[:1])
        tokens_KL = jnp.where(code_KL > 0, said_KL, first_L[None])
        depth_K = jnp.sum(code_KP > 0, axis=1, dtype=jnp.int32)
        is_there_K = jnp.sum(code_KL > 0, axis=1, dtype=jnp.int32) == depth_K
        is_told_K = jnp.all((code_KL == 0) | (said_KL >= 0), axis=1)
        valid_K = is_there_K & is_told_K & ~jax.vmap(context.ended)(tokens_KL)
        valid_K = valid_K.at[0].set(first.valid)
        return DraftSet(tokens_KL[:, None], depth_K, valid_K, worth_K)

    return draft


@functools.cache
def subsets(length: int) -> DraftFn:
    """Every set of what is open in a block of up to four, then nested ones.

    Needs no calibration: with 16 drafts no order inside the block is missed.
    """
    sets = [
        tuple(2 * place for place in some)
        for size in range(1, length + 1)
        for some in itertools.combinations(range(length), size)
    ]
    by_left = tuple(
        tuple((s, 0.8 ** len(s)) for s in sets if all(one < 2 * left for one in s))
        for left in (*OPEN_COUNTS, MAX_PLACES)
    )
    return tree(TreeTable(0.0, tuple((leaf,) * CONTEXT_SHAPE[1] for leaf in by_left)))


def tree_or_nested(
    tables: Mapping[str, TreeTable],
    config: ModelConfig,
    policy: Policy,
    *,
    block_length: int | None = None,
    cache: str | None = None,
    temperature: float = 0.0,
) -> DraftFn:
    """The tree of a model's tables where one fits the decode, else `draft.nested`.

    A tree orders one token a step by confidence and does not know later noise, so it
    fits `policies.static(1)` at temperature 0.

    Example:
        draft = best_of(model.tables, model.config, policies.static(1))
        decoder = freedave(model.config, draft=draft)
    """
    table = tables.get(table_key(config, block_length, cache))
    fits = policy == static(1) and temperature == 0
    return tree(table) if table is not None and fits else nested

"""Draft trees: the states that one-token steps are most likely to visit.

A nested draft bets on one order of the positions. A tree spreads its budget over the
orders that were seen when the model was calibrated: a node is a set of places in
the last prediction's order, e.g. the best and the third best of what is open. Orders
that meet again share their nodes. Source: the calibrated graphs of Spiffy (arXiv
2509.18085), with sets in place of paths.
"""

import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.core.draft_api import DraftContext, DraftFn, DraftSet, DraftState
from jaxdave.core.made_by import remembered
from jaxdave.core.policy_api import Policy
from jaxdave.drafting.nested import nested
from jaxdave.drafting.registry import DraftRequest, register
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
    """Rank of each open position in the order that the last prediction says.

    Blocks come in order; inside a block the highest score is first, ties leftmost.

    Args:
        context: What is known of the row.

    Returns:
        Ranks from 0, int32 [L]; meaningless at positions that are not open.
    """
    score_L, block_L, open_L = context.pred.score[0], context.block_L, context.open_L
    index_L = jnp.arange(score_L.shape[0], dtype=jnp.int32)
    # [i, j]: position j comes before position i. Ranks are counted and not
    # sorted, with the tie rule of `policies.common.rank`, so that the order is
    # the one in which the policy would commit.
    is_tied_LL = score_L[None, :] == score_L[:, None]
    before_LL = score_L[None, :] > score_L[:, None]
    before_LL |= is_tied_LL & (index_L[None, :] < index_L[:, None])
    before_LL &= block_L[None, :] == block_L[:, None]
    before_LL |= block_L[None, :] < block_L[:, None]
    return jnp.sum(before_LL & open_L[None, :], axis=1, dtype=jnp.int32)


def open_count_index(context: DraftContext) -> jax.Array:
    """Which entry of `OPEN_COUNTS` the active block's open positions fall under.

    Args:
        context: What is known of the row.

    Returns:
        An index into the first axis of `CONTEXT_SHAPE`, int32.
    """
    open_L, block_L = context.open_L, context.block_L
    # The first block with an open position, or the last block if there is none.
    active = jnp.min(jnp.where(open_L, block_L, block_L[-1]))
    count = jnp.sum(open_L & (block_L == active), dtype=jnp.int32)
    return jnp.sum(count > jnp.asarray(OPEN_COUNTS, jnp.int32), dtype=jnp.int32)


def score_gaps(context: DraftContext, order_L: jax.Array) -> jax.Array:
    """By how much each of the first places outscores the next one of its block.

    Args:
        context: What is known of the row.
        order_L: Ranks of the open positions (see `draft_order`).

    Returns:
        float32 [NUM_GAPS]; infinite where the block has no next place.
    """
    known_L = context.open_L & (context.pred.token[0] >= 0)
    # One-hot over positions: place p takes the score and the block of the position
    # whose rank is p, [P, L] -> [P].
    rank_P = jnp.arange(NUM_GAPS + 1, dtype=jnp.int32)
    has_rank_PL = (order_L[None] == rank_P[:, None]) & known_L[None]
    score_P = jnp.sum(jnp.where(has_rank_PL, context.pred.score[:1], 0.0), axis=1)
    block_P = jnp.max(jnp.where(has_rank_PL, context.block_L[None], -1), axis=1)
    # A new block begins at its own best place: its score says
    # nothing of the order in the block before it.
    same_P = (block_P[:-1] == block_P[1:]) & (block_P[:-1] >= 0)
    return jnp.where(same_P, score_P[:-1] - score_P[1:], jnp.inf)


def order_by_steps(
    context: DraftContext, num_places: int
) -> tuple[jax.Array, jax.Array]:
    """`draft_order` and `score_gaps` where every step draws its tokens anew.

    Noise is keyed by the step, so that the token of a position, and its score, depend
    on the step that commits it: step k takes the position whose token of step k scores
    highest among those that the steps before it have left.

    Args:
        context: What is known of the row; its prediction has a depth for each step.
        num_places: How many steps are followed.

    Returns:
        (ranks of the open positions, int32 [L]: `MAX_PLACES` where no step that is
        followed takes it; gaps, float32 [NUM_GAPS]).
    """
    score_DL, block_L = context.pred.score, context.block_L
    depths, size = score_DL.shape
    index_L = jnp.arange(size, dtype=jnp.int32)

    def take(open_L: jax.Array, step: jax.Array):
        active = jnp.min(jnp.where(open_L, block_L, block_L[-1]))
        rival_L = open_L & (block_L == active)
        score_L = score_DL[jnp.minimum(step, depths - 1)]
        score_L = jnp.where(rival_L, score_L, -jnp.inf)
        best = jnp.argmax(score_L).astype(jnp.int32)
        is_best_L = rival_L & (index_L == best)
        second = jnp.max(jnp.where(is_best_L, -jnp.inf, score_L))
        # Without a rival of its own block a choice is not close.
        has_rival = jnp.any(rival_L & ~is_best_L)
        gap = jnp.where(has_rival, score_L[best] - second, jnp.inf)
        return open_L & ~is_best_L, (is_best_L, gap)

    steps = jnp.arange(max(num_places, NUM_GAPS), dtype=jnp.int32)
    _, (is_taken_PL, gap_P) = jax.lax.scan(take, context.open_L, steps)
    order_L = jnp.min(jnp.where(is_taken_PL, steps[:, None], MAX_PLACES), axis=0)
    return order_L, gap_P[:NUM_GAPS]


def ends_step(tokens_per_step: int) -> np.ndarray:
    """Where a gap between neighbours in the order lies between two steps.

    Args:
        tokens_per_step: Tokens that a step of the policy commits.

    Returns:
        True for each gap that does, bool [NUM_GAPS].
    """
    return np.arange(1, NUM_GAPS + 1) % tokens_per_step == 0


def tree(
    table: TreeTable, temperature: float = 0.0, tokens_per_step: int = 1
) -> DraftFn:
    """The draft function of a table, for policies that commit the best first.

    A table that was calibrated at temperature 0 serves any: it names places in an order
    of confidence. At a temperature the tokens at the places are those that the step
    which fills them will draw.

    Args:
        table: Which sets of places to draft, by context.
        temperature: Temperature of the decode. Scores are log-odds of the tempered
            distribution, so that close calls are told apart by gaps at temperature 1.

    Returns:
        A draft function without memory.
    """
    # One object, and with it one program, however the arguments are given.
    return _tree(table, float(temperature), tokens_per_step)


@functools.cache
@remembered
def _tree(table: TreeTable, temperature: float, tokens_per_step: int) -> DraftFn:
    edge = table.edge / temperature if temperature > 0 else table.edge

    def propose(context: DraftContext, first: DraftState, num_drafts: int) -> DraftSet:
        pred = context.pred
        packed = pack(table, num_drafts, tokens_per_step)
        depths = pred.token.shape[0]
        if depths > 1:
            num_places = int(np.max(np.nonzero(packed.code)[3], initial=0)) + 1
            order_L, gap_P = order_by_steps(context, num_places)
        else:
            order_L = draft_order(context)
            gap_P = score_gaps(context, order_L)
        # The context of a leaf: how much is open, and the first close call. Between
        # places that one step commits there is none.
        is_close = (gap_P < edge) & ends_step(tokens_per_step)
        close = jnp.where(jnp.any(is_close), jnp.argmax(is_close), NUM_GAPS)
        leaf = open_count_index(context), close.astype(jnp.int32)
        # All contexts are constants of the program,
        # [open, close, K, P]; this row's is picked.
        code_KP, worth_K = (jnp.asarray(a)[leaf] for a in packed)
        # code: 0 leaves a place open, 1 drafts its best token, 2 its runner-up.
        # From places to positions, [K, P] -> [K, L], by each position's rank.
        in_table_L = context.open_L & (order_L < MAX_PLACES)
        place_L = jnp.minimum(order_L, MAX_PLACES - 1)
        code_KL = code_KP[:, place_L]
        code_KL = code_KL * in_table_L[None].astype(jnp.int8)
        token_KL, runner_up_KL = pred.token[:1], pred.runner_up[:1]
        if depths > 1:
            # The places of a node are filled in their order, one a step.
            is_filled_KP = (code_KP > 0).astype(jnp.int32)
            step_KP = jnp.cumsum(is_filled_KP, axis=1) - is_filled_KP
            step_KL = jnp.minimum(step_KP[:, place_L], depths - 1)
            token_KL, runner_up_KL = (
                jnp.take_along_axis(part_DL, step_KL, axis=0)
                for part_DL in (pred.token, pred.runner_up)
            )
        first_L = first.tokens_NL[0]
        drafted_KL = jnp.where(code_KL == 2, runner_up_KL, token_KL)
        tokens_KL = jnp.where(code_KL > 0, drafted_KL, first_L[None])
        size_K = jnp.sum(code_KP > 0, axis=1, dtype=jnp.int32)
        # A step that ends a block may commit fewer tokens.
        depth_K = -(-size_K // tokens_per_step)
        # A draft is valid if all its places exist in the window and have a prediction.
        is_complete_K = jnp.sum(code_KL > 0, axis=1, dtype=jnp.int32) == size_K
        is_predicted_K = jnp.all((code_KL == 0) | (drafted_KL >= 0), axis=1)
        valid_K = is_complete_K & is_predicted_K
        valid_K &= ~jax.vmap(context.is_ended)(tokens_KL)
        valid_K = valid_K.at[0].set(first.valid)
        return DraftSet(tokens_KL[:, None], depth_K, valid_K, worth_K)

    return DraftFn(propose)


@functools.cache
@remembered
def subsets(length: int) -> DraftFn:
    """Drafts of every subset of a short block's open places, then nested ones.

    Needs no calibration: with 16 drafts no order inside a block of four is missed.

    Args:
        length: Block length, at most four for this to be of use.

    Returns:
        A draft function without memory.
    """
    # Every subset of the places, best tokens only, small ones first; 0.8 per token is
    # the assumed chance of acceptance, as for nested drafts.
    sets = [
        tuple(2 * place for place in some)
        for size in range(1, length + 1)
        for some in itertools.combinations(range(length), size)
    ]
    # Places that are not open in a context cannot be filled.
    by_left = tuple(
        tuple((s, 0.8 ** len(s)) for s in sets if all(one < 2 * left for one in s))
        for left in (*OPEN_COUNTS, MAX_PLACES)
    )
    # An edge of 0 makes no gap a close call, so
    # the leaf of the last column is always used.
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
    """The tree of a model's tables where one fits the decode, else `nested`.

    A tree orders tokens by confidence, so it fits `policies.static`; at a temperature,
    where each step draws its tokens anew, it fits one token a step.

    Args:
        tables: A model's calibrated tables, `Model.tables`.
        config: The model's config.
        policy: What is decoded.
        block_length: Block length of the decode; None: the model's.
        cache: Cache rule of a full-attention model; None: the usual one.
        temperature: Temperature of the decode.

    Returns:
        A draft function.

    Example:
        draft = tree_or_nested(model.tables, model.config, policies.static(1))
        decoder = jaxdave.freedave(model.config, draft=draft)
    """
    count = policy.tokens_per_step
    if count is None or policy != static(count) or (temperature > 0 and count > 1):
        return nested
    table = tables.get(table_key(config, block_length, cache, count))
    return nested if table is None else tree(table, temperature, count)


@register("tree")
def make_tree(request: DraftRequest) -> DraftFn:
    """The model's draft tree where one fits the decode, else nested drafts.

    Args:
        request: The decode.

    Returns:
        The draft function of `tree_or_nested`.
    """
    return tree_or_nested(
        request.tables,
        request.config,
        request.policy,
        block_length=request.block_length,
        cache=request.cache,
        temperature=request.temperature,
    )

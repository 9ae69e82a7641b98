"""A network of full cost whose drafts are accepted with a set probability.

Random weights predict noise, so the share of their drafts that is accepted means
nothing. Here the real network is evaluated and its logits are read, so that it costs
what it costs, and then a number that outweighs them all is added to one id of each
position. The id is a hash of the position: always the same one at a "steady" position;
at others it is a different one for as long as the token to the left is masked. Blocks
fill from left to right. So a draft of k more tokens is accepted if the next k positions
are steady, each with the set probability, and the text is the hash's with any drafts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import BlockStates, ModelFns
from jaxdave.core.prediction import HeadSummary
from jaxdave.models.block_causal import block_causal_model

NUM_IDS = 64
"""Only ids below this come out; none of the tokenizers has a stop id among them."""

DIGIT_BASE = 128
"""Positions are carried in two digits of this base, which bfloat16 holds exactly."""

# The bonus falls along a block, so that the leftmost position is the most confident.
_MAX_BONUS, _BONUS_RANGE = 200.0, 150.0


@functools.cache
def scripted_model(config: ModelConfig, acceptance: float, numerics: str) -> ModelFns:
    """Build a block-causal model whose predictions are replaced by the script's.

    Args:
        config: a block-causal model.
        acceptance: probability that a position is steady, in [0, 1].
        numerics: "guarded", "exact" or "fast".

    Returns:
        The model's functions; one object for equal arguments, so that decoders share
        their compiled programs.
    """
    inner = block_causal_model(config, numerics=numerics)  # type: ignore[arg-type]
    assert inner.evaluate_blocks is not None and inner.recheck is not None
    inner_block_states, inner_recheck = inner.evaluate_blocks, inner.recheck
    inner_fast_prefill = inner.fast_prefill

    # Logits are computed from hidden vectors alone, so whatever the script needs to
    # know travels with them: `_append_marks` adds it as further components.
    def mark_window(tokens_T, start, hidden_LE, cache):
        position_L = start + jnp.arange(hidden_LE.shape[0], dtype=jnp.int32)
        left_known_L = tokens_T[jnp.maximum(position_L - 1, 0)] != config.mask_id
        return _append_marks(hidden_LE, position_L, left_known_L), cache

    def with_marks(inner_prefill):
        def prefill(params, tokens_T, begin, start, *rest):
            hidden_LE, cache = inner_prefill(params, tokens_T, begin, start, *rest)
            return mark_window(tokens_T, start, hidden_LE, cache)

        return prefill

    def recheck(params, tokens_T, verified_until, start, *rest):
        hidden_LE, cache = inner_recheck(params, tokens_T, verified_until, start, *rest)
        return mark_window(tokens_T, start, hidden_LE, cache)

    def block_states(params, states: BlockStates, start, end, cache):
        hidden_MPE, added = inner_block_states(params, states, start, end, cache)
        length = states.tokens_MP.shape[1]
        in_block_P = jnp.arange(length, dtype=jnp.int32)
        position_MP = start + states.block_M[:, None] * length + in_block_P[None]
        known_MP = states.tokens_MP != config.mask_id
        # The left neighbour of a block's first position is the last one of the state
        # that precedes the block in its chain; before the window all is known.
        before_M = jnp.maximum(states.block_M - 1, 0)[:, None]
        parent_M = jnp.take_along_axis(states.chain_MJ, before_M, axis=1)[:, 0]
        first_M = (states.block_M == 0) | known_MP[parent_M, -1]
        left_known_MP = jnp.concatenate([first_M[:, None], known_MP[:, :-1]], axis=1)
        return _append_marks(hidden_MPE, position_MP, left_known_MP), added

    def script_of(hidden_RE):
        """The id that outweighs all others at each vector, and by what."""
        marks = hidden_RE[:, config.hidden :].astype(jnp.float32)
        position_R = (marks[:, 0] * DIGIT_BASE + marks[:, 1]).astype(jnp.int32)
        final_R = is_steady(position_R, acceptance) | (marks[:, 2] > 0.5)
        offset_R = jnp.where(final_R, 0, NUM_IDS // 2).astype(jnp.int32)
        id_R = token_at(position_R) + offset_R
        fall = _BONUS_RANGE / config.block_length
        in_block_R = (position_R % config.block_length).astype(jnp.float32)
        return id_R % NUM_IDS, _MAX_BONUS - fall * in_block_R

    def with_script(inner_logits: Callable[..., Any], ids_of):
        def logits(params, hidden_RE, selection):
            raw = inner_logits(params, hidden_RE[:, : config.hidden], selection)
            id_R, bonus_R = script_of(hidden_RE)
            hit = ids_of(selection) == id_R[:, None]
            return raw + jnp.where(hit, bonus_R[:, None], 0.0)

        return logits

    def with_script_of_all(inner_summary: Callable[..., HeadSummary]):
        def summarize_head(params, hidden_RE, **settings):
            own_RE = hidden_RE[:, : config.hidden]
            id_R, bonus_R = script_of(hidden_RE)
            logit_R = inner.logits_at(params, own_RE, id_R[:, None])[:, 0]
            summary = inner_summary(params, own_RE, **settings)
            return outweigh(summary, id_R, logit_R, bonus_R)

        return summarize_head

    def chunk_ids(first):
        return (first + jnp.arange(inner.head_chunk, dtype=jnp.int32))[None]

    def same_ids(ids_RM):
        return ids_RM

    return inner._replace(
        prefill=with_marks(inner.prefill),
        fast_prefill=inner_fast_prefill and with_marks(inner_fast_prefill),
        evaluate_blocks=block_states,
        recheck=recheck,
        logits=with_script(inner.logits, chunk_ids),
        logits_at=with_script(inner.logits_at, same_ids),
        summarize_head=inner.summarize_head
        and with_script_of_all(inner.summarize_head),
    )


def outweigh(summary: HeadSummary, id_R, logit_R, bonus_R) -> HeadSummary:
    """A summary of logits after so much was added to one that it is the best.

    Args:
        summary: Of the logits as they were, arrays [R].
        id_R: The ids that it is added to, int32 [R].
        logit_R: Their logits as they were, float32 [R].
        bonus_R: What is added, float32 [R].

    Returns:
        The summary, arrays [R].
    """
    token, runner_up, top, second, rest, moment = summary
    # If it was the best before, its rivals are the same. Otherwise the best before is
    # the second now, sums are relative to it, and the id itself counts no more.
    below, own_below = top - second, top - logit_R
    rescale, own = jnp.exp(-below), jnp.exp(-own_below)
    all_rest = 1.0 + rescale * rest - own
    all_moment = rescale * (below * rest + moment) - own_below * own
    is_same = token == id_R
    return HeadSummary(
        token=id_R,
        runner_up=jnp.where(is_same, runner_up, token),
        top=logit_R + bonus_R,
        second=jnp.where(is_same, second, top),
        rest=jnp.where(is_same, rest, jnp.maximum(all_rest, 1.0)),
        moment=jnp.where(is_same, moment, jnp.maximum(all_moment, 0.0)),
    )


def scripted_calls(
    prompt_length: int,
    max_new_tokens: int,
    block_length: int,
    draft_steps: int,
    acceptance: float,
) -> int:
    """Count the network calls of a scripted decode.

    Counted from steady positions alone: a verify call commits one token, and one more
    for every accepted draft. A decode can take fewer calls, as a deeper draft may
    have evaluated what follows an unsteady position already.

    Args:
        prompt_length: tokens of the prompt.
        max_new_tokens: tokens of the answer, whose last block is decoded whole.
        block_length: tokens of a block.
        draft_steps: drafts of a call.
        acceptance: probability that a position is steady.

    Returns:
        Calls, the prefill included.
    """
    end = -(-(prompt_length + max_new_tokens) // block_length) * block_length
    positions = np.arange(prompt_length, end, dtype=np.int32)
    accepted = is_steady(positions, acceptance)
    num_known, calls = 1, 1
    while num_known < len(positions):
        ahead = accepted[num_known : num_known + draft_steps - 1]
        run = len(ahead) if ahead.all() else int(np.argmin(ahead))
        num_known, calls = num_known + 1 + run, calls + 1
    return calls


def is_steady(position, acceptance: float):
    """Tell the positions that are predicted right from a masked left neighbour.

    Args:
        position: int32 positions, NumPy or JAX, any shape.
        acceptance: the share of positions that are, in [0, 1].

    Returns:
        bool, of the shape of `position`.
    """
    # 16 bits: exact in float32, so NumPy and JAX agree.
    return (_hash(position) >> np.uint32(16)) < np.uint32(round(acceptance * 65536))


def token_at(position):
    """Look up the scripted token of positions.

    Args:
        position: int32 positions, NumPy or JAX, any shape.

    Returns:
        int32 ids below `NUM_IDS`, of the shape of `position`.
    """
    return (_hash(position) % np.uint32(NUM_IDS)).astype(np.int32)


def _hash(position):
    """A 32-bit integer hash (multiply and xorshift), the same in NumPy and JAX."""
    x = position.astype(np.uint32) * np.uint32(0x9E3779B1)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x85EBCA77)
    return x ^ (x >> np.uint32(13))


def _append_marks(hidden, position, left_known):
    """Hidden vectors [..., E] with three more components: position, left neighbour."""
    marks = [
        position // DIGIT_BASE,
        position % DIGIT_BASE,
        left_known.astype(jnp.int32),
    ]
    extra = jnp.stack([mark.astype(hidden.dtype) for mark in marks], axis=-1)
    return jnp.concatenate([hidden, extra], axis=-1)

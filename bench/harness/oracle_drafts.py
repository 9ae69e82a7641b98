"""Drafts by an oracle: the states that the policy will visit, as far as a rule allows.

Nobody can draft them, as they are taken from a finished decode. What they cost is a
lower bound for real drafts: with tokens limited to those that the last prediction ranks
first, for every draft function that chooses an order and takes the tokens from there.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.draft_api import (
    DraftContext,
    DraftedParams,
    DraftFn,
    DraftSet,
    DraftState,
)
from jaxdave.decoding import loop as decode_loop
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import prefill_prompts

NEVER = np.iinfo(np.int32).max


class DecodedPath(NamedTuple):
    """What a decode has committed, and when.

    Attributes:
        tokens_T: the sequence at its end, int32 [T].
        step_T: the policy step that committed each position, int32 [T]; `NEVER` where
            none did.
    """

    tokens_T: np.ndarray
    step_T: np.ndarray


def decode_path(decoder: Decoder, params: Any, prompt: list[int]) -> DecodedPath:
    """Decode a prompt without drafts, state by state.

    Args:
        decoder: a decoder of a policy that never takes a token back.
        params: the model's parameters.
        prompt: token ids.

    Returns:
        The path.
    """
    state = prefill_prompts(decoder, params, [prompt])
    mask_id = decoder.spec.layout.mask_id
    # Commits of the prefill come before every draft; step 0 is as good as any.
    (tokens_T,) = jax.device_get(state.rows.tokens_T)
    step_T = np.where(tokens_T == mask_id, NEVER, 0).astype(np.int32)
    step = _step(decoder)
    while not bool(state.rows.done.all()):
        (n,) = jax.device_get(state.rows.n)
        state = step(params, jnp.int32(1), state)
        before_T, (tokens_T,) = tokens_T, jax.device_get(state.rows.tokens_T)
        step_T[before_T != tokens_T] = n
    return DecodedPath(tokens_T, step_T)


def count_oracle_calls(
    decoder: Decoder, params: Any, prompt: list[int], path: DecodedPath
) -> int:
    """Decode a prompt with the drafts of its own path.

    Args:
        decoder: a decoder whose draft function is one of `oracle`.
        params: the model's parameters.
        prompt: token ids.
        path: its path, by the same policy.

    Returns:
        Calls of the network, the prefill included.

    Raises:
        ValueError: the tokens are not those of the path.
    """
    drafted = DraftedParams(params, jax.tree.map(jnp.asarray, path))
    state = prefill_prompts(decoder, drafted, [prompt])
    step = _step(decoder)
    while not bool(state.rows.done.all()):
        state = step(drafted, jnp.int32(decoder.spec.num_drafts), state)
    rows = jax.device_get(state.rows)
    # Longer windows pad sequences further.
    length = min(len(rows.tokens_T[0]), len(path.tokens_T))
    if (rows.tokens_T[0, :length] != path.tokens_T[:length]).any():
        raise ValueError("an oracle's drafts have changed the text")
    return 1 + int(rows.stats.verify[0] + rows.stats.refresh[0])


@functools.cache
def oracle(num_ranks: int | None) -> DraftFn:
    """The draft function that knows the path.

    Args:
        num_ranks: 1: tokens must be those that the last prediction ranks first; 2: or
            second; None: any.

    Returns:
        A draft function whose parameters are a `DecodedPath`.
    """

    def propose(context: DraftContext, first: DraftState, num_drafts: int) -> DraftSet:
        path, row, pred = context.params, context.row, context.pred
        position_L = row.start + jnp.arange(context.open_L.shape[0], dtype=jnp.int32)
        token_L = jnp.take(path.tokens_T, position_L, mode="fill", fill_value=0)
        step_L = jnp.take(path.step_T, position_L, mode="fill", fill_value=NEVER)
        depth_K = jnp.arange(num_drafts, dtype=jnp.int32)
        # Draft k is the state before step n + k.
        is_filled_KL = step_L[None] < row.n + depth_K[:, None]
        is_filled_KL &= context.open_L[None]
        # Prompts that calls are timed with have another path, and states of their own.
        is_filled_KL &= (depth_K > 0)[:, None]
        tokens_KL = jnp.where(is_filled_KL, token_L[None], first.tokens_NL[0][None])
        is_ranked_L = jnp.ones_like(context.open_L)
        if num_ranks is not None:
            is_ranked_L = pred.token[0] == token_L
        if num_ranks == 2:
            is_ranked_L |= (pred.runner_up[0] == token_L) & (pred.token[0] >= 0)
        valid_K = jnp.all(~is_filled_KL | is_ranked_L[None], axis=1)
        valid_K &= ~jax.vmap(context.is_ended)(tokens_KL)
        valid_K = valid_K.at[0].set(first.valid)
        worth_K = jnp.ones((num_drafts,), jnp.float32)
        return DraftSet(tokens_KL[:, None], depth_K, valid_K, worth_K)

    return DraftFn(propose, takes_params=True)


@functools.cache
def _step(decoder: Decoder):
    """A call of so many drafts at most, compiled; its numbers are taken as they are."""
    spec = decoder.spec

    def step(params, max_num_drafts, state):
        runtime = spec.runtime(1)._replace(max_num_drafts=max_num_drafts)
        return decode_loop.step(spec, params, runtime, state)[0]

    return jax.jit(step)

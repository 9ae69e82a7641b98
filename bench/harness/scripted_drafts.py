"""A network that costs what it costs, and whose drafts hold as often as they are told.

Random weights say nothing, so neither does how often their drafts are confirmed. Here
the real network is evaluated and its logits are read, and a number is added to one id
of each position that outweighs them all. Which id: a hash of the position, always the
same where the position is steady, and where it is not, another one for as long as the
token to its left is masked. Blocks fill from left to right. So a draft of k more tokens
holds if k positions are steady, each with the set probability, and the text is the
hash's whatever the drafts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import BlockStates, ModelFns
from jaxdave.engine.decoders import MAX_DRAFT_STEPS
from jaxdave.models.block_causal import FAST_CHUNK, block_causal_model

IDS = 64
"""Tokens that come out: ids below this, which no tokenizer of ours uses as a stop."""
DIGIT = 128
"""Positions are carried in two digits, which are exact in bfloat16 too."""
_LOUD, _FALL = 200.0, 150.0


@functools.cache
def scripted(config: ModelConfig, acceptance: float, numerics: str) -> ModelFns:
    """The network of a block-causal model with its predictions overruled."""
    positions = config.max_positions + 8 * MAX_DRAFT_STEPS + FAST_CHUNK
    inner = block_causal_model(config, numerics=numerics, positions=positions)
    assert inner.evaluate_blocks is not None and inner.recheck is not None
    of_pieces, again, opening = inner.evaluate_blocks, inner.recheck, inner.fast_prefill

    def of_window(tokens_T, start, hidden_LE, cache):
        at_L = start + jnp.arange(hidden_LE.shape[0], dtype=jnp.int32)
        left_L = tokens_T[jnp.maximum(at_L - 1, 0)] != config.mask_id
        return _marked(hidden_LE, at_L, left_L), cache

    def primed(call):
        def prefill(params, tokens_T, begin, start, *rest):
            found = call(params, tokens_T, begin, start, *rest)
            return of_window(tokens_T, start, *found)

        return prefill

    def recheck(params, tokens_T, solid, start, *rest):
        found = again(params, tokens_T, solid, start, *rest)
        return of_window(tokens_T, start, *found)

    def evaluate_blocks(params, cut: BlockStates, start, end, cache):
        hidden_MPE, added = of_pieces(params, cut, start, end, cache)
        size = cut.tokens_MP.shape[1]
        in_block_P = jnp.arange(size, dtype=jnp.int32)
        at_MP = start + cut.block_M[:, None] * size + in_block_P[None]
        known_MP = cut.tokens_MP != config.mask_id
        before_M = jnp.maximum(cut.block_M - 1, 0)[:, None]
        parent_M = jnp.take_along_axis(cut.chain_MJ, before_M, axis=1)[:, 0]
        first_M = (cut.block_M == 0) | known_MP[parent_M, -1]
        left_MP = jnp.concatenate([first_M[:, None], known_MP[:, :-1]], axis=1)
        return _marked(hidden_MPE, at_MP, left_MP), added

    def overruled(read: Callable[..., Any], ids_of):
        def logits(params, hidden_RE, asked):
            raw = read(params, hidden_RE[:, : config.hidden], asked)
            digits = hidden_RE[:, config.hidden :].astype(jnp.float32)
            place_R = (digits[:, 0] * DIGIT + digits[:, 1]).astype(jnp.int32)
            is_steady_R = steady(place_R, acceptance) | (digits[:, 2] > 0.5)
            id_R = token(place_R) + jnp.where(is_steady_R, 0, IDS // 2).astype(
                jnp.int32
            )
            fall = _FALL / config.block_length
            loud_R = _LOUD - fall * (place_R % config.block_length).astype(jnp.float32)
            hit = ids_of(asked) == (id_R % IDS)[:, None]
            return raw + jnp.where(hit, loud_R[:, None], 0.0)

        return logits

    def of_chunk(first):
        return (first + jnp.arange(inner.head_chunk, dtype=jnp.int32))[None]

    return inner._replace(
        prefill=primed(inner.prefill),
        fast_prefill=opening and primed(opening),
        evaluate_blocks=evaluate_blocks,
        recheck=recheck,
        logits=overruled(inner.logits, of_chunk),
        logits_at=overruled(inner.logits_at, lambda ids_RM: ids_RM),
    )


def fewest_calls(begin: int, room: int, draft_steps: int, acceptance: float) -> int:
    """Calls of a decode that spends none but its prefill and its rounds.

    Counted from which positions are steady alone: a round makes one token known, and
    one more for every draft that holds.
    """
    holds = steady(np.arange(begin, begin + room, dtype=np.int32), acceptance)
    known, calls = 1, 1
    while known < room:
        ahead = holds[known : known + draft_steps - 1]
        run = len(ahead) if ahead.all() else int(np.argmin(ahead))
        known, calls = known + 1 + run, calls + 1
    return calls


def steady(place, acceptance: float):
    """Whether positions hold what a stale prediction says of them."""
    # 16 bits: exact in float32 whichever library counts.
    return (_mixed(place) >> np.uint32(16)) < np.uint32(round(acceptance * 65536))


def token(place):
    """The id of a position, below `IDS`."""
    return (_mixed(place) % np.uint32(IDS)).astype(np.int32)


def _mixed(place):
    """A hash of positions, of numpy or JAX."""
    x = place.astype(np.uint32) * np.uint32(0x9E3779B1)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x85EBCA77)
    return x ^ (x >> np.uint32(13))


def _marked(hidden, place, left):
    """Vectors [..., E], their position, and whether the token to the left is known."""
    marks = [place // DIGIT, place % DIGIT, left.astype(jnp.int32)]
    more = jnp.stack([mark.astype(hidden.dtype) for mark in marks], axis=-1)
    return jnp.concatenate([hidden, more], axis=-1)

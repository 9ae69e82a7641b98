"""How a model's attention and cache rule shape a decode: its window and its model."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxdave.core.config import ModelConfig, check_block_length
from jaxdave.core.model_api import ModelFns
from jaxdave.core.window import CacheRule, WindowLayout, lookahead_length
from jaxdave.engine.decode_config import CACHE_RULES
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.causal_context import causal_context_model
from jaxdave.models.full_attention import cached_model, uncached_model


class DecodeLayout(NamedTuple):
    """The layout of a decode, and what it asks of model and policy.

    Attributes:
        layout: Geometry of blocks and window.
        make_model: Makes the model's functions; one object per layout, as specs are
            cached by it.
        first_alone: A block's first token is decided alone: its predictor lies outside
            the block, and so outside what the block's cache covers.
    """

    layout: WindowLayout
    make_model: Callable[..., ModelFns]
    first_alone: bool


def decode_layout(
    config: ModelConfig,
    block_length: int,
    cache: str | None,
    num_drafts: int,
    max_new_tokens: int,
    *,
    step_tokens: int = 1,
    early_exit: bool = True,
) -> DecodeLayout:
    """Lay out a decode.

    Args:
        config: The model's config.
        block_length: Tokens of a block.
        cache: "none", "prefix" or "dual" for full attention (None: "dual"); None for
            block-causal models, whose cache is exact.
        num_drafts: Drafts of the largest call.
        max_new_tokens: Positions that may be decoded.
        step_tokens: Tokens that a policy step is taken to commit; drafts of
            block-causal models reach the further the more there are.
        early_exit: An end token ends the row.

    Returns:
        The layout.

    Raises:
        ValueError: The model has no such cache rule, or the block length does not fit.
    """
    if cache is not None and cache not in CACHE_RULES:
        raise ValueError(
            f"cache={cache!r} is unknown; use one of {', '.join(CACHE_RULES)}"
        )
    shifts_logits = config.logits_shift != "none"
    if config.attention != "full":
        return _block_causal_layout(
            config, block_length, cache, num_drafts, step_tokens, early_exit
        )
    if block_length < 1 or max_new_tokens % block_length:
        raise ValueError(
            f"block_length={block_length} must divide max_new_tokens={max_new_tokens} "
            "for a full-attention model; change either (equal: one single block)"
        )
    cache = cache or "dual"
    layout = WindowLayout(
        block_length=block_length,
        # Under "dual" what lies to the right of the block is cached too.
        window_length=block_length if cache == "dual" else max_new_tokens,
        mask_id=config.mask_id,
        stop_ids=config.stop_ids,
        # Blocks of full attention only order the
        # decoding, so they begin where the answer does.
        anchored=True,
        cache_rule=CacheRule.NONE,
        early_exit=early_exit,
    )
    if cache == "none":
        return DecodeLayout(layout, uncached_model, False)
    # The cache is that of a block's start, so nothing is decoded past the block's end.
    layout = dataclasses.replace(
        layout, cache_rule=CacheRule.FROZEN, decodable_length=block_length
    )
    return DecodeLayout(layout, cached_model, shifts_logits)


def _block_causal_layout(
    config: ModelConfig,
    block_length: int,
    cache: str | None,
    num_drafts: int,
    step_tokens: int,
    early_exit: bool,
) -> DecodeLayout:
    if cache is not None:
        raise ValueError(
            f"cache={cache!r} is for full-attention models; {config.name!r} is "
            "block-causal and its cache is exact, so leave it out"
        )
    check_block_length(block_length)
    # Blocks are part of the model: counted from position 0, the first one may hold the
    # end of the prompt. Over a causal context the prompt is no part of them.
    is_context = config.attention == "causal_context"
    layout = WindowLayout(
        block_length=block_length,
        window_length=lookahead_length(num_drafts, block_length, step_tokens),
        mask_id=config.mask_id,
        stop_ids=config.stop_ids,
        anchored=is_context,
        early_exit=early_exit,
        step_tokens=step_tokens,
    )
    if is_context:
        return DecodeLayout(layout, _causal_context_maker(block_length), True)
    shifts_logits = config.logits_shift != "none"
    return DecodeLayout(layout, _block_causal_maker(block_length), shifts_logits)


@functools.cache
def _block_causal_maker(block_length: int) -> Callable[..., ModelFns]:
    """One function per block length, as specs are cached by it."""
    return functools.partial(block_causal_model, block_length=block_length)


@functools.cache
def _causal_context_maker(block_length: int) -> Callable[..., ModelFns]:
    """The same for models with causal context."""
    return functools.partial(causal_context_model, block_length=block_length)

"""The geometry of a decode: blocks, window and which model computes them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxdave.core.config import ModelConfig, check_block_length
from jaxdave.core.model_api import ModelFns
from jaxdave.core.window import WindowLayout, lookahead_length, nowhere, past_known
from jaxdave.engine.decode_config import CACHE_RULES
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.full_attention import cached_model, uncached_model


class DecodeLayout(NamedTuple):
    """The geometry of a decode and the model that fits it.

    Attributes:
        layout: Blocks, window and how the window moves.
        make_model: (config, numerics=, positions=) -> the model's functions.
        first_alone: True where a block's first token is decided by a call of its
            own, as its predictor lies outside the block, and outside its cache.
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
) -> DecodeLayout:
    """The layout of a decode.

    Args:
        config: The model.
        block_length: Positions of a block.
        cache: "none", "prefix" or "dual" for full attention (None: "dual"); None for
            block-causal models, whose cache is exact.
        num_drafts: Drafts of the largest call.
        max_new_tokens: Positions that may be decoded after the prompt.

    Returns:
        The layout.

    Raises:
        ValueError: The model cannot use the cache rule, or the block length does not
            fit.
    """
    if cache is not None and cache not in CACHE_RULES:
        raise ValueError(
            f"cache={cache!r} is unknown; use one of {', '.join(CACHE_RULES)}"
        )
    if config.attention == "block_causal":
        return _block_causal_layout(config, block_length, cache, num_drafts)
    if block_length < 1 or max_new_tokens % block_length:
        raise ValueError(
            f"block_length={block_length} must divide max_new_tokens={max_new_tokens} "
            "for a full-attention model; change either (equal: one single block)"
        )
    return _full_attention_layout(config, block_length, cache or "dual", max_new_tokens)


def _block_causal_layout(
    config: ModelConfig, block_length: int, cache: str | None, num_drafts: int
) -> DecodeLayout:
    if cache is not None:
        raise ValueError(
            f"cache={cache!r} is for full-attention models; {config.name!r} is "
            "block-causal and its cache is exact, so leave it out"
        )
    check_block_length(block_length)
    layout = WindowLayout(
        block_length,
        lookahead_length(num_drafts, block_length),
        config.mask_id,
        config.stop_ids,
    )
    return DecodeLayout(
        layout=layout,
        make_model=_block_causal_maker(block_length),
        first_alone=config.logits_shift != "none",
    )


@functools.cache
def _block_causal_maker(block_length: int) -> Callable[..., ModelFns]:
    """One function per block length: programs are cached by it."""
    return functools.partial(block_causal_model, block_length=block_length)


def _full_attention_layout(
    config: ModelConfig, block_length: int, cache: str, max_new_tokens: int
) -> DecodeLayout:
    layout = WindowLayout(
        block_length,
        block_length if cache == "dual" else max_new_tokens,
        config.mask_id,
        config.stop_ids,
        anchored=True,
        slide=nowhere,
    )
    if cache == "none":
        return DecodeLayout(layout=layout, make_model=uncached_model, first_alone=False)
    # What a cache holds is that of a block's start, so nothing is decoded past its end.
    layout = dataclasses.replace(layout, slide=past_known, reach=block_length)
    return DecodeLayout(
        layout=layout,
        make_model=cached_model,
        first_alone=config.logits_shift != "none",
    )

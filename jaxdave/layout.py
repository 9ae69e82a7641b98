"""How a model's attention and cache rule shape a decode: its grid and its network."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxdave.config import ModelConfig, check_block_length
from jaxdave.grid import Grid, ahead, nowhere, past_known
from jaxdave.model.causal import causal_network
from jaxdave.model.full import cached_network, whole_network
from jaxdave.types import Network

CACHES = ("none", "prefix", "dual")


class Layout(NamedTuple):
    """The geometry, how to make the network, and whether a block's first token is
    decided alone (its predictor lies outside the block, and outside its cache)."""

    grid: Grid
    network: Callable[..., Network]
    forced_first: bool


def layout(
    config: ModelConfig, length: int, cache: str | None, slots: int, room: int
) -> Layout:
    """The layout of a decode of `room` tokens with `slots` drafts a call.

    cache: "none", "prefix" or "dual" for full attention (by default "dual"); None for
    block-causal models, whose cache is exact. Raises ValueError for a cache rule that
    the model cannot use and for a block length that does not fit.
    """
    if cache is not None and cache not in CACHES:
        raise ValueError(f"cache={cache!r} is unknown; use one of {', '.join(CACHES)}")
    if config.attention == "block_causal":
        return _causal(config, length, cache, slots)
    if length < 1 or room % length:
        raise ValueError(
            f"block_length={length} must divide max_new_tokens={room} for a "
            "full-attention model; change either (equal: one single block)"
        )
    return _full(config, length, cache or "dual", room)


def _causal(config: ModelConfig, length: int, cache, slots: int) -> Layout:
    if cache is not None:
        raise ValueError(
            f"cache={cache!r} is for full-attention models; {config.name!r} is "
            "block-causal and its cache is exact, so leave it out"
        )
    check_block_length(length)
    grid = Grid(length, ahead(slots, length), config.mask_id, config.stop_ids)
    return Layout(grid, _causal_of(length), config.logits_shift != "none")


@functools.cache
def _causal_of(length: int) -> Callable[..., Network]:
    """One function per block length: programs are cached by it."""
    return functools.partial(causal_network, block_length=length)


def _full(config: ModelConfig, length: int, cache: str, room: int) -> Layout:
    window = length if cache == "dual" else room
    grid = Grid(
        length, window, config.mask_id, config.stop_ids, anchored=True, slide=nowhere
    )
    if cache == "none":
        return Layout(grid, whole_network, False)
    # What a cache holds is that of a block's start, so nothing is decoded past its end.
    grid = dataclasses.replace(grid, slide=past_known, reach=length)
    return Layout(grid, cached_network, config.logits_shift != "none")

"""From what the harness asks for to ids and settings."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval import utils  # pyright: ignore
from lm_eval.models.utils import (  # pyright: ignore
    maybe_truncate,  # pyright: ignore
    normalize_gen_kwargs,  # pyright: ignore
)

from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.eval.likelihood.batching import Question
from jaxdave.integrations.lm_eval.generate_until import Asked
from jaxdave.integrations.lm_eval.options import Options
from jaxdave.io.checkpoint import Model

WINDOW = 2048
"""Tokens of a window of `loglikelihood_rolling`, where the model allows so many."""
_SAMPLING = {"temperature": float, "top_k": int, "top_p": float}
_KNOWN = {"until", "do_sample", "max_gen_toks", *_SAMPLING}
_LOG = logging.getLogger("lm_eval.jaxdave")

Encode = Callable[[str], list[int]]


def generation(
    options: Options, model: Model, encode: Encode, context: str, said: Mapping
) -> Asked:
    """A request for a text.

    What `model_args` names goes before what the task says. A prompt that is too long
    loses its beginning, with a warning. Raises ValueError where no room is left.
    """
    kwargs: dict[str, Any] = {**normalize_gen_kwargs(dict(said), model.max_new_tokens)}
    for name in sorted(set(kwargs) - _KNOWN):
        utils.warning_once(_LOG, f"jaxdave ignores the generation argument {name!r}")
    s, room = options.settings, kwargs["max_gen_toks"]
    if s.max_new_tokens is not None:
        room = s.max_new_tokens
    settings = with_room(_sampled(options, kwargs), model, room)
    most, taken = longest(options, model), settings.max_new_tokens or room
    if taken >= most:
        raise ValueError(
            f"max_gen_toks={room} leaves no room for a prompt in max_length={most}; "
            "ask for fewer"
        )
    prompt, _ = maybe_truncate(encode(context), taken, most)
    stops = tuple(stop for stop in kwargs["until"] if stop)
    return Asked(tuple(prompt), room, stops, settings)


def _sampled(options: Options, kwargs: Mapping[str, Any]) -> DecodeConfig:
    """The settings as a task samples; without a temperature there is nothing to cut."""
    asked = {
        name: kind(kwargs[name]) for name, kind in _SAMPLING.items() if name in kwargs
    }
    asked = {name: x for name, x in asked.items() if name not in options.given}
    settings = dataclasses.replace(options.settings, **asked)
    if settings.temperature:
        return settings
    return dataclasses.replace(options.settings, temperature=0.0)


def with_room(settings: DecodeConfig, model: Model, room: int) -> DecodeConfig:
    """The settings with room for an answer, in whole blocks under full attention."""
    config = model.config
    length = settings.block_length or config.block_length
    whole = room if config.attention != "full" else -(-room // length) * length
    return dataclasses.replace(settings, max_new_tokens=whole)


def longest(options: Options, model: Model) -> int:
    """Tokens that a prompt and its answer may have together."""
    most = model.config.max_positions
    return min(most, options.reading.max_length or most)


def question(context: Sequence[int], target: Sequence[int], most: int) -> Question:
    """A request for a log-likelihood. What is too long loses its beginning, with a
    warning; raises ValueError where the target alone is."""
    if len(target) >= most:
        raise ValueError(
            f"a continuation has {len(target)} tokens, which leaves no room for a "
            f"context in max_length={most}; shorten it"
        )
    kept, _ = maybe_truncate(list(context), len(target), most)
    return Question(tuple(kept), tuple(target))


def pair(encode: Encode, context: str, continuation: str):
    """The ids of a context and of what continues it, as the whole is written.

    Spaces at the context's end belong to the continuation, and so does a token that
    reaches from one into the other. Newlines stay, unlike in the harness's own models:
    they open an answer in chat templates, and no model learned to predict them there.
    """
    bare = context.rstrip(" ")
    continuation = context[len(bare) :] + continuation
    if not continuation:
        return encode(bare), []
    whole, before = encode(bare + continuation), encode(bare)
    shared = 0
    while shared < min(len(whole) - 1, len(before)) and whole[shared] == before[shared]:
        shared += 1
    return whole[:shared], whole[shared:]


def windows(ids: Sequence[int], prefix: int, most: int) -> list[Question]:
    """A long text as windows, each told what little stands before it."""
    size = min(most, WINDOW) - 1
    found = utils.get_rolling_token_windows(list(ids), prefix, size, 1)
    pairs = map(utils.make_disjoint_window, found)
    return [Question(tuple(before), tuple(told)) for before, told in pairs]

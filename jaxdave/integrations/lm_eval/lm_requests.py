"""Translation of the harness's requests into token ids and decoding settings."""

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
from jaxdave.engine.stop_strings import check_stops, has_escapes
from jaxdave.eval.likelihood.batching import Question
from jaxdave.integrations.lm_eval.generate_until import GenerationRequest
from jaxdave.integrations.lm_eval.options import Options
from jaxdave.io.checkpoint import Model

WINDOW = 2048
"""Tokens of a window of `loglikelihood_rolling`, where the model allows so many."""
_SAMPLING = {"temperature": float, "top_k": int, "top_p": float}
_KNOWN = {"until", "do_sample", "max_gen_toks", *_SAMPLING}
_LOG = logging.getLogger("lm_eval.jaxdave")

EncodeFn = Callable[[str], list[int]]
"""Maps a text to its token ids."""


def generation_request(
    options: Options,
    model: Model,
    encode: EncodeFn,
    context: str,
    gen_kwargs: Mapping[str, Any],
) -> GenerationRequest:
    """Translate a request for a text.

    What `model_args` names takes precedence over what the task says. A prompt that is
    too long loses its beginning, with a warning. Stop strings are taken as the task's
    file gives them, as by the harness's other models: a backslash and an n are just
    that, with a warning, as a line feed may have been meant (in YAML: double quotes).
    Empty ones are left out.

    Args:
        options: The `model_args`.
        model: The model.
        encode: Maps a text to its token ids.
        context: The prompt's text.
        gen_kwargs: The task's `generation_kwargs`; unknown ones are ignored with a
            warning.

    Returns:
        The request.

    Raises:
        ValueError: If the new tokens leave no room for a prompt.
    """
    kwargs: dict[str, Any] = {
        **normalize_gen_kwargs(dict(gen_kwargs), model.max_new_tokens)
    }
    for name in sorted(set(kwargs) - _KNOWN):
        utils.warning_once(_LOG, f"jaxdave ignores the generation argument {name!r}")
    max_new_tokens = kwargs["max_gen_toks"]
    if options.settings.max_new_tokens is not None:
        max_new_tokens = options.settings.max_new_tokens
    settings = with_max_new_tokens(
        _sampling_settings(options, kwargs), model, max_new_tokens
    )
    limit = max_length(options, model)
    # The decoder's number, which may be rounded up to whole blocks.
    reserved = settings.max_new_tokens or max_new_tokens
    if reserved >= limit:
        raise ValueError(
            f"max_gen_toks={max_new_tokens} leaves no room for a prompt in "
            f"max_length={limit}; ask for fewer"
        )
    prompt, _ = maybe_truncate(encode(context), reserved, limit)
    stops = () if options.reading.escape_until else _stop_strings(kwargs["until"])
    return GenerationRequest(
        prompt=tuple(prompt),
        max_new_tokens=max_new_tokens,
        stops=stops,
        settings=settings,
    )


def _stop_strings(until: Any) -> tuple[str, ...]:
    """The stop strings of a task."""
    stops = check_stops([stop for stop in until if stop not in ("", None)])
    for stop in stops:
        if has_escapes(stop):
            utils.warning_once(
                _LOG,
                f"jaxdave takes the stop string {stop!r} as it is, backslashes and "
                r'all; for a line feed write "\n" in double quotes in the YAML file',
            )
    return stops


def _sampling_settings(options: Options, kwargs: Mapping[str, Any]) -> DecodeConfig:
    """The settings with the task's sampling, where `model_args` does not name it."""
    sampling = {
        name: kind(kwargs[name]) for name, kind in _SAMPLING.items() if name in kwargs
    }
    sampling = {name: x for name, x in sampling.items() if name not in options.given}
    settings = dataclasses.replace(options.settings, **sampling)
    if settings.temperature:
        return settings
    # Without a temperature there is nothing for top_k and top_p to cut, though tasks
    # often name them all the same.
    return dataclasses.replace(options.settings, temperature=0.0)


def with_max_new_tokens(
    settings: DecodeConfig, model: Model, max_new_tokens: int
) -> DecodeConfig:
    """Set the number of new tokens, in whole blocks under full attention.

    Args:
        settings: The settings.
        model: The model, whose attention and block length count.
        max_new_tokens: Tokens of the text at most.

    Returns:
        The settings with that number, which is rounded up for a full-attention model,
        as its canvas must be a multiple of the block length.
    """
    config = model.config
    block_length = settings.block_length or config.block_length
    if config.attention == "full":
        max_new_tokens = -(-max_new_tokens // block_length) * block_length
    return dataclasses.replace(settings, max_new_tokens=max_new_tokens)


def max_length(options: Options, model: Model) -> int:
    """Return the number of tokens that a prompt and its answer may have together.

    Args:
        options: The `model_args`.
        model: The model.

    Returns:
        The option `max_length`, or the model's number of positions if that is smaller
        or the option is absent.
    """
    max_positions = model.config.max_positions
    return min(max_positions, options.reading.max_length or max_positions)


def likelihood_question(
    context: Sequence[int], target: Sequence[int], limit: int
) -> Question:
    """Translate a request for a log-likelihood.

    Args:
        context: Token ids; one that is too long loses its beginning, with a warning.
        target: Token ids whose log-likelihood after the context is wanted.
        limit: Tokens of both together at most.

    Returns:
        The question.

    Raises:
        ValueError: If the target alone is too long.
    """
    if len(target) >= limit:
        raise ValueError(
            f"a continuation has {len(target)} tokens, which leaves no room for a "
            f"context in max_length={limit}; shorten it"
        )
    context_ids, _ = maybe_truncate(list(context), len(target), limit)
    return Question(tuple(context_ids), tuple(target))


def scored_question(question: Question, scored: str) -> Question:
    """Ask for another part of a context and its target.

    Args:
        question: The target after its context.
        scored: "target", "context" or "both", as in `options.Scoring`.

    Returns:
        The question whose target is what is scored.
    """
    context, target, _ = question
    if scored == "context":
        return Question(context=(), target=context, suffix=target)
    if scored == "both":
        return Question(context=(), target=context + target)
    return question


def encode_pair(
    encode: EncodeFn, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Encode a context and its continuation as the tokens of the joined text.

    Spaces at the context's end belong to the continuation, and so does a token that
    reaches from one into the other.

    Deviation from the harness's own models: newlines stay with the context. They open
    an answer in chat templates, and no model has learnt to predict them there.

    Args:
        encode: Maps a text to its token ids.
        context: The text before.
        continuation: The text that is scored.

    Returns:
        Token ids of the context and of the continuation; the latter are empty only for
        an empty text.
    """
    stripped = context.rstrip(" ")
    continuation = context[len(stripped) :] + continuation
    if not continuation:
        return encode(stripped), []
    joined, before = encode(stripped + continuation), encode(stripped)
    shared = 0
    # One token at least is left for the continuation.
    max_shared = min(len(joined) - 1, len(before))
    while shared < max_shared and joined[shared] == before[shared]:
        shared += 1
    return joined[:shared], joined[shared:]


def rolling_windows(ids: Sequence[int], prefix_id: int, limit: int) -> list[Question]:
    """Cut a long text into windows, each of which is scored after what precedes it.

    Args:
        ids: Token ids of the text.
        prefix_id: Token id that stands before the text.
        limit: Tokens of a window and its context at most.

    Returns:
        One question a window; their targets make up the text. A window has the token
        before it as its context, the last one as many as fit.
    """
    size = min(limit, WINDOW) - 1
    windows = utils.get_rolling_token_windows(list(ids), prefix_id, size, 1)
    pairs = map(utils.make_disjoint_window, windows)
    return [Question(tuple(before), tuple(target)) for before, target in pairs]

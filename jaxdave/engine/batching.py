"""Prompts as padded arrays, in buckets of powers of two, and their checks."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.core.draft_api import DraftedParams
from jaxdave.core.host_arrays import host_array
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import PromptBatch
from jaxdave.drafting.text_drafts import check_draft_texts
from jaxdave.engine.decoders import Decoder
from jaxdave.models.attention import TILE

TokenIds = Sequence[Sequence[int]]
_MAX_UINT32 = 2**32 - 1


class HasConfig(Protocol):
    """Anything with a model's config, such as a loaded model."""

    @property
    def config(self) -> ModelConfig:
        """The config."""
        ...


def check_room(ids: Sequence[int], model: HasConfig, max_new_tokens: int) -> None:
    """Refuse a prompt that leaves too little room for its answer.

    Args:
        ids: Token ids of the prompt.
        model: Its config says how many positions there are.
        max_new_tokens: Positions that may be decoded.

    Raises:
        ValueError: Prompt and answer do not fit.
    """
    if len(ids) > model.config.max_positions - max_new_tokens:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, but the model allows "
            f"{model.config.max_positions} with max_new_tokens={max_new_tokens} "
            "of them new; shorten it or ask for fewer"
        )


_ENCODE_FIRST = (
    "{}={!r} is a text; encode it first, e.g. with model.codec.encode_prompt, or give "
    "it to a Sampler"
)


def check_token_ids(ids: Any, name: str, vocab_size: int, mask_id: int) -> list[int]:
    """Refuse what is no sequence of a model's token ids.

    An id past the vocabulary would read the embedding's last row, a negative one some
    other row, and a mask id would be decoded as part of the answer: all give a text.

    Args:
        ids: Anything, such as a value of a JSON file.
        name: What errors call it.
        vocab_size: Ids must be below it.
        mask_id: The id that stands for text not written yet.

    Returns:
        The ids.

    Raises:
        ValueError: It is a text, empty, or holds something that is no id of a token.
    """
    if isinstance(ids, str):
        raise ValueError(_ENCODE_FIRST.format(name, ids[:40]))
    # Arrays of numpy and jax alike become lists of Python numbers.
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(values, list | tuple | range):
        raise ValueError(
            f"{name}={str(ids)[:60]!r} must be a sequence of token ids, e.g. [1, 2]"
        )
    if not len(values):
        raise ValueError(f"{name} is empty; give at least one token")
    for value in values:
        is_id = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not (is_id and 0 <= value < vocab_size and value != mask_id):
            raise ValueError(
                f"{name} holds {str(value)[:60]!r}, but must be token ids in "
                f"0..{vocab_size - 1} without the mask id {mask_id}; encode it again"
            )
    return [int(value) for value in values]


def check_params(spec: DecodeSpec, params: Any) -> None:
    """Refuse parameters that do not fit the decoder's draft function.

    Args:
        spec: What is decoded.
        params: A model's parameters, or `DraftedParams`.

    Raises:
        ValueError: The draft function takes parameters and there are none, or the other
            way round.
    """
    is_drafted = isinstance(params, DraftedParams)
    if spec.draft.takes_params and not is_drafted:
        raise ValueError(
            f"params is a {type(params).__name__}, but the draft function takes "
            "parameters of its own; give DraftedParams(model=..., draft=...), or to a "
            "Sampler draft_params=..."
        )
    if is_drafted and not spec.draft.takes_params:
        raise ValueError(
            "params is DraftedParams, but the draft function takes no parameters; give "
            "the model's own, params.model, and to a Sampler no draft_params"
        )


def probe_prompts(decoder: Decoder, prompts: TokenIds) -> TokenIds:
    """Prompts of random tokens, as long as given ones, to measure calls with.

    Args:
        decoder: Its vocabulary is drawn from, without mask, end and suppressed ids.
        prompts: Token ids whose lengths are copied.

    Returns:
        Token ids.
    """
    model, layout = decoder.spec.model, decoder.spec.layout
    excluded = {layout.mask_id, *layout.stop_ids, *model.suppressed_ids}
    usable = [token for token in range(model.vocab_size) if token not in excluded]
    rng = np.random.default_rng(0)
    return [rng.choice(usable, len(prompt)).tolist() for prompt in prompts]


def pack_prompts(
    decoder: Decoder,
    prompts: TokenIds,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
) -> tuple[PromptBatch, int]:
    """Pad prompts to a bucket.

    Args:
        decoder: What is decoded.
        prompts: Token ids, of any lengths.
        seed: Keys the noise at a temperature.
        requests: Number of each request; None: 0 for all.
        draft_text: For every prompt the ids of a draft text, or None.

    Returns:
        (the prompts as arrays, the length that the prefill must cover: a power of two).

    Raises:
        ValueError: A prompt, the seed, the requests or the draft texts cannot be used.
    """
    _check_prompts(decoder, prompts, seed, requests)
    layout = decoder.spec.layout
    lengths = [len(prompt) for prompt in prompts]
    # The longest prompt decides for all; shorter ones are followed by masks.
    prefill_length = bucket_length(max(lengths) + layout.window_length)
    # The cache is read in tiles of keys.
    capacity = -(-(prefill_length + decoder.max_new_tokens) // TILE) * TILE
    texts = check_draft_texts(decoder.spec, draft_text, len(prompts))
    begin_B = np.asarray(lengths, np.int32)
    # 0 for all: a text at a temperature then does not depend on its place in the batch.
    request_B = np.zeros(len(prompts), np.int32) if requests is None else requests
    packed = PromptBatch(
        tokens_BT=host_array(_pad(prompts, capacity, layout.mask_id)),
        begin_B=host_array(begin_B),
        end_B=host_array(layout.last_end(begin_B, decoder.max_new_tokens)),
        draft_text_BT=host_array(_pad([ids[:capacity] for ids in texts], capacity, -1)),
        seed_B=host_array(np.full(len(prompts), seed, np.uint32)),
        request_B=host_array(np.asarray(request_B, np.uint32)),
    )
    return packed, prefill_length


def check_groups(prompts: TokenIds, group_size: int) -> None:
    """Refuse groups of prompts that are not the same.

    Args:
        prompts: Token ids.
        group_size: So many in a row should be the same.

    Raises:
        ValueError: They are not, or there is a part of a group.
    """
    count = len(prompts)
    if group_size < 1 or count % group_size:
        raise ValueError(
            f"group_size={group_size} must divide the {count} prompts; give each "
            "prompt so many times in a row"
        )
    for row in range(count):
        first = row - row % group_size
        if row > first and list(prompts[row]) != list(prompts[first]):
            raise ValueError(
                f"group_size={group_size}: prompt {row} is not prompt {first}, though "
                "of its group; give each prompt so many times in a row"
            )


def bucket_length(length: int) -> int:
    """The next power of two, at least one tile of keys.

    Args:
        length: Positions that must fit.

    Returns:
        The bucket's length; programs are compiled once for each of them.
    """
    return max(TILE, 1 << (length - 1).bit_length())


def _pad(rows: TokenIds, length: int, fill: int) -> np.ndarray:
    padded = np.full((len(rows), length), fill, np.int32)
    for row, ids in enumerate(rows):
        padded[row, : len(ids)] = ids
    return padded


def _check_prompts(decoder: Decoder, prompts: TokenIds, seed: int, requests) -> None:
    """Raise ValueError for prompts, a seed or requests that cannot be used."""
    spec = decoder.spec
    _check_uint32("seed", seed)
    if isinstance(prompts, str):
        raise ValueError(_ENCODE_FIRST.format("prompts", prompts[:40]))
    if not len(prompts):
        raise ValueError("prompts=[] holds no prompt; give at least one")
    if requests is not None and len(requests) != len(prompts):
        raise ValueError(
            f"{len(requests)} requests for {len(prompts)} prompts; give one each"
        )
    for request in () if requests is None else requests:
        _check_uint32("request", request)
    longest = decoder.max_positions - decoder.max_new_tokens
    for row, prompt in enumerate(prompts):
        check_token_ids(
            prompt, f"prompt {row}", spec.model.vocab_size, spec.layout.mask_id
        )
        if len(prompt) > longest:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens, but the model allows "
                f"{decoder.max_positions} with max_new_tokens="
                f"{decoder.max_new_tokens} of them new; shorten it or ask for fewer"
            )


def _check_uint32(name: str, value: Any) -> None:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (is_whole and 0 <= value <= _MAX_UINT32):
        raise ValueError(
            f"{name}={value!r} must be a whole number in 0..{_MAX_UINT32}; 0 is usual"
        )

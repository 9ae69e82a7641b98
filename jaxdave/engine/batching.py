"""The prompts of a command line: from an argument or a file of JSON lines, checked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxdave.core.state import PromptBatch, host_array
from jaxdave.drafting.text_drafts import check_draft_texts
from jaxdave.engine.decoders import Decoder
from jaxdave.models.attention import TILE

if TYPE_CHECKING:
    from jaxdave.io.checkpoint import Model


def check_room(ids: Sequence[int], model: "Model", max_new_tokens: int) -> None:
    """Raise ValueError for a prompt that leaves too little room for its answer."""
    if len(ids) > model.config.max_positions - max_new_tokens:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, but the model allows "
            f"{model.config.max_positions} with max_new_tokens={max_new_tokens} "
            "of them new; shorten it or ask for fewer"
        )


TokenIds = Sequence[Sequence[int]]


def probe_prompts(decoder: Decoder, prompts: TokenIds) -> TokenIds:
    """Prompts of random tokens, as long as those given."""
    network, layout = decoder.spec.model, decoder.spec.layout
    never = {layout.mask_id, *layout.stop_ids, *network.suppressed_ids}
    usable = [token for token in range(network.vocab_size) if token not in never]
    rng = np.random.default_rng(0)
    return [rng.choice(usable, len(prompt)).tolist() for prompt in prompts]


def pack_prompts(
    decoder: Decoder,
    prompts: TokenIds,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
) -> tuple[PromptBatch, int]:
    """The prompts as padded arrays, and the length that the prefill must cover."""
    _check_prompts(decoder, prompts, seed, requests)
    layout = decoder.spec.layout
    lengths = [len(prompt) for prompt in prompts]
    room = bucket_length(max(lengths) + layout.window_length)
    capacity = -(-(room + decoder.max_new_tokens) // TILE) * TILE
    tokens = _pad(prompts, capacity, layout.mask_id)
    hints = check_draft_texts(decoder.spec, draft_text, len(prompts))
    begin = np.asarray(lengths, np.int32)
    ids = np.zeros(len(prompts), np.int32) if requests is None else requests
    arrays = PromptBatch(
        host_array(tokens),
        host_array(begin),
        host_array(begin + np.int32(decoder.max_new_tokens)),
        host_array(_pad([ids[:capacity] for ids in hints], capacity, -1)),
        host_array(np.full(len(prompts), seed, np.uint32)),
        host_array(np.asarray(ids, np.uint32)),
    )
    return arrays, room


def _pad(rows: TokenIds, length: int, fill: int) -> np.ndarray:
    made = np.full((len(rows), length), fill, np.int32)
    for row, ids in enumerate(rows):
        made[row, : len(ids)] = ids
    return made


def bucket_length(length: int) -> int:
    """The next power of two, at least one tile of keys."""
    return max(TILE, 1 << (length - 1).bit_length())


def _check_prompts(decoder: Decoder, prompts: TokenIds, seed: int, requests) -> None:
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed={seed} must be in 0..{(1 << 32) - 1}")
    if not len(prompts):
        raise ValueError("prompts=[] holds no prompt; give at least one")
    if requests is not None and len(requests) != len(prompts):
        raise ValueError(
            f"{len(requests)} requests for {len(prompts)} prompts; give one each"
        )
    most = decoder.max_positions - decoder.max_new_tokens
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {row} is empty; give at least one token")
        if len(prompt) > most:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens, but the model allows "
                f"{decoder.max_positions} with max_new_tokens="
                f"{decoder.max_new_tokens} of them new; shorten it or ask for fewer"
            )

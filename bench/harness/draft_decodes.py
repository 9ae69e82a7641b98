"""Decodes of the benchmarks of drafts, and what perfect drafts would take."""

import dataclasses
from collections.abc import Sequence

from bench.harness.loading import LoadedModel
from jaxdave.engine import decoders
from jaxdave.engine.decode_config import DraftSteps
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion

BATCH_SIZE = 10
MAX_NEW_TOKENS = 64


def make_decoder(
    loaded: LoadedModel, policy, draft, slots: DraftSteps, temperature: float = 0.0
) -> decoders.Decoder:
    """The decoder of a count.

    Args:
        loaded: the model.
        policy: the policy.
        draft: the draft function.
        slots: drafts that the program is compiled for, or "auto".
        temperature: temperature of the decode.

    Returns:
        The decoder.
    """
    return decoders.freedave(
        loaded.config,
        policy,
        draft_steps=slots,
        draft=draft,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=temperature,
    )


def decode(
    loaded: LoadedModel,
    policy,
    draft,
    slots: int,
    num_drafts: int,
    prompts: Sequence[Sequence[int]],
    draft_texts: Sequence[Sequence[int]] | None = None,
    temperature: float = 0.0,
) -> list[Completion]:
    """Decode prompts in batches.

    Args:
        loaded: the model.
        policy: the policy.
        draft: the draft function.
        slots: drafts that the program is compiled for.
        num_drafts: cap on the drafts of a call.
        prompts: token ids of the prompts.
        draft_texts: token ids of an expected answer per prompt.
        temperature: temperature of the decode.

    Returns:
        One row per prompt.
    """
    decoder = make_decoder(loaded, policy, draft, slots, temperature)
    decoder = dataclasses.replace(decoder, max_num_drafts=min(num_drafts, slots))
    rows: list[Completion] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        rows += generate(
            decoder,
            loaded.params,
            prompts[batch],
            draft_text=draft_texts and draft_texts[batch],
        ).completions
    return rows


def perfect_draft_calls(
    loaded: LoadedModel, row: Completion, num_drafts: int, tokens_per_step: int = 1
) -> int:
    """Count the calls of a row if all its drafts were right.

    Args:
        loaded: the model.
        row: the row as decoded without drafts.
        num_drafts: drafts of a call.
        tokens_per_step: tokens that a step commits, under a cache rule.

    Returns:
        Calls, the prefill included.
    """
    causal = loaded.config.attention == "block_causal"
    # Under a cache rule every block begins with a refresh, which takes one step.
    stretch = row.steps if causal else -(-loaded.config.block_length // tokens_per_step)
    starts = range(0, row.steps, stretch)
    return sum(
        1 + -(-(min(stretch, row.steps - start) - 1) // num_drafts) for start in starts
    )


def is_lossless(plain: Sequence[Completion], drafted: Sequence[Completion]) -> bool:
    """Compare decodes without and with drafts.

    Args:
        plain: rows decoded without drafts.
        drafted: the same rows with drafts.

    Returns:
        True if all texts are the same and no row takes more calls with drafts, rechecks
        aside.
    """
    pairs = list(zip(plain, drafted, strict=True))
    same = all(a.token_ids == b.token_ids for a, b in pairs)
    # Rechecks come by chance of near ties.
    return same and all(
        b.nfe.total - b.nfe.recheck <= a.nfe.total - a.nfe.recheck for a, b in pairs
    )

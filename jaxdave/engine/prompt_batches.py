"""Decoding many prompts batch by batch: what one process, or one of many, does.

Which process decodes a prompt, in which batch and when, has no influence on its answer:
its noise is keyed by the number of its line.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from jaxdave.engine.results import TextCompletion
from jaxdave.engine.sampler import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A prompt as token ids, with all that its answer depends on beside the settings.

    Attributes:
        request: Number of the prompt; it keys the noise at a temperature.
        ids: Token ids.
        draft_text: What the answer may look like, or None.
        stops: Stop strings of this prompt alone.
    """

    request: int
    ids: Sequence[int]
    draft_text: str | None = None
    stops: tuple[str, ...] = ()


def has_draft_texts(prompts: Sequence[EncodedPrompt]) -> bool:
    """Tell if any prompt has a draft text.

    Args:
        prompts: The prompts of all batches.

    Returns:
        What `decode_batch` takes as `reads_drafts`.
    """
    return any(prompt.draft_text is not None for prompt in prompts)


def decode_batch(
    sampler: Sampler,
    prompts: Sequence[EncodedPrompt],
    *,
    stops: Sequence[str] = (),
    reads_drafts: bool = False,
    group_size: int = 1,
) -> list[TextCompletion]:
    """Decode prompts together.

    Args:
        sampler: The model and how it is decoded.
        prompts: The prompts of one batch.
        stops: Stop strings of all prompts.
        reads_drafts: Decode by the program that reads draft texts. The same for every
            batch, so that one program serves them all.
        group_size: So many prompts in a row are the same and are evaluated once.

    Returns:
        The answers, in the order of the prompts.
    """
    return sampler.batch(
        [prompt.ids for prompt in prompts],
        requests=[prompt.request for prompt in prompts],
        draft_texts=[p.draft_text for p in prompts] if reads_drafts else None,
        stop=stops,
        stops=[prompt.stops for prompt in prompts],
        group_size=group_size,
    )


def decode_prompts(
    sampler: Sampler,
    prompts: Sequence[EncodedPrompt],
    *,
    stops: Sequence[str] = (),
    batch_size: int,
    group_size: int = 1,
) -> Iterator[TextCompletion]:
    """Decode prompts batch by batch.

    Args:
        sampler: The model and how it is decoded.
        prompts: Any number of prompts.
        stops: Stop strings of all prompts.
        batch_size: Prompts that are decoded together.
        group_size: So many prompts in a row are the same and are evaluated once; it
            divides the batch size.

    Yields:
        The answers, in the order of the prompts.
    """
    reads_drafts = has_draft_texts(prompts)
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        yield from decode_batch(
            sampler,
            batch,
            stops=stops,
            reads_drafts=reads_drafts,
            group_size=group_size,
        )

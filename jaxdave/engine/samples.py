"""Several answers to each prompt: their numbers, and which are decoded together.

Answers to one prompt differ by their request numbers, which key the noise. The number
of sample k of prompt i is i + 2**20 k: it depends on nothing else, so that more samples
leave the first ones as they are, and sample 0 is the answer of a run without samples.
This module imports no JAX, so that bad options are refused at once.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdave.engine.decode_config import check_batch_size

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec
    from jaxdave.engine.prompt_batches import EncodedPrompt

MAX_PROMPTS, MAX_SAMPLES = 2**20, 2**12
"""Numbers of a prompt and of a sample that fit one request number, a uint32."""


class SampleNumber(NamedTuple):
    """Which answer it is.

    Attributes:
        index: Number of the prompt.
        sample: Number of the answer among those to this prompt.
    """

    index: int
    sample: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How many answers each prompt has, and how many are decoded together.

    Attributes:
        count: Answers to each prompt; None: one, whose record says nothing of samples.
        batch_size: Answers that are decoded together, a multiple of `count` or a
            divisor; None: those to one prompt.

    Raises:
        ValueError: A number is out of range, or they do not fit each other.

    Example:
        >>> SampleConfig(count=4, batch_size=8).group_size
        4
        >>> SampleConfig(count=64, batch_size=16).group_size
        16
    """

    count: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_batch_size(self.batch_size)
        if self.count is None:
            return
        if not 1 <= self.count <= MAX_SAMPLES:
            raise ValueError(f"samples={self.count} must be in 1..{MAX_SAMPLES}; try 8")
        if max(self.rows, self.count) % min(self.rows, self.count):
            raise ValueError(
                f"batch_size={self.rows} must be a multiple of samples={self.count}, "
                f"or divide it; try {self.count}"
            )

    @property
    def rows(self) -> int:
        """Answers that are decoded together."""
        return self.batch_size or self.count or 1

    @property
    def group_size(self) -> int:
        """So many answers in a row of a batch are to the same prompt."""
        return min(self.rows, self.count or 1)

    def expand(self, prompts: Sequence["EncodedPrompt"]) -> list["EncodedPrompt"]:
        """Every prompt once for each of its answers, with their request numbers.

        Args:
            prompts: The prompts, by number.

        Returns:
            The prompts; those of one group come in a row.

        Raises:
            ValueError: The number of a prompt is too high to be sampled.
        """
        if self.count is None:
            return list(prompts)
        last = max(prompt.request for prompt in prompts)
        if last >= MAX_PROMPTS:
            raise ValueError(
                f"samples={self.count}: only the first {MAX_PROMPTS} lines can be "
                f"sampled, and there is a prompt in line {last + 1}; split the file"
            )
        return [
            dataclasses.replace(prompt, request=request_of(prompt.request, sample))
            for prompt in prompts
            for sample in range(self.count)
        ]

    def unfinished(
        self, prompts: Sequence["EncodedPrompt"], done: Collection[int]
    ) -> list["EncodedPrompt"]:
        """The prompts that are still to be decoded.

        Args:
            prompts: As `expand` returns them.
            done: Request numbers that have an answer.

        Returns:
            Prompts in whole groups; where an answer of one is missing, all of it.
        """
        size = self.group_size
        groups = [prompts[at : at + size] for at in range(0, len(prompts), size)]
        return [
            prompt
            for group in groups
            if any(one.request not in done for one in group)
            for prompt in group
        ]

    def record(self, answer: Mapping[str, Any]) -> dict[str, Any]:
        """The record of an answer.

        Args:
            answer: `TextCompletion.to_dict`, whose "index" is the request number.

        Returns:
            The same where there are no samples; else with "index" the number of the
            prompt, "sample" that of the answer, and "request" what keys its noise.
        """
        if self.count is None:
            return dict(answer)
        request = answer["index"]
        numbers = number_of(request)._asdict()
        return {**numbers, "request": request, **{**answer, **numbers}}

    def index_of(self, request: int) -> int:
        """The number of the prompt that a request number belongs to.

        Args:
            request: The request number.

        Returns:
            The number.
        """
        return request if self.count is None else number_of(request).index

    def title(self, request: int, is_many: bool) -> str:
        """What stands before a text that is one of several.

        Args:
            request: Its request number.
            is_many: There are several prompts.

        Returns:
            "[prompt] ", "[sample] " or "[prompt.sample] "; nothing before the only one.
        """
        index, sample = number_of(request)
        if self.count is None:
            return f"[{request}] " if is_many else ""
        return f"[{index}.{sample}] " if is_many else f"[{sample}] "

    def check(self, spec: "DecodeSpec") -> None:
        """Refuse samples that would all be the same.

        Args:
            spec: What is decoded.

        Raises:
            ValueError: Neither tokens nor positions are drawn.
        """
        is_drawn = spec.sampling.temperature > 0 or spec.policy.draws
        if (self.count or 1) > 1 and not is_drawn:
            raise ValueError(
                f"samples={self.count} at temperature 0 would all be the same answer; "
                "add --temperature 1, or leave --samples out"
            )


def request_of(index: int, sample: int) -> int:
    """The request number of an answer.

    Args:
        index: Number of the prompt, below `MAX_PROMPTS`.
        sample: Number of the answer among those to this prompt.

    Returns:
        What keys its noise, beside the seed.

    Example:
        >>> request_of(3, 0), request_of(3, 2)
        (3, 2097155)
    """
    return index + MAX_PROMPTS * sample


def number_of(request: int) -> SampleNumber:
    """The inverse of `request_of`.

    Args:
        request: The request number.

    Returns:
        Which answer it is.
    """
    sample, index = divmod(request, MAX_PROMPTS)
    return SampleNumber(index, sample)


ONE_ANSWER = SampleConfig()
"""One answer to each prompt, by itself."""

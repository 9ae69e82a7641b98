"""Prompts in, answers out, by several processes that go from batch to batch together.

In a round every process decodes a batch, and then all of them exchange what they have.
Processes that have no batch, as there are too few, only take part in that.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxdave.distributed.processes import Processes, own_share
from jaxdave.distributed.rounds import SharedRounds
from jaxdave.engine.prompt_batches import EncodedPrompt

Answer = dict[str, Any]
"""`TextCompletion.to_dict` of an answer."""
DecodeBatch = Callable[[Sequence[EncodedPrompt]], Sequence[Answer]]
"""Maps the prompts of a batch to their answers."""


class SharedDecode:
    """The decode of one file by several processes.

    The first process calls `lead` and writes what it gives; with `fail` it tells the
    others that it cannot. The others call `follow`.

    Args:
        processes: The processes.
        decode: What decodes a batch here.
        batch_size: Prompts that are decoded together.
    """

    def __init__(
        self, processes: Processes, decode: DecodeBatch, batch_size: int
    ) -> None:
        self._processes = processes
        self._decode = decode
        self._batch_size = batch_size
        self._rounds = SharedRounds(processes)
        self.fail = self._rounds.fail

    def lead(self, prompts: Sequence[EncodedPrompt]) -> Iterator[Answer]:
        """Decode prompts together with the other processes.

        Args:
            prompts: The prompts that have no answer yet.

        Yields:
            The answers of all processes.

        Raises:
            AgreedError: A process has failed.
        """
        self._rounds.exchange(lambda: [prompt.request for prompt in prompts])
        for answers in self._batches(prompts):
            yield from answers
        # The others wait until the last answer is written.
        self._rounds.end()

    def follow(self, prompts: Sequence[EncodedPrompt]) -> None:
        """Decode a share of the prompts that the first process has no answer of.

        Args:
            prompts: All prompts.

        Raises:
            AgreedError: A process has failed.
        """
        rest = set(self._rounds.exchange(tuple))
        for _ in self._batches([one for one in prompts if one.request in rest]):
            pass
        self._rounds.end()

    def _batches(self, prompts: Sequence[EncodedPrompt]) -> Iterator[Sequence[Answer]]:
        """The answers of each round, of all processes."""
        size = self._batch_size
        batches = [prompts[at : at + size] for at in range(0, len(prompts), size)]
        for batch in own_share(batches, self._processes):
            work = functools.partial(self._decode, batch) if batch else tuple
            yield self._rounds.exchange(work)

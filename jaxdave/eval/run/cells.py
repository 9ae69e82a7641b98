"""One cell of an evaluation before it is decoded: a benchmark by one method."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from jaxdave.engine.batching import bucket_length
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import Decoder
from jaxdave.eval.deviations import GradedOutput, answer_only
from jaxdave.eval.run import records
from jaxdave.eval.run.methods import Method
from jaxdave.eval.run.records import Header, Record
from jaxdave.eval.types import Prompt, Task
from jaxdave.grading.types import Item
from jaxdave.io.tokenizer import Codec


class PromptedItem(NamedTuple):
    """An item of a benchmark with its prompt in token ids.

    Attributes:
        item: The item.
        index: Its index in the benchmark, which keys the noise of its decode.
        prompt: Token ids of the prompt, the answer's opening included.
        answer_prefix: Text of that opening; graded together with the answer.
        digest: Digest of the prompt and the reference, hexadecimal.
    """

    item: Item
    index: int
    prompt: list[int]
    answer_prefix: str
    digest: str


class ReportCell(Protocol):
    """What a report is made of besides records: `EvalCell`, or one that was sampled."""

    @property
    def task(self) -> Task:
        """The benchmark."""
        ...

    @property
    def method(self) -> Method:
        """The way to decode."""
        ...

    @property
    def settings(self) -> DecodeConfig:
        """The settings of the decode, as far as tables name them."""
        ...

    @property
    def header(self) -> Header:
        """The settings as files record them."""
        ...

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Ids of the items, in the order of the benchmark."""
        ...


class EvalCell(NamedTuple):
    """A benchmark by one method: one row of the tables.

    Attributes:
        task: The benchmark.
        method: The way to decode.
        settings: The settings of the decode.
        decoder: The decoder of those settings.
        entries: The items, in the order of the benchmark.
        path: The file of finished records; None: nothing is written.
        header: The settings as that file records them.
        extract_output: (codec, prompt ids, decoded row) -> what is graded and counted,
            as in `ProtocolDeviations`.
    """

    task: Task
    method: Method
    settings: DecodeConfig
    decoder: Decoder
    entries: tuple[PromptedItem, ...]
    path: Path | None
    header: Header
    extract_output: Callable[..., GradedOutput] = answer_only
    batch_size: int = 1

    @property
    def item_ids(self) -> tuple[str, ...]:
        """Ids of the items, in the order of the benchmark."""
        return tuple(entry.item.id for entry in self.entries)


def encode_item(
    codec: Codec, task: Task, item: Item, index: int, prompt: Prompt
) -> PromptedItem:
    """Encode the prompt of an item.

    Args:
        codec: The model's tokenizer.
        task: The benchmark; its name is for error messages.
        item: The item.
        index: Its index in the benchmark, from 0.
        prompt: Its prompt as text or conversation.

    Returns:
        The item with its prompt in token ids.

    Raises:
        ValueError: The prompt cannot be encoded; the message names the item.
    """
    try:
        ids = encode_prompt(codec, prompt)
    except ValueError as error:
        raise ValueError(f"{task.name}, item {item.id}: {error}") from error
    facts = json.dumps([ids, item.gold, item.data], sort_keys=True, default=str)
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
    return PromptedItem(item, index, ids, prompt.answer_prefix, digest)


def encode_prompt(codec: Codec, prompt: Prompt) -> list[int]:
    """Encode a prompt, the opening of its answer included.

    Args:
        codec: The model's tokenizer.
        prompt: A conversation or a text with markup.

    Returns:
        The token ids, at most `prompt.max_tokens` of them.

    Raises:
        ValueError: The prompt holds the mask token, or is no valid conversation.
    """
    if isinstance(prompt.content, str):
        ids = codec.encode_text(prompt.content + prompt.answer_prefix)
    else:
        # The chat template ends where the answer begins; what follows is encoded by
        # itself, so that the template's ids are those of any other conversation.
        ids = codec.encode_messages(prompt.content)
        if prompt.answer_prefix:
            ids = ids + codec.encode_text(prompt.answer_prefix)
    return ids[: prompt.max_tokens]


def read_finished(cell: EvalCell) -> dict[str, Record]:
    """Read what an earlier run has finished of a cell.

    Args:
        cell: The cell.

    Returns:
        The records by item id, in the order of the items.

    Raises:
        ValueError: The file is of other settings or prompts, or broken.
    """
    if cell.path is None:
        return {}
    finished = records.read_records(cell.path, cell.header)
    for entry in cell.entries:
        record = finished.get(entry.item.id)
        if record is not None and record.digest != entry.digest:
            raise ValueError(
                f"{cell.path} has item {entry.item.id} with another prompt or "
                "reference; choose another --out, or take the file away"
            )
    ids = [entry.item.id for entry in cell.entries]
    return {id: finished[id] for id in ids if id in finished}


def make_batches(cell: EvalCell) -> list[list[PromptedItem]]:
    """Group the items of a cell into batches.

    Items are sorted by the length that their prompts are padded to, so that few shapes
    are compiled. The longest come first: too little memory then shows at once. Batches
    do not depend on what is finished already, so that a resumed run decodes an item in
    the same batch as an uninterrupted one.

    Args:
        cell: The cell.

    Returns:
        Lists of at most `cell.batch_size` items.
    """
    ordered = sorted(cell.entries, key=lambda entry: -_padded_length(cell, entry))
    size = cell.batch_size
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def batch_shape(cell: EvalCell, batch: Sequence[PromptedItem]) -> tuple[int, int]:
    """Return the shape that a batch is compiled for.

    Args:
        cell: The cell.
        batch: Some of its items.

    Returns:
        Number of rows, and the length in tokens that prompt and window are padded to.
    """
    return len(batch), max(_padded_length(cell, entry) for entry in batch)


def _padded_length(cell: EvalCell, entry: PromptedItem) -> int:
    return bucket_length(len(entry.prompt) + cell.decoder.spec.layout.window_length)

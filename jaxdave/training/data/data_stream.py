"""A stream of batches to train on: shuffled by a seed, packed, made ahead, resumable.

    samples -> grain: shuffle each epoch, repeat -> pack or lay out -> batch -> thread

The samples of all epochs, each in an order of its own, are one sequence. A batch is
made of the next of them: as many as fit, where they are packed (first fit, in so many
rows as a batch has, until one fits in none of them), or one in each row. Each batch is
thus one stretch of the sequence, and where it ends is all that a checkpoint must know.
A batch may hold the end of an epoch and the beginning of the next.

Several processes each make the whole batch, and keep the rows of their own part: put
one behind the other, the parts of all processes are the batch of one process, row by
row, whatever is packed or skipped. The price is that every process encodes all samples.

Samples are not moved to the borders of blocks: blocks are counted from the beginning of
each sample (`attention_masks.block_causal`), as a decoder counts them from the
beginning of its prompt.

Axes: B rows, T positions.
"""

import copy
import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxdave.io.tokenizer import Codec
from jaxdave.runtime.messages import one_line
from jaxdave.training.data.batch_config import BatchConfig
from jaxdave.training.data.samples import SampleList, Samples, open_samples
from jaxdave.training.data.token_batch import (
    PADDING,
    TokenBatch,
    TokenSample,
    align_answers,
    pack_samples,
)

_NAMED_SKIPS = 5
"""Skipped samples that a report names."""


class BatchStream(Iterator[TokenBatch]):
    """Batches of samples, one after the other, on the host.

    It is an iterator, and may be closed before it ends. Batches are numpy arrays: the
    rows of this process.
    """

    def __init__(self, samples: Samples, config: BatchConfig) -> None:
        """Begin at the first batch.

        Args:
            samples: What to train on.
            config: How they become batches.

        Raises:
            ValueError: grain is not installed.
        """
        self._samples = samples
        self._config = config
        self._layout = _SampleLayout(samples, config)
        self._open = [_grain_iterator(self._layout, config)]
        # Also when Python ends, while there still are the modules that grain needs to
        # end its thread.
        self._close = weakref.finalize(self, _close, self._open)

    def __next__(self) -> TokenBatch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Where the stream is, for a checkpoint.

        Returns:
            What `set_state` takes: numbers and texts, in dictionaries and lists, which
            JSON can hold. It counts batches that were returned, not those made ahead.
        """
        return {
            "order": _order(self._config),
            "digests": [digest for _, digest in self._samples.digests],
            "position": copy.deepcopy(self._iterator.get_state()),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where a stream was.

        The batches that follow are those that would have followed there. Another batch
        size, another length and another number of processes are allowed: the sequence
        of samples goes on where it was.

        Args:
            state: From `get_state` of a stream of the same samples in the same order.

        Raises:
            ValueError: It is no such state, or of other samples or another order.
        """
        if not isinstance(state, dict) or {"order", "digests", "position"} - set(state):
            raise ValueError(
                f"the data's state {one_line(state)[:60]!r} is none; take another "
                "checkpoint"
            )
        for name, value in _order(self._config).items():
            if state["order"].get(name) != value:
                raise ValueError(
                    f"{name}={value!r} but the checkpoint was written with {name}="
                    f"{state['order'].get(name)!r}, and samples would be missed or "
                    "repeated; set it back, or start anew"
                )
        old, new = state["digests"], self._samples.digests
        if len(old) != len(new):
            raise ValueError(
                f"{len(new)} files of samples but the checkpoint was written with "
                f"{len(old)}; name the same files, or start anew"
            )
        for before, (name, digest) in zip(old, new, strict=True):
            if before != digest:
                raise ValueError(
                    f"{name} has changed since the checkpoint was written; put the old "
                    "one back, or start anew"
                )
        epoch, epochs = self._epoch_of(state["position"]), self._config.epochs
        if epochs is not None and epoch > epochs:
            raise ValueError(
                f"epochs={epochs} but the checkpoint was written {epoch:.2f} epochs "
                "after the beginning; raise it"
            )
        self._iterator.set_state(copy.deepcopy(state["position"]))

    @property
    def epoch(self) -> float:
        """Epochs that the batches up to here have taken from the samples."""
        return self._epoch_of(self._iterator.get_state())

    @property
    def _iterator(self) -> Any:
        if not self._open:
            raise ValueError("the stream of batches is closed; open another one")
        return self._open[0]

    def _epoch_of(self, position: dict[str, Any]) -> float:
        """How far a state of grain's is; it is a chain of the states of all steps."""
        while "parent" in position:
            position = position["parent"]
        return position["next_index"] / len(self._samples)

    @property
    def skipped(self) -> "SkippedSamples":
        """Samples that were too long, those of batches made ahead included."""
        return self._layout.skipped()

    def close(self) -> None:
        """End the thread that makes batches ahead."""
        self._close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkippedSamples:
    """Samples that were left out since a stream was opened.

    Attributes:
        count: How many; one that was met in several epochs counts once.
        messages: What is wrong with the first of them, one line each.
    """

    count: int
    messages: tuple[str, ...]


def open_batches(
    paths: Sequence[Path],
    codec: Codec,
    config: BatchConfig,
    *,
    chat_template: bool = True,
) -> BatchStream:
    """Open files of JSON lines (`samples`) to train on.

    Args:
        paths: The files.
        codec: The model's tokenizer.
        config: How samples become batches.
        chat_template: Prompts are rendered by the chat template; otherwise they are raw
            texts.

    Returns:
        The batches.

    Raises:
        ValueError: A file cannot be read or a line is not as it should be, or grain is
            not installed.
    """
    _import_grain()  # before files are read, which may take a while
    samples = open_samples(paths, codec, chat_template=chat_template)
    return BatchStream(samples, config)


def batches_of(samples: Sequence[TokenSample], config: BatchConfig) -> BatchStream:
    """Train on samples that are in memory.

    Args:
        samples: Token ids of prompts and answers.
        config: How they become batches.

    Returns:
        The batches.

    Raises:
        ValueError: A sample has no answer, there is none, or grain is not installed.

    Example:
        >>> config = BatchConfig(batch_size=1, length=6, pad_id=0, shuffle=False)
        >>> batches = batches_of([([1], [2, 3]), ([4], [5, 6])], config)
        >>> next(batches).tokens_BT.tolist()
        [[1, 2, 3, 4, 5, 6]]
    """
    return BatchStream(SampleList(samples), config)


class _SampleLayout:
    """What grain reads: samples in their final form, None where one is skipped."""

    def __init__(self, samples: Samples, config: BatchConfig) -> None:
        self._samples = samples
        self._config = config
        self._skipped: set[int] = set()
        self._messages: list[str] = []

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> TokenSample | None:
        prompt, answer = self._samples[int(index)]
        answer = _pad_answer(prompt, answer, self._config)
        problem = _misfit(prompt, answer, self._config)
        if problem is None:
            return prompt, answer
        message = f"{self._samples.where(int(index))}{problem}"
        if self._config.too_long == "error":
            raise ValueError(f"{message}; raise it, or set too_long='skip'")
        if index not in self._skipped:
            self._skipped.add(int(index))
            if len(self._messages) < _NAMED_SKIPS:
                self._messages.append(message)
        if len(self._skipped) == len(self):
            raise ValueError(
                f"all {len(self)} samples are too long, for example: {message}; raise "
                "it"
            )
        return None

    def skipped(self) -> SkippedSamples:
        return SkippedSamples(count=len(self._skipped), messages=tuple(self._messages))


def _pad_answer(
    prompt: Sequence[int], answer: Sequence[int], config: BatchConfig
) -> Sequence[int]:
    """An answer with the padding that is trained."""
    end = len(answer) if config.answer_start else len(prompt) + len(answer)
    if config.end_padding == "none":
        missing = 0
    elif config.end_padding == "block":
        assert config.block_length is not None
        missing = -end % config.block_length
    elif config.end_padding == "row":
        missing = config.length - (config.answer_start or 0) - end
    else:
        missing = config.end_padding - len(answer)
    return [*answer, *[config.pad_id] * missing]


def _misfit(
    prompt: Sequence[int], answer: Sequence[int], config: BatchConfig
) -> str | None:
    """Why a sample does not fit in a row; None where it does."""
    padding, start = config.end_padding, config.answer_start
    if not isinstance(padding, str) and len(answer) > padding:
        return f"an answer of {len(answer)} tokens is longer than end_padding={padding}"
    if start is None:
        total = len(prompt) + len(answer)
        if total <= config.length:
            return None
        return (
            f"a prompt of {len(prompt)} tokens and an answer of {len(answer)} are "
            f"{total}, more than length={config.length}"
        )
    if len(prompt) > start:
        return f"a prompt of {len(prompt)} tokens is longer than answer_start={start}"
    room = config.length - start
    if len(answer) > room:
        return (
            f"an answer of {len(answer)} tokens is longer than its room of {room}, "
            f"length={config.length} less answer_start={start}"
        )
    return None


def _close(iterators: list[Any]) -> None:
    """Close the iterator in a list, and forget it."""
    while iterators:
        iterators.pop().close()


def _grain_iterator(layout: _SampleLayout, config: BatchConfig) -> Any:
    """The pipeline, as an iterator of grain."""
    grain = _import_grain()
    rows = config.batch_size
    dataset = grain.MapDataset.source(layout)
    if config.shuffle:
        # Grain draws the order of epoch e from seed + e: neighbouring seeds would give
        # the same orders, an epoch apart.
        [seed] = np.random.SeedSequence(config.seed).generate_state(1)
        dataset = dataset.shuffle(seed=int(seed))
    # Without threads of its own: samples are needed in their order, and a thread makes
    # whole batches ahead.
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = dataset.repeat(config.epochs).to_iter_dataset(reading)
    # What was skipped is in the stream's own report, not in a log.
    options = grain.experimental.DatasetOptions(filter_warn_threshold_ratio=None)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
    if config.packing == "pack":
        dataset = grain.experimental.FirstFitPackIterDataset(
            dataset.map(_to_arrays),
            length_struct={"tokens": config.length, "is_answer": config.length},
            padding_struct={"tokens": config.pad_id, "is_answer": False},
            meta_features=("is_answer",),
            # One stretch of the sequence for each batch, so that a batch's end is no
            # more than a position in it.
            num_packing_bins=rows,
            shuffle_bins=False,
        )
        dataset = dataset.batch(rows).map(_packed_batch)
    else:
        dataset = dataset.batch(rows, batch_fn=lambda samples: samples)
        dataset = dataset.map(lambda samples: _rows_of_one(samples, config))
    dataset = dataset.map(lambda batch: _part(batch, config))
    if config.prefetch:
        dataset = grain.experimental.ThreadPrefetchIterDataset(
            dataset, prefetch_buffer_size=config.prefetch
        )
    return iter(dataset)


def _to_arrays(sample: TokenSample) -> dict[str, np.ndarray]:
    """A sample as grain packs it."""
    prompt, answer = sample
    return {
        "tokens": np.array([*prompt, *answer], np.int32),
        "is_answer": np.arange(len(prompt) + len(answer)) >= len(prompt),
    }


def _packed_batch(packed: dict[str, np.ndarray]) -> TokenBatch:
    """What grain has packed; it counts samples from 1, and padding is 0."""
    return TokenBatch(
        tokens_BT=packed["tokens"],
        is_answer_BT=packed["is_answer"],
        sample_BT=packed["tokens_segment_ids"] - 1,
    )


def _rows_of_one(samples: Sequence[TokenSample], config: BatchConfig) -> TokenBatch:
    """One sample in each row."""
    if config.answer_start is not None:
        return align_answers(
            samples,
            prompt_columns=config.answer_start,
            answer_columns=config.length - config.answer_start,
            pad_id=config.pad_id,
        )
    rows = [[sample] for sample in samples]
    return pack_samples(rows, length=config.length, pad_id=config.pad_id)


def _part(batch: TokenBatch, config: BatchConfig) -> TokenBatch:
    """The rows of this process; the last batch is filled up with rows of padding."""
    missing = config.batch_size - len(batch.tokens_BT)
    rows = config.batch_size // config.process_count
    begin = rows * config.process_index

    def part(array_BT: Any, padding: int | bool):
        filled_BT = np.pad(array_BT, ((0, missing), (0, 0)), constant_values=padding)
        return filled_BT[begin : begin + rows]

    return TokenBatch(
        tokens_BT=part(batch.tokens_BT, config.pad_id),
        is_answer_BT=part(batch.is_answer_BT, False),
        sample_BT=part(batch.sample_BT, PADDING),
    )


def _order(config: BatchConfig) -> dict[str, Any]:
    """The settings on which it depends which sample comes when."""
    return {
        "seed": config.seed,
        "shuffle": config.shuffle,
        "packing": config.packing,
    }


def _import_grain() -> Any:
    """Import grain, which makes the pipeline."""
    try:
        import grain
        import grain.experimental
    except ImportError as error:
        raise ValueError(
            f"grain is not installed ({one_line(error)}); pip install 'jaxdave[train]'"
        ) from error
    return grain

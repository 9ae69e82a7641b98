"""Settings of batches: how samples are ordered, laid out and shared among processes."""

import dataclasses
from typing import Literal

_CHOICES = {"packing": ("pack", "one"), "too_long": ("error", "skip")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How samples become batches.

    Attributes:
        batch_size: Rows of a batch, of all processes together.
        length: Positions of a row.
        pad_id: The id of padding.
        seed: Draws the order of each epoch.
        shuffle: Whether there is another order than that of the samples.
        epochs: How often each sample is trained; None: there is no end. The last batch
            is filled up with rows of padding.
        packing: "pack": as many samples as fit share a row, and do not see each other;
            "one": each has a row of its own.
        answer_start: The column at which all answers begin, for objectives of layout
            "clean_first"; None: answers follow their prompts.
        end_padding: Padding behind an answer that is trained as part of it, so that a
            model learns what is behind the end: "none"; "block": up to the end of its
            last block, where a decoder has masks; "row": to the end of the row; a
            number: until the answer has so many tokens, the canvas of a decoder with
            full attention.
        block_length: Tokens of a block, where end_padding is "block".
        too_long: A sample that does not fit in a row is an "error", or a "skip".
        prefetch: Batches that are made ahead by a thread; 0: none, and no thread.
        process_index: Which part of the rows is kept, from 0.
        process_count: How many parts there are.

    Raises:
        ValueError: A value is out of range, or settings do not go together.
    """

    batch_size: int
    length: int
    pad_id: int
    seed: int = 0
    shuffle: bool = True
    epochs: int | None = None
    packing: Literal["pack", "one"] = "pack"
    answer_start: int | None = None
    end_padding: int | Literal["none", "block", "row"] = "none"
    block_length: int | None = None
    too_long: Literal["error", "skip"] = "error"
    prefetch: int = 2
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field}={getattr(self, field)!r} must be one of "
                    f"{', '.join(map(repr, choices))}"
                )
        for field in ("batch_size", "length", "process_count"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1")
        for field in ("seed", "prefetch"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 0")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(
                f"epochs={self.epochs} must be at least 1; leave it out to train "
                "without end"
            )
        self._check_layout()
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(
                f"process_index={self.process_index} must be at least 0 and below "
                f"process_count={self.process_count}"
            )
        if self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of process_count="
                f"{self.process_count}; use "
                f"{-(-self.batch_size // self.process_count) * self.process_count}"
            )

    def _check_layout(self) -> None:
        start, padding = self.answer_start, self.end_padding
        if start is not None and not 0 < start < self.length:
            raise ValueError(
                f"answer_start={start} must be at least 1 and below length="
                f"{self.length}"
            )
        if self.packing == "pack" and start is not None:
            raise ValueError(
                f"answer_start={start} leaves no room to pack samples; use "
                "packing='one'"
            )
        if self.packing == "pack" and padding == "row":
            raise ValueError(
                "end_padding='row' leaves no room to pack samples; use packing='one', "
                "or end_padding='block'"
            )
        if isinstance(padding, str) and padding not in ("none", "block", "row"):
            raise ValueError(
                f"end_padding={padding!r} must be 'none', 'block', 'row' or a number"
            )
        if not isinstance(padding, str) and padding < 1:
            raise ValueError(
                f"end_padding={padding} must be at least 1; use 'none' to have none"
            )
        if (padding == "block") != (self.block_length is not None):
            raise ValueError(
                f"end_padding={padding!r} with block_length={self.block_length}: give "
                "block_length with 'block', and only there"
            )
        columns = self.length - (start or 0)
        if self.block_length is not None and columns % self.block_length:
            raise ValueError(
                f"the {columns} columns of length={self.length}, answer_start={start} "
                f"must be a multiple of block_length={self.block_length}"
            )

"""An answer where nothing can be drawn over: text that is only ever added to."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from jaxdave.cli.chat.answering import Progress

if TYPE_CHECKING:
    from jaxdave.engine.sampler import TextCodec

_HALF = "\ufffd"
"""What a decoder shows of a character whose end is not there yet."""


def final_text(codec: "TextCodec", progress: Progress) -> str:
    """The text of an answer that no later call changes.

    Args:
        codec: Decodes ids.
        progress: News of the answer.

    Returns:
        The text; half a character waits for its end.
    """
    snapshot = progress.snapshot
    if snapshot is None:
        return ""
    text = codec.decode(snapshot.final_ids)
    return text if snapshot.completion is not None else text.removesuffix(_HALF)


class PlainView:
    """Writes text as it becomes final. Of several decodes it shows the first."""

    def __init__(self, codec: "TextCodec", clean: Callable[[str], str] = str) -> None:
        """Args: codec: decodes ids; clean: makes text fit to be shown."""
        self._codec = codec
        self._clean = clean
        self._num_shown = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        print(flush=True)

    def show(self, index: int, progress: Progress) -> None:
        """Write what is new.

        Args:
            index: Which decode.
            progress: Its news.
        """
        if index:
            return
        text = final_text(self._codec, progress)
        sys.stdout.write(self._clean(text[self._num_shown :]))
        sys.stdout.flush()
        self._num_shown = max(self._num_shown, len(text))

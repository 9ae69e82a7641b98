"""The text of an answer, piece by piece as it becomes final."""

from collections.abc import Iterator, Sequence

from jaxdave.engine.generate_until import DecodeFn
from jaxdave.engine.results import FinishReason
from jaxdave.engine.stop_strings import (
    HALF_CHARACTER,
    cut_at_stop,
    is_final,
    num_ids_of,
    settled_length,
)
from jaxdave.engine.streaming import TokenStream


class TextStream(Iterator[str]):
    """The pieces of an answer as they become final.

    Attributes:
        token_ids: Ids of the answer so far; at a stop string, those of the text.
        calls: Calls of the model so far; until the end, rounds of the loop.
        is_finished: True when the row's last call is known.
        finish_reason: As in `TextCompletion`, once it is finished; None before.
    """

    def __init__(
        self,
        decode: DecodeFn,
        updates: TokenStream,
        stops: Sequence[str] = (),
        *,
        early_exit: bool = True,
    ) -> None:
        """Args: decode: maps ids to their text; updates: those of one row.

        stops: stop strings; early_exit: the decode ends with the answer.
        """
        self.token_ids: list[int] = []
        self.calls = 1
        self.is_finished = False
        self.finish_reason: FinishReason | None = None
        self._decode = decode
        self._updates = updates
        self._stops = stops
        self._early_exit = early_exit
        self._shown = ""
        self._is_cut = False

    def __next__(self) -> str:
        """The next piece, which is never empty."""
        while not (self._is_cut and self._early_exit):
            update = next(self._updates, None)
            if update is None:
                break
            self.calls, self.is_finished = update.call + 1, not update.token_ids
            self.finish_reason = update.finish_reason
            if self._is_cut:
                continue
            self.token_ids.extend(update.token_ids)
            piece = self._new_text(is_last=False)
            if piece:
                return piece
        piece = "" if self._is_cut else self._new_text(is_last=True)
        if self._is_cut:
            self.is_finished = True
            self.finish_reason = "stop"
        # Updates count rounds of the loop, of which some make two calls.
        self.calls = self._updates.completion(0).nfe.total
        if not piece:
            raise StopIteration
        return piece

    def _new_text(self, is_last: bool) -> str:
        """The text that has not been shown, as far as nothing can take it back."""
        # All ids are decoded each time, as a character's bytes may be spread over
        # several tokens. A decoder shows an unfinished one as U+FFFD, which waits.
        text = self._decode(self.token_ids)
        if text.endswith(HALF_CHARACTER) and not is_last:
            return ""
        end = len(cut_at_stop(text, self._stops))
        if not is_last:
            end = settled_length(text, self._stops)
        self._is_cut = is_final(text, self._stops) or (is_last and end < len(text))
        piece, self._shown = text[len(self._shown) : end], text[:end]
        if self._is_cut:
            del self.token_ids[num_ids_of(self._shown, self.token_ids, self._decode) :]
        return piece


def split_text(decode: DecodeFn, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds to an answer.

    Args:
        decode: Maps ids to their text.
        token_ids: Ids of the answer.

    Returns:
        A text for every id; that of half a character comes with its end.
    """
    num_shown, pieces = 0, []
    for count in range(1, len(token_ids) + 1):
        text = decode(token_ids[:count])
        is_whole = count == len(token_ids) or not text.endswith(HALF_CHARACTER)
        pieces.append(text[num_shown:] if is_whole else "")
        num_shown = len(text) if is_whole else num_shown
    return pieces

"""The steps of an answer: which token was committed when, and how likely it was."""

import math
from typing import Any, NamedTuple

import numpy as np

from jaxdave.core.state import Stats


class Trajectory(NamedTuple):
    """The tokens of an answer in the order in which the policy has committed them.

    Tokens of one step are in order of position. Everything that was decoded within the
    answer's room is here, the end token and what lies behind it included: it is all
    that the policy has drawn. Drafts change nothing of it but `calls`.

    Attributes:
        positions: Positions, counted from the first generated one.
        token_ids: The tokens.
        steps: The policy step that committed each, from 0.
        calls: The call that made it known, 0 for the prefill.
        log_probs: Log-probabilities of the tokens at their steps, under the tempered
            distribution before top-k and top-p (at temperature 0: the model's own).
            NaN where the policy has filled in another token than the model drew. The
            same bits with and without drafts under exact numerics; under guarded ones
            within the measured error.
    """

    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    steps: tuple[int, ...]
    calls: tuple[int, ...]
    log_probs: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values: a list for each attribute, None for NaN."""
        numbers = [None if math.isnan(one) else one for one in self.log_probs]
        return {**{k: list(v) for k, v in self._asdict().items()}, "log_probs": numbers}


def read_trajectory(
    stats: Stats, index: int, tokens_T: np.ndarray, begin: int, end: int, mask_id: int
) -> Trajectory | None:
    """Read what was recorded of a row.

    Args:
        stats: Of all rows, on the host.
        index: The row.
        tokens_T: Its tokens.
        begin: The first position after its prompt.
        end: The position after the last one of its answer's room.
        mask_id: The id of a masked position. One that was filled and then masked again
            holds no token, so that it has no step.

    Returns:
        The trajectory; None if this decode records nothing.
    """
    if stats.step_T is None or stats.log_prob_T is None:
        return None
    is_kept = (stats.step_T[index] >= 0) & (tokens_T != mask_id)
    places = begin + np.flatnonzero(is_kept[begin:end])
    places = places[np.argsort(stats.step_T[index][places], kind="stable")]

    def read(array_T: Any) -> tuple[Any, ...]:
        return tuple(array_T[places].tolist())

    return Trajectory(
        positions=tuple((places - begin).tolist()),
        token_ids=read(tokens_T),
        steps=read(stats.step_T[index]),
        calls=read(stats.call_T[index]),
        log_probs=read(stats.log_prob_T[index]),
    )

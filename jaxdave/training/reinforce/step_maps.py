"""Step maps: at which policy step each position of a canvas got its token.

A step map is a recorded trajectory as one array. It tells every state that the policy
has seen: before step s exactly the positions with a step before s are known.

Axes: T positions of a canvas (prompt and answer), S states.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.engine.trajectory import Trajectory

GIVEN = -1
"""Step of a position that is known from the start: the prompt."""
NEVER = np.iinfo(np.int32).max
"""Step of a position that was never decoded."""


class RecordedCanvas(NamedTuple):
    """A prompt and its recorded answer, as arrays on the host.

    Attributes:
        tokens_T: Token ids, int32 [T].
        steps_T: The step map: `GIVEN` in the prompt, `NEVER` where nothing was decoded,
            int32 [T].
        log_probs_T: What the decoder recorded: the old log-probabilities of a ratio,
            float32 [T]. NaN where there is none; such positions are not drawn and do
            not count in a loss.
    """

    tokens_T: np.ndarray
    steps_T: np.ndarray
    log_probs_T: np.ndarray

    @property
    def is_drawn_T(self) -> np.ndarray:
        """True where the policy has drawn a token, bool [T]."""
        return ~np.isnan(self.log_probs_T)

    @property
    def num_steps(self) -> int:
        """One more than the last step."""
        is_decoded_T = self.steps_T != NEVER
        return int(np.max(self.steps_T, where=is_decoded_T, initial=GIVEN)) + 1


def canvas_of(
    prompt: tuple[int, ...], trajectory: Trajectory, room: int, mask_id: int
) -> RecordedCanvas:
    """Lay a recorded answer out behind its prompt.

    Args:
        prompt: Token ids of the prompt.
        trajectory: The answer, as `DecodeConfig.record_steps` records it.
        room: Positions behind the prompt.
        mask_id: The id at positions that were never decoded.

    Returns:
        The canvas, T = prompt and room.

    Raises:
        ValueError: The trajectory does not fit the room.

    Example:
        >>> answer = Trajectory((1, 0), (8, 9), (0, 1), (0, 1), (-0.5, -0.25))
        >>> canvas = canvas_of((5,), answer, 2, mask_id=0)
        >>> canvas.tokens_T.tolist(), canvas.steps_T.tolist(), canvas.num_steps
        ([5, 9, 8], [-1, 1, 0], 2)
        >>> canvas.log_probs_T.tolist()
        [nan, -0.25, -0.5]
    """
    last = max(trajectory.positions, default=-1)
    if last >= room:
        raise ValueError(
            f"the trajectory has a token at position {last} of its answer and the room "
            f"is {room}; give the room that it was decoded in"
        )
    begin = len(prompt)
    tokens_T = np.full(begin + room, mask_id, np.int32)
    steps_T = np.full(begin + room, NEVER, np.int32)
    log_probs_T = np.full(begin + room, np.nan, np.float32)
    tokens_T[:begin], steps_T[:begin] = prompt, GIVEN
    places = begin + np.array(trajectory.positions, int)
    tokens_T[places] = trajectory.token_ids
    steps_T[places] = trajectory.steps
    log_probs_T[places] = trajectory.log_probs
    return RecordedCanvas(tokens_T, steps_T, log_probs_T)


def canvas_of_text(
    prompt: Sequence[int], answer: Sequence[int], room: int, mask_id: int
) -> RecordedCanvas:
    """Lay out an answer that no policy has drawn, as the chain would decode it.

    Args:
        prompt: Token ids of the prompt.
        answer: Token ids of the answer, with its end token.
        room: Positions behind the prompt.
        mask_id: The id at positions behind the answer.

    Returns:
        The canvas, T = prompt and room; nothing of it is drawn.

    Raises:
        ValueError: The answer does not fit the room.

    Example:
        >>> canvas = canvas_of_text((5,), (9, 8), 3, mask_id=0)
        >>> canvas.tokens_T.tolist(), canvas.steps_T[:3].tolist(), canvas.num_steps
        ([5, 9, 8, 0], [-1, 0, 1], 2)
    """
    if len(answer) > room:
        raise ValueError(
            f"the answer has {len(answer)} tokens and the room is {room}; give more"
        )
    begin, end = len(prompt), len(prompt) + len(answer)
    tokens_T = np.full(begin + room, mask_id, np.int32)
    steps_T = np.full(begin + room, NEVER, np.int32)
    tokens_T[:end] = [*prompt, *answer]
    steps_T[:begin], steps_T[begin:end] = GIVEN, np.arange(end - begin)
    return RecordedCanvas(tokens_T, steps_T, np.full(begin + room, np.nan, np.float32))


def left_to_right(is_answer_T: jax.Array) -> jax.Array:
    """Return the step map of the chain: one token a step, from left to right.

    Args:
        is_answer_T: True at the positions to be decoded, bool [T].

    Returns:
        int32 [T], `GIVEN` elsewhere.

    Example:
        >>> left_to_right(jnp.array([False, True, True])).tolist()
        [-1, 0, 1]

    Source: JustGRPO (The Flexibility Trap), LeapLabTHU/JustGRPO, grpo.py.
    """
    rank_T = jnp.cumsum(is_answer_T.astype(jnp.int32)) - 1
    return jnp.where(is_answer_T, rank_T, GIVEN)


def shrink_steps(steps_T: np.ndarray, factor: int) -> np.ndarray:
    """Merge every `factor` successive steps of a trajectory into one.

    The tokens of merged steps are then scored in the state before the first of them:
    fewer calls, and no longer the probabilities that they were drawn with.

    Args:
        steps_T: A step map, int [T].
        factor: How many steps become one, at least 1, which changes nothing but that
            steps are numbered without gaps.

    Returns:
        int32 [T].

    Raises:
        ValueError: `factor` is below 1.

    Example:
        >>> shrink_steps(np.array([-1, 4, 2, 3, 2]), 2).tolist()
        [-1, 1, 0, 0, 0]

    Source: TraceRL's trajectory shrinkage, arXiv 2509.06949.
    """
    if factor < 1:
        raise ValueError(f"factor={factor} must be at least 1")
    is_decoded_T = (steps_T != GIVEN) & (steps_T != NEVER)
    _, rank = np.unique(steps_T[is_decoded_T], return_inverse=True)
    shrunk_T = np.array(steps_T, np.int32)
    shrunk_T[is_decoded_T] = rank // factor
    return shrunk_T


def states_before(
    tokens_T: jax.Array, steps_T: jax.Array, num_steps: int, mask_id: int
) -> jax.Array:
    """Rebuild the state before each step.

    Args:
        tokens_T: The finished canvas, int32 [T].
        steps_T: Its step map, int32 [T].
        num_steps: Steps S of the trajectory.
        mask_id: The id of a masked position.

    Returns:
        int32 [S, T].

    Example:
        >>> tokens_T, steps_T = jnp.array([5, 6, 7]), jnp.array([-1, 1, 0])
        >>> states_before(tokens_T, steps_T, 2, mask_id=0).tolist()
        [[5, 0, 0], [5, 0, 7]]
    """
    is_known_ST = steps_T[None, :] < jnp.arange(num_steps, dtype=jnp.int32)[:, None]
    return jnp.where(is_known_ST, tokens_T[None, :], mask_id)

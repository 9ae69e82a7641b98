"""Log-probabilities that are exact: of the tokens of a trajectory, in their states.

A diffusion model has no single likelihood. What it has exactly is the probability of a
token in a state, and so of a text along one path of states.

Axes: T positions of a canvas, S states, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.training.reinforce.step_maps import left_to_right, states_before

LogitsFn = Callable[[jax.Array], jax.Array]
"""Function (states, int32 [S, T]) -> float [S, T, V], the logits at every position for
the token of that position; ids that are never predicted, the mask among them, are not
in V or have minus infinity."""


def token_log_probs(
    logits_of: LogitsFn,
    states_ST: jax.Array,
    tokens_T: jax.Array,
    *,
    temperature: float = 1.0,
    states_per_call: int | None = None,
) -> jax.Array:
    """Compute how likely the tokens of a finished canvas are in some states of it.

    Args:
        logits_of: The model.
        states_ST: Partly masked canvases, int32 [S, T].
        tokens_T: The finished canvas, int32 [T]; an id outside V counts as the last of
            V, so leave such positions out of what is added up.
        temperature: Above 0; the tokens were drawn at it.
        states_per_call: How many states are evaluated, and kept for the gradient, at
            once; each is evaluated again for the gradient. None: all, once.

    Returns:
        float32 [S, T].

    Raises:
        ValueError: `temperature` is not above 0.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature={temperature} must be above 0; what is recorded of decoding "
            "at 0 are the model's own log-probabilities, those at 1"
        )

    def score(states_ST: jax.Array) -> jax.Array:
        logits_STV = logits_of(states_ST).astype(jnp.float32) / temperature
        log_probs_STV = jax.nn.log_softmax(logits_STV, axis=-1)
        at_T = jnp.minimum(tokens_T, logits_STV.shape[-1] - 1)
        at_STV = jnp.broadcast_to(at_T[None, :, None], (*states_ST.shape, 1))
        return jnp.take_along_axis(log_probs_STV, at_STV, axis=-1)[..., 0]

    if states_per_call is None:
        return score(states_ST)
    one = jax.checkpoint(lambda state_T: score(state_T[None])[0])
    return jax.lax.map(one, states_ST, batch_size=states_per_call)


def trajectory_log_probs(
    logits_of: LogitsFn,
    tokens_T: jax.Array,
    steps_T: jax.Array,
    num_steps: int,
    *,
    mask_id: int,
    temperature: float = 1.0,
    states_per_call: int | None = None,
) -> jax.Array:
    """Compute each token's log-probability in the state in which it was committed.

    Their sum is TraceRL's log pi(trajectory): over the recorded steps, the product of
    the probabilities of the tokens of the step, given the state before it. It is the
    probability with which the tokens were drawn. It is that of the trajectory wherever
    the positions of a step do not depend on the tokens drawn in it (fixed orders, the
    entropy or the largest probability of a position); where they do (the drawn token's
    probability above temperature 0), the choice of positions has a probability of its
    own, which this leaves out, as all published methods do.

    Args:
        logits_of: The model.
        tokens_T: The finished canvas, int32 [T].
        steps_T: Its step map, int32 [T] (`step_maps.canvas_of`).
        num_steps: Steps S: one more than the last step of the map.
        mask_id: The id of a masked position.
        temperature: As in `token_log_probs`.
        states_per_call: As in `token_log_probs`.

    Returns:
        float32 [T], 0 where no step has committed a token.

    Source: TraceRL, arXiv 2509.06949, section 4.
    """
    states_ST = states_before(tokens_T, steps_T, num_steps, mask_id)
    log_probs_ST = token_log_probs(
        logits_of,
        states_ST,
        tokens_T,
        temperature=temperature,
        states_per_call=states_per_call,
    )
    is_committed_ST = (
        steps_T[None, :] == jnp.arange(num_steps, dtype=jnp.int32)[:, None]
    )
    return jnp.sum(jnp.where(is_committed_ST, log_probs_ST, 0.0), axis=0)


def chain_log_probs(
    logits_of: LogitsFn,
    tokens_T: jax.Array,
    is_answer_T: jax.Array,
    num_steps: int,
    *,
    mask_id: int,
    temperature: float = 1.0,
    states_per_call: int | None = None,
) -> jax.Array:
    """Compute each token's log-probability given all tokens to its left and no other.

    Their sum is the exact likelihood of the text under decoding from left to right, one
    token at a time: a distribution over texts, whatever order they were decoded in. One
    state a token: `states_per_call` bounds the memory.

    Args:
        logits_of: The model.
        tokens_T: The finished canvas, int32 [T].
        is_answer_T: True at the tokens of the answer, bool [T].
        num_steps: How many positions that are, or more.
        mask_id: The id of a masked position.
        temperature: As in `token_log_probs`.
        states_per_call: As in `token_log_probs`.

    Returns:
        float32 [T], 0 outside the answer.

    Source: JustGRPO (The Flexibility Trap), LeapLabTHU/JustGRPO, grpo.py
    (`logprob_loss`).
    """
    return trajectory_log_probs(
        logits_of,
        tokens_T,
        left_to_right(is_answer_T),
        num_steps,
        mask_id=mask_id,
        temperature=temperature,
        states_per_call=states_per_call,
    )

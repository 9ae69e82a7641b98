"""Why dividing by the standard deviation helps: the log-linear policy in closed form.

A policy chooses one of the answers to a question with probability proportional to
exp(x . theta), x the answer's features. The curvature of the expected reward is bounded
by the reward's variance p (1 - p), so that GRPO's division is a step size that grows
where the objective is flat.

Bounds are the talk's (Ge, Yin, Liang, Zhang: why GRPO needs normalisation; October
2025). J is maximised; a step size multiplies its gradient. Gradients here are exact,
those of infinitely many answers.

Axes: Q questions, A answers, D parameters, S steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.training.reinforce.advantages import Normalize


def answer_probs(features_AD: jax.Array, theta_D: jax.Array) -> jax.Array:
    """Compute the policy of one question.

    Args:
        features_AD: Of its answers, float [A, D].
        theta_D: Parameters, float [D].

    Returns:
        float [A], sums to 1.
    """
    return jax.nn.softmax(features_AD @ theta_D)


def expected_reward(
    features_AD: jax.Array, reward_A: jax.Array, theta_D: jax.Array
) -> jax.Array:
    """Compute J: with rewards 0 and 1 the probability p of a right answer.

    Args:
        features_AD: As in `answer_probs`.
        reward_A: Reward of each answer, float [A].
        theta_D: As in `answer_probs`.

    Returns:
        Scalar.
    """
    return answer_probs(features_AD, theta_D) @ reward_A


def reward_variance(
    features_AD: jax.Array, reward_A: jax.Array, theta_D: jax.Array
) -> jax.Array:
    """Compute p (1 - p), 1 - p not by subtraction, so that it is right near p = 1.

    Args:
        features_AD: As in `answer_probs`.
        reward_A: 1 for a right answer and 0 for a wrong one, float [A].
        theta_D: As in `answer_probs`.

    Returns:
        Scalar.
    """
    probs_A = answer_probs(features_AD, theta_D)
    return (probs_A @ reward_A) * (probs_A @ (1.0 - reward_A))


def gradient(
    features_AD: jax.Array, reward_A: jax.Array, theta_D: jax.Array
) -> jax.Array:
    """Compute the gradient of J: the sum of pi (r - J) (x - mean x).

    Args:
        features_AD: As in `answer_probs`.
        reward_A: As in `expected_reward`.
        theta_D: As in `answer_probs`.

    Returns:
        float [D].
    """
    weight_A, centred_AD = _parts(features_AD, reward_A, theta_D)
    return weight_A @ centred_AD


def hessian(
    features_AD: jax.Array, reward_A: jax.Array, theta_D: jax.Array
) -> jax.Array:
    """Compute the Hessian of J: the sum of pi (r - J) (x - mean x) (x - mean x)'.

    Args:
        features_AD: As in `answer_probs`.
        reward_A: As in `expected_reward`.
        theta_D: As in `answer_probs`.

    Returns:
        float [D, D].
    """
    weight_A, centred_AD = _parts(features_AD, reward_A, theta_D)
    return (centred_AD * weight_A[:, None]).T @ centred_AD


def largest_norm(features_QAD: jax.Array) -> jax.Array:
    """Compute X_max, the largest spectral norm of the questions' feature matrices.

    Args:
        features_QAD: Of the answers to every question, float [Q, A, D].

    Returns:
        Scalar.
    """
    return jnp.max(jnp.linalg.norm(features_QAD, ord=2, axis=(1, 2)))


class Curvature(NamedTuple):
    """The curvature of one question's objective, and what bounds it; scalars.

    Attributes:
        norm: Spectral norm of the Hessian.
        bound: 4 X_max^2 p (1 - p).
        variance: p (1 - p), that of the reward.
    """

    norm: jax.Array
    bound: jax.Array
    variance: jax.Array


def curvature(
    features_AD: jax.Array, reward_A: jax.Array, theta_D: jax.Array
) -> Curvature:
    """Compute a question's curvature and its bound.

    With two answers x and -x the norm is (1 - 2 p) / 2 of the bound (p below 1/2), so
    that no constant below 2 could stand in the place of 4.

    Args:
        features_AD: As in `answer_probs`.
        reward_A: 1 for a right answer and 0 for a wrong one, float [A].
        theta_D: As in `answer_probs`.

    Returns:
        Norm, bound and variance.

    Source: the talk, curvature lemma.
    """
    norm = jnp.linalg.norm(hessian(features_AD, reward_A, theta_D), ord=2)
    variance = reward_variance(features_AD, reward_A, theta_D)
    bound = 4.0 * largest_norm(features_AD[None]) ** 2 * variance
    return Curvature(norm, bound, variance)


class Ascent(NamedTuple):
    """What a run of updates has met, before each step and after the last one.

    Attributes:
        p_SQ: Probability of a right answer to each question, float [S + 1, Q].
        variance_SQ: p (1 - p), float [S + 1, Q].
        square_SQ: Squared norms of the gradients of the questions, float [S + 1, Q].
        norm_SQ: Spectral norms of their Hessians, float [S + 1, Q].
        theta_SD: The parameters, float [S + 1, D].
    """

    p_SQ: jax.Array
    variance_SQ: jax.Array
    square_SQ: jax.Array
    norm_SQ: jax.Array
    theta_SD: jax.Array


def ascend(
    features_QAD: jax.Array,
    reward_QA: jax.Array,
    theta_D: jax.Array,
    num_steps: int,
    *,
    normalize: Normalize,
) -> Ascent:
    """Run REINFORCE ("none") or GRPO ("std") with exact gradients.

    A step adds the gradients of all questions, times 1 / X_max^2 for REINFORCE; for
    GRPO times 1 / (2 X_max^2), and each divided by sqrt(p (1 - p)).

    Args:
        features_QAD: As in `largest_norm`.
        reward_QA: 1 for a right answer and 0 for a wrong one, float [Q, A].
        theta_D: The parameters to start from, float [D].
        num_steps: Steps S.
        normalize: Which of the two.

    Returns:
        What the run has met.

    Source: the talk; its convergence statements hold where the gradients of different
    questions are orthogonal.
    """
    square_norm = largest_norm(features_QAD) ** 2
    step_size = 1.0 / square_norm if normalize == "none" else 0.5 / square_norm
    over_questions = (0, 0, None)

    def step(theta_D, _):
        p_Q = jax.vmap(expected_reward, over_questions)(
            features_QAD, reward_QA, theta_D
        )
        variance_Q = jax.vmap(reward_variance, over_questions)(
            features_QAD, reward_QA, theta_D
        )
        gradient_QD = jax.vmap(gradient, over_questions)(
            features_QAD, reward_QA, theta_D
        )
        hessian_QDD = jax.vmap(hessian, over_questions)(
            features_QAD, reward_QA, theta_D
        )
        met = Ascent(
            p_Q,
            variance_Q,
            jnp.sum(jnp.square(gradient_QD), axis=1),
            jnp.linalg.norm(hessian_QDD, ord=2, axis=(1, 2)),
            theta_D,
        )
        if normalize == "std":
            gradient_QD = gradient_QD / jnp.sqrt(variance_Q)[:, None]
        return theta_D + step_size * jnp.sum(gradient_QD, axis=0), met

    _, met = jax.lax.scan(step, theta_D, length=num_steps + 1)
    return met


class Convergence(NamedTuple):
    """A run beside its bounds.

    Attributes:
        least_Q: The least squared gradient norm of each question before the last step,
            float [Q].
        bound_Q: What the talk says it is at most, float [Q].
        gain_SQ: What each step has added to p, in units of ||gradient||^2 / X_max^2
            (REINFORCE) or ||gradient||^2 / (X_max^2 sqrt(p (1 - p))) (GRPO), float
            [S, Q].
        least_gain: What the talk says a step gains at least, in the same units.
    """

    least_Q: jax.Array
    bound_Q: jax.Array
    gain_SQ: jax.Array
    least_gain: float


PROVEN_GRPO_GAIN = 3 / 16
"""What follows from the talk's two lemmas, and gives its rate; its slide says 3/8."""


def convergence(
    run: Ascent, features_QAD: jax.Array, *, normalize: Normalize
) -> Convergence:
    """Compare a run with the talk's bounds.

    REINFORCE: every step gains at least ||g||^2 / (2 X_max^2), and the least ||g||^2 of
    T steps is at most 2 (1 - p_0) X_max^2 / T. GRPO, with C = sqrt(p (1 - p)): at least
    3 ||g||^2 / (16 X_max^2 C), and at most [2 (1 - p_0) X_max^2 / T] (8 / (3 T)) sum C.

    Args:
        run: What `ascend` has met.
        features_QAD: Features of the run.
        normalize: Which update it was.

    Returns:
        The comparison.

    Source: the talk. Deviation: its slide has 3/8 in the place of 3/16, which its own
    smoothness lemma (5/2 X_max^2 C, step 1 / (2 X_max^2 C)) does not give.
    """
    square_norm = largest_norm(features_QAD) ** 2
    p_SQ, square_SQ = run.p_SQ[:-1], run.square_SQ[:-1]
    num_steps = p_SQ.shape[0]
    bound_Q = 2.0 * (1.0 - p_SQ[0]) * square_norm / num_steps
    unit_SQ = square_SQ / square_norm
    least_gain = 0.5
    if normalize == "std":
        deviation_SQ = jnp.sqrt(run.variance_SQ[:-1])
        mean_Q = jnp.mean(deviation_SQ, axis=0)
        bound_Q = bound_Q * (8.0 / 3.0) * mean_Q
        unit_SQ = unit_SQ / deviation_SQ
        least_gain = PROVEN_GRPO_GAIN
    gain_SQ = jnp.diff(run.p_SQ, axis=0) / unit_SQ
    return Convergence(jnp.min(square_SQ, axis=0), bound_Q, gain_SQ, least_gain)


def separate_questions(features_QAD: jax.Array) -> jax.Array:
    """Give every question parameters of its own: gradients become orthogonal.

    Args:
        features_QAD: Of the answers to every question, float [Q, A, D].

    Returns:
        float [Q, A, Q D].

    Example:
        >>> separate_questions(jnp.array([[[1.0]], [[2.0]]])).tolist()
        [[[1.0, 0.0]], [[0.0, 2.0]]]
    """
    questions, answers, size = features_QAD.shape
    is_own_QQ = jnp.eye(questions, dtype=features_QAD.dtype)
    spread_QAQD = features_QAD[:, :, None, :] * is_own_QQ[:, None, :, None]
    return spread_QAQD.reshape(questions, answers, questions * size)


def _parts(
    features_AD: jax.Array, reward_A: jax.Array, theta_D: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(probability times r - J, features less their mean) of every answer."""
    probs_A = answer_probs(features_AD, theta_D)
    centred_AD = features_AD - (probs_A @ features_AD)[None, :]
    # The mean of differences, as r - J would round to 0 where J is nearly r.
    return probs_A * ((reward_A[:, None] - reward_A[None, :]) @ probs_A), centred_AD

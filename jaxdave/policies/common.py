"""Building blocks of policies: exact orders, log-odds, fixed sums and random numbers.

Policies must decide the same in every compiled program that evaluates them (batches of
any size, windows of any length). Hence three rules: positions are ranked by counting,
not by a sort or by scores that something was added to; thresholds on a probability are
compared as log-odds, because in float32 all confident probabilities round to 1; and
sums of floats run over a fixed tree of additions, which XLA may not reorder.
"""

import math

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import PolicyView


def rank(open_W: jax.Array, score_W: jax.Array) -> jax.Array:
    """The rank of each position among the open ones, highest score first.

    Ties go to the leftmost position. Ranks are counted, not sorted, so that ties
    resolve alike in windows of any length.

    Args:
        open_W: Positions that are ranked, bool [W].
        score_W: Their scores, float32 [W]; others' do not matter.

    Returns:
        Ranks from 0, int32 [W]; meaningless at positions that are not open.
    """
    return jnp.sum(
        comes_before(score_W, score_W) & open_W[None, :], axis=1, dtype=jnp.int32
    )


def comes_before(rival_W: jax.Array, own_W: jax.Array) -> jax.Array:
    """The pairs of positions whose second one precedes the first, as `rank` orders.

    Args:
        rival_W: Scores of the second position of a pair, float32 [W].
        own_W: Scores of the first position of a pair, float32 [W]. Both are the same
            array in an ordinary ranking, and ends of intervals in a certified one.

    Returns:
        bool [W, W]: at [i, j], position j with score `rival_W[j]` precedes position i
        with score `own_W[i]`.
    """
    index_W = jnp.arange(own_W.shape[0])
    higher_WW = rival_W[None, :] > own_W[:, None]
    tied_WW = rival_W[None, :] == own_W[:, None]
    return higher_WW | (tied_WW & (index_W[None, :] < index_W[:, None]))


def best_positions(
    view: PolicyView, count: jax.Array | int, score_W: jax.Array
) -> jax.Array:
    """The open positions with the highest scores.

    Args:
        view: The policy's view.
        count: How many positions to choose; 1 if it is lower.
        score_W: Scores, float32 [W].

    Returns:
        The chosen positions, bool [W].
    """
    return view.open_W & (rank(view.open_W, score_W) < jnp.maximum(count, 1))


def order_by_counts(
    open_W: jax.Array, score_W: jax.Array, count_I: jax.Array
) -> jax.Array:
    """When each position is committed if steps take the best open ones in turn.

    Args:
        open_W: Positions that are committed, bool [W].
        score_W: What they are ordered by, highest first as in `rank`, float32 [W].
        count_I: How many each step takes, int32 [I] of at least W steps; 1 if it is
            lower.

    Returns:
        The step, from 0, int32 [W]; meaningless at positions that are not open.
    """
    taken_I = jnp.cumsum(jnp.maximum(count_I, 1), dtype=jnp.int32)
    is_past_WI = rank(open_W, score_W)[:, None] >= taken_I[None]
    return jnp.sum(is_past_WI, axis=1, dtype=jnp.int32)


def order_after_first(
    open_W: jax.Array, score_W: jax.Array, first_W: jax.Array
) -> jax.Array:
    """When each position is committed if some are at once, then the best one a step.

    Args:
        open_W: Positions that are committed, bool [W].
        score_W: What the rest is ordered by, highest first as in `rank`, float32 [W].
        first_W: The positions of the first step, bool [W].

    Returns:
        The step, from 0, int32 [W]; meaningless at positions that are not open.
    """
    rest_W = open_W & ~first_W
    return jnp.where(first_W, 0, 1 + rank(rest_W, score_W))


def fill_positions(view: PolicyView, chosen_W: jax.Array) -> jax.Array:
    """The block with the predicted tokens at the chosen open positions.

    Args:
        view: The policy's view.
        chosen_W: Positions to fill, bool [W]; those that are not open are left alone.

    Returns:
        The block's tokens after the step, int32 [W].
    """
    return jnp.where(chosen_W & view.open_W, view.pred.token, view.tokens_W)


def masked_positions(view: PolicyView) -> jax.Array:
    """The masked positions of the block, also those that a wrapper has closed.

    Args:
        view: The policy's view.

    Returns:
        bool [W].
    """
    inside_W = (view.position_W >= 0) & (view.position_W < view.max_new_tokens)
    return inside_W & (view.tokens_W == view.mask_id)


def count(flag_W: jax.Array) -> jax.Array:
    """The number of positions with a flag.

    Args:
        flag_W: bool [W].

    Returns:
        int32 scalar.
    """
    return jnp.sum(flag_W, dtype=jnp.int32)


def log_odds(probability: float) -> float:
    """The log-odds of a probability, log(p / (1 - p)).

    Args:
        probability: A probability p; values outside 0..1 count as 0 or 1.

    Returns:
        The log-odds; infinite at 0 and 1 and beyond them.
    """
    if probability <= 0 or probability >= 1:
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability) - math.log1p(-probability)


def tree_sum(value_W: jax.Array) -> jax.Array:
    """The sum along the first axis, over a fixed tree of additions.

    `jnp.sum` may add in another order in another program, and float addition is not
    associative. Here the order depends on the length alone.

    Args:
        value_W: float32 [W, ...].

    Returns:
        float32 [...].
    """
    size = value_W.shape[0]
    if size == 1:
        return value_W[0]
    # Add the second half to the first; an odd last value goes on to the next level.
    half = size // 2
    paired_W = value_W[:half] + value_W[half : 2 * half]
    return tree_sum(jnp.concatenate([paired_W, value_W[2 * half :]]))


def tree_mean(value_W: jax.Array, over_W: jax.Array) -> jax.Array:
    """The mean over some positions, by `tree_sum`.

    Args:
        value_W: float32 [W].
        over_W: The positions that count, bool [W].

    Returns:
        float32 scalar; NaN if no position counts.
    """
    size = count(over_W).astype(jnp.float32)
    return tree_sum(jnp.where(over_W, value_W, 0.0)) / size


def position_uniforms(view: PolicyView) -> jax.Array:
    """A uniform random number for each position.

    It depends on the request, the policy step and the position only, so drafts and
    their verification draw the same numbers.

    Args:
        view: The policy's view.

    Returns:
        float32 [W] in [0, 1).
    """

    def draw(position: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(view.key, position))

    return jax.vmap(draw)(view.position_W)


def position_gumbels(view: PolicyView) -> jax.Array:
    """A standard Gumbel random number for each position.

    It depends on the request, the policy step and the position only.

    Args:
        view: The policy's view.

    Returns:
        float32 [W].
    """

    def draw(position: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(view.key, position), mode="high")

    return jax.vmap(draw)(view.position_W)


def policy_name(name: str, **parameters: object) -> str:
    """The name of a policy with all of its parameters.

    Args:
        name: Name of the maker.
        **parameters: Its arguments, in their order.

    Returns:
        For instance "local_leap(threshold=0.9, relaxed_threshold=0.75, radius=4)".
    """
    settings = ", ".join(f"{key}={value}" for key, value in parameters.items())
    return f"{name}({settings})"

"""What rules are made of: exact orders, bounds on log-odds, fixed sums, own noise.

Orders are counted, never sorted by a float that something was added to. Thresholds on
a probability are compared as log-odds, where confident tokens do not all round to 1.
Sums run over a fixed tree of additions, so that they are the same in any batch.
"""

import math

import jax
import jax.numpy as jnp

from jaxdave.core.policy_api import PolicyView


def rank(open_W: jax.Array, score_W: jax.Array) -> jax.Array:
    """Place of each position among the open ones: score descending, then leftmost.

    Counted, not sorted, so that ties resolve the same in windows of any length. Only
    the places of open positions mean anything.
    """
    return jnp.sum(
        comes_before(score_W, score_W) & open_W[None, :], axis=1, dtype=jnp.int32
    )


def comes_before(rival_W: jax.Array, mine_W: jax.Array) -> jax.Array:
    """[W, W]: whether the second position comes before the first, as `rank` orders.

    rival_W: the scores of the second, mine_W: those of the first.
    """
    place_W = jnp.arange(mine_W.shape[0])
    higher_WW = rival_W[None, :] > mine_W[:, None]
    tied_WW = rival_W[None, :] == mine_W[:, None]
    return higher_WW | (tied_WW & (place_W[None, :] < place_W[:, None]))


def best_positions(
    view: PolicyView, count: jax.Array | int, score_W: jax.Array
) -> jax.Array:
    """The `count` open positions of the highest score; at least one of them."""
    return view.open_W & (rank(view.open_W, score_W) < jnp.maximum(count, 1))


def fill_positions(view: PolicyView, chosen_W: jax.Array) -> jax.Array:
    """The block with the predicted tokens at the chosen open positions."""
    return jnp.where(chosen_W & view.open_W, view.pred.token, view.tokens_W)


def masked_positions(view: PolicyView) -> jax.Array:
    """The masked positions of the block, also those that a wrapper has closed."""
    inside_W = (view.position_W >= 0) & (view.position_W < view.room)
    return inside_W & (view.tokens_W == view.mask_id)


def count(flag_W: jax.Array) -> jax.Array:
    """How many positions a flag holds at."""
    return jnp.sum(flag_W, dtype=jnp.int32)


def log_odds(probability: float) -> float:
    """log(p / (1 - p)); infinite at 0 and 1 and beyond them."""
    if probability <= 0 or probability >= 1:
        return math.copysign(math.inf, probability - 0.5)
    return math.log(probability) - math.log1p(-probability)


def tree_sum(value_W: jax.Array) -> jax.Array:
    """The sum along the first axis, over a fixed tree of additions."""
    size = value_W.shape[0]
    if size == 1:
        return value_W[0]
    half = size // 2
    paired_W = value_W[:half] + value_W[half : 2 * half]
    return tree_sum(jnp.concatenate([paired_W, value_W[2 * half :]]))


def tree_mean(value_W: jax.Array, over_W: jax.Array) -> jax.Array:
    """The mean over the positions where a flag holds; not a number if there is none."""
    size = count(over_W).astype(jnp.float32)
    return tree_sum(jnp.where(over_W, value_W, 0.0)) / size


def position_uniforms(view: PolicyView) -> jax.Array:
    """A number in [0, 1) for each position: of (request, step, position) alone."""
    draw = lambda place: jax.random.uniform(jax.random.fold_in(view.key, place))  # noqa: E731
    return jax.vmap(draw)(view.position_W)


def position_gumbels(view: PolicyView) -> jax.Array:
    """A Gumbel number for each position: of (request, step, position) alone."""
    draw = lambda place: jax.random.gumbel(  # noqa: E731
        jax.random.fold_in(view.key, place), mode="high"
    )
    return jax.vmap(draw)(view.position_W)


def policy_name(name: str, **parameters: object) -> str:
    """A policy's name with all of its parameters: decoders are cached by it."""
    given = ", ".join(f"{key}={value}" for key, value in parameters.items())
    return f"{name}({given})"

"""Wrong tokens for a model to correct: training for decoders that edit.

A decoder that edits (LLaDA2.1) may replace a token that it has decoded. For that its
model must predict the right token where it sees a wrong one, which training on masks
alone never shows it. So some of the visible tokens of an answer are replaced by others,
drawn uniformly from the vocabulary, and are trained to be restored, beside the masked
ones.

Source: LLaDA2.1, arXiv 2602.08676, trains masked and replaced tokens together. How many
are replaced, by what, and how the two parts are weighed was not found in public code,
so these are settings here, and uniform replacement is our own choice.

Axes: B rows, T positions.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxdave.training.objective.masking import Corruption


@dataclasses.dataclass(frozen=True, kw_only=True)
class Editing:
    """How visible tokens are replaced and trained.

    Attributes:
        ratio: Probability with which a visible token of an answer is replaced, in (0,
            1).
        weight: Loss weight of a replaced token; a masked one has 1 or what the
            objective says.
        keep_weight: Loss weight of a visible token that was not replaced, so that a
            model learns to leave right tokens alone; 0: they are not trained.

    Raises:
        ValueError: A value is out of range.
    """

    ratio: float = 0.1
    weight: float = 1.0
    keep_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(
                f"ratio={self.ratio} of replaced tokens must be in (0, 1); use e.g. 0.1"
            )
        if not (0 < self.weight < math.inf and 0 <= self.keep_weight < math.inf):
            raise ValueError(
                f"weight={self.weight} must be above 0 and keep_weight="
                f"{self.keep_weight} at least 0, both finite; leave `editing` out to "
                "train masks only"
            )


def replace_tokens(
    key: jax.Array,
    editing: Editing,
    corruption: Corruption,
    maskable_BT: jax.Array,
    *,
    vocab_size: int,
    mask_id: int,
) -> Corruption:
    """Replace some of the tokens that are not masked.

    Args:
        key: Of the draw.
        editing: The settings.
        corruption: The batch with its masks.
        maskable_BT: Tokens that may be masked or replaced, bool [B, T].
        vocab_size: Ids to draw from, 0 to this; the mask and the right id are never
            drawn.
        mask_id: The id that stands for a masked token.

    Returns:
        The batch with wrong tokens, marked in `is_replaced_BT`.
    """
    choice_key, id_key = jax.random.split(key)
    noisy_BT = corruption.noisy_BT
    drawn_BT = jax.random.bernoulli(choice_key, editing.ratio, noisy_BT.shape)
    is_replaced_BT = maskable_BT & ~corruption.is_masked_BT & drawn_BT
    other_BT = _draw_other(id_key, noisy_BT, vocab_size, mask_id)
    return corruption._replace(
        noisy_BT=jnp.where(is_replaced_BT, other_BT, noisy_BT),
        is_replaced_BT=is_replaced_BT,
    )


def _draw_other(key: jax.Array, tokens_BT: jax.Array, vocab_size: int, mask_id: int):
    """For each token another one, uniformly: neither itself nor the mask."""
    if mask_id >= vocab_size:
        other_BT = jax.random.randint(
            key, tokens_BT.shape, 0, vocab_size - 1, jnp.int32
        )
        return jnp.where(other_BT >= tokens_BT, other_BT + 1, other_BT)
    # Ids from the first excluded one on move up by 1, then those from the second.
    low_BT = jnp.minimum(tokens_BT, mask_id)
    high_BT = jnp.maximum(tokens_BT, mask_id)
    other_BT = jax.random.randint(key, tokens_BT.shape, 0, vocab_size - 2, jnp.int32)
    other_BT = jnp.where(other_BT >= low_BT, other_BT + 1, other_BT)
    return jnp.where(other_BT >= high_BT, other_BT + 1, other_BT)

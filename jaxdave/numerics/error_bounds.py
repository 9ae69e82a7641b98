"""How far apart two computations of the same prediction are, field by field.

Guarded numerics compare a prediction from an ordinary call with the one that a recheck
call makes of the same state. The largest differences become the error bounds by which
later decisions are judged to be safe or too close to call.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import ErrorBound, Prediction


def prediction_error(
    now: Prediction, then: Prediction, open_W: jax.Array
) -> ErrorBound:
    """The largest difference between two predictions of one stretch, per field.

    Args:
        now: The later prediction, arrays [W].
        then: The earlier one; a token of -1 marks a position without a prediction.
        open_W: True where a position is masked and may be decoded, bool [W].

    Returns:
        Float32 scalars: absolute differences, for `entropy` relative ones. 0 where no
        position can be compared.
    """
    has_earlier_W = then.token >= 0
    same_token_W = then.token == now.token
    # Where the order of two tokens has swapped, their leads have opposite signs.
    then = then._replace(lead=jnp.where(same_token_W, then.lead, -then.lead))

    def max_error(name: str, compared_W: jax.Array) -> jax.Array:
        now_W, then_W = getattr(now, name), getattr(then, name)
        # Equal infinities differ by nothing; their difference would be NaN.
        error_W = jnp.where(now_W == then_W, 0.0, jnp.abs(now_W - then_W))
        if name == "entropy":
            error_W = jnp.where(error_W > 0, error_W / jnp.minimum(now_W, then_W), 0.0)
        return jnp.max(jnp.where(compared_W, error_W, 0.0))

    # Only open positions are decided. Entropy and margin are of the whole distribution,
    # so that they can be compared even where its best token has changed.
    compared = dict.fromkeys(ErrorBound._fields, has_earlier_W & open_W)
    # A score belongs to its token. A rule may look at gaps of decoded positions too.
    compared |= {"score": has_earlier_W & open_W & same_token_W, "gap": has_earlier_W}
    return ErrorBound(
        **{name: max_error(name, mask_W) for name, mask_W in compared.items()}
    )

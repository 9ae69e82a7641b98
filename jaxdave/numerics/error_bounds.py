"""How far apart two computations of the same prediction are, field by field.

Guarded numerics compare a prediction from an ordinary call with the one that a recheck
call makes of the same state. The largest differences become the error bounds by which
later decisions are judged to be safe or too close to call.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.model_api import RouterTrace
from jaxdave.core.prediction import ErrorBound, Prediction

_FIELDS = ("score", "lead", "gap", "margin", "entropy")
CLEAR_MARGIN = 1e-4
"""Router logits: no error of float32 activations is taken to be as large."""


def prediction_error(
    trusted: Prediction, fast: Prediction, open_W: jax.Array
) -> ErrorBound:
    """The largest difference between two predictions of one stretch, per field.

    Args:
        trusted: The prediction in the trusted shape, arrays [W].
        fast: That of an ordinary call; a token of -1 marks a position without one.
        open_W: True where a position is masked and may be decoded, bool [W].

    Returns:
        Float32 scalars: absolute differences, for `entropy` relative ones. 0 where no
        position can be compared, and for routers.
    """
    is_predicted_W = fast.token >= 0
    same_token_W = fast.token == trusted.token
    # Where the order of two tokens has swapped, their leads have opposite signs.
    fast = fast._replace(lead=jnp.where(same_token_W, fast.lead, -fast.lead))

    def max_error(name: str, compared_W: jax.Array) -> jax.Array:
        trusted_W, fast_W = getattr(trusted, name), getattr(fast, name)
        # Equal infinities differ by nothing; their difference would be NaN.
        error_W = jnp.where(trusted_W == fast_W, 0.0, jnp.abs(trusted_W - fast_W))
        if name == "entropy":
            # Relative to an entropy of 0 any error is infinite, and so is the bound:
            # then every decision by entropy is rechecked.
            error_W = jnp.where(
                error_W > 0, error_W / jnp.minimum(trusted_W, fast_W), 0.0
            )
        return jnp.max(jnp.where(compared_W, error_W, 0.0))

    # Only open positions are decided. Entropy and margin are of the whole distribution,
    # so that they can be compared even where its best token has changed.
    compared = dict.fromkeys(_FIELDS, is_predicted_W & open_W)
    # A score belongs to its token. A rule may look at gaps of decoded positions too.
    compared |= {"score": is_predicted_W & open_W & same_token_W, "gap": is_predicted_W}
    largest = {name: max_error(name, mask_W) for name, mask_W in compared.items()}
    return ErrorBound(**largest, router=jnp.float32(0))


def router_error(trusted: RouterTrace, fast: RouterTrace) -> jax.Array:
    """The largest difference between two computations of the same router logits.

    Args:
        trusted: The routers in the trusted shape, of W tokens.
        fast: Those of an ordinary call.

    Returns:
        A float32 scalar.
    """
    return jnp.max(jnp.abs(trusted.best - fast.best))


def is_continuous(fast: RouterTrace) -> jax.Array:
    """True where errors can be compared, as no router is near a tie.

    Where one is, its experts may differ, and so may all that comes after them, by any
    amount. What is a near tie depends on the errors that are to be measured; but if
    they are larger than what is assumed here, what is measured is too large as well.

    Args:
        fast: The routers of an ordinary call, of W tokens.

    Returns:
        A bool scalar.
    """
    return jnp.min(fast.margin) > CLEAR_MARGIN

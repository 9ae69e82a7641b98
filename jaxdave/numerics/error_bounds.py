"""Predictions: what the model says, asked for in the two ways the loop needs.

`decide` reads the active block of every draft, always in the same shapes: the text
depends on nothing else. `guess` reads the whole window of the one draft that was kept,
at the noise of the steps to come: drafts are made of it, and it may be wrong.
"""

import jax
import jax.numpy as jnp

from jaxdave.core.prediction import ErrorBound, Prediction


def prediction_error(
    now: Prediction, then: Prediction, open_W: jax.Array
) -> ErrorBound:
    """How far two predictions of a stretch are apart; -1 as a token: none at hand."""
    told_W, same_W = then.token >= 0, then.token == now.token
    # With the other token in front a lead points the other way.
    then = then._replace(lead=jnp.where(same_W, then.lead, -then.lead))

    def largest(name: str, of_W: jax.Array) -> jax.Array:
        one_W, other_W = getattr(now, name), getattr(then, name)
        # What is infinite in both is the same.
        off_W = jnp.where(one_W == other_W, 0.0, jnp.abs(one_W - other_W))
        if name == "entropy":
            off_W = jnp.where(off_W > 0, off_W / jnp.minimum(one_W, other_W), 0.0)
        return jnp.max(jnp.where(of_W, off_W, 0.0))

    among = dict.fromkeys(ErrorBound._fields, told_W & open_W)
    # Scores are of a token. A rule may look at gaps of known positions too.
    among |= {"score": told_W & open_W & same_W, "gap": told_W}
    return ErrorBound(**{name: largest(name, of_W) for name, of_W in among.items()})

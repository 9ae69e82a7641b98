"""The logits of a network, as the estimators take them: differentiable, uncached.

Axes: S states, T positions of a canvas, V rows of the vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.models.forward import forward
from jaxdave.training.reinforce.log_probs import LogitsFn


def network_logits(config: ModelConfig) -> Callable[[Params], LogitsFn]:
    """Make the logits of a model a function of its parameters and of states.

    A state is evaluated as a whole. A block-causal model's are those that the decoder
    has seen, to rounding. A full-attention model's are where the decoder keeps no cache
    (`cache="none"`) and the canvas is the one that was decoded; under "prefix" and
    "dual" its calls read keys of older states, so that what is recorded and what is
    computed here are probabilities of two different models.

    Args:
        config: The model's shape.

    Returns:
        A function from parameters to the `LogitsFn`; ids that no decoder predicts have
        minus infinity.

    Example:
        >>> from jaxdave.models import transformer
        >>> from jaxdave.models.presets import preset
        >>> config = preset("sdar-1m", num_layers=1)
        >>> logits_of = network_logits(config)(transformer.init(config, seed=0))
        >>> states_ST = jnp.full((1, 4), config.mask_id)
        >>> bool(jnp.all(logits_of(states_ST)[..., config.mask_id] == -jnp.inf))
        True
    """
    evaluate = forward(config)
    allowed_V = is_predicted(config)

    def of_params(params: Params) -> LogitsFn:
        def logits_of(states_ST: jax.Array) -> jax.Array:
            logits_STV = evaluate(params, states_ST)
            return jnp.where(allowed_V[None, None, :], logits_STV, -jnp.inf)

        return logits_of

    return of_params


def is_predicted(config: ModelConfig) -> jax.Array:
    """Ids that a decoder may predict.

    Args:
        config: The model's shape.

    Returns:
        bool [V]; False for rows of no token and for ids that are never predicted.
    """
    id_V = jnp.arange(config.vocab_rows)
    allowed_V = id_V < config.vocab_size
    for suppressed in config.suppressed_ids:
        allowed_V = allowed_V & (id_V != suppressed)
    return allowed_V

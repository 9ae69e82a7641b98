"""Routers of mixtures of experts: where each token goes, and how it is weighed.

Everything is float32 whatever the dtypes are, as a choice of experts is a jump.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdave.core.config import ModelConfig
from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.core.model_api import RouterTrace
from jaxdave.models.layers import INIT
from jaxdave.models.router_trace import layer_trace
from jaxdave.models.trained_experts import TrainedRouter, balanced

_SMALLEST_SUM = 1e-20
"""Added to a sum of weights before they are divided by it, as LLaDA2's module does."""


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
        expert_SC: The experts of each token, best first, int32 [S, C].
        weight_SC: What their outputs are multiplied by, float32 [S, C].
    """

    expert_SC: jax.Array
    weight_SC: jax.Array


def router_logits(x_SE: jax.Array, kernel: jax.Array) -> jax.Array:
    """Logits of all experts, in float32 whatever the dtypes are.

    Args:
        x_SE: Normed vectors [S, E].
        kernel: The router's matrix [E, X].

    Returns:
        float32 [S, X].
    """
    highest = jax.lax.Precision.HIGHEST
    wide = x_SE.astype(jnp.float32), kernel.astype(jnp.float32)
    return jnp.einsum("se,ex->sx", *wide, precision=highest)


def route(
    logits_SX: jax.Array, bias_X: jax.Array | None, config: ExpertsConfig
) -> Routing:
    """Choose the experts of each token, and weigh them.

    Args:
        logits_SX: Router logits, float32 [S, X].
        bias_X: What is added to scores, [X]; None: nothing.
        config: How experts are chosen.

    Returns:
        Experts and weights. Of equally good experts, or groups, the one of the lower
        index is chosen, as `lax.top_k` has it.
    """
    return route_traced(logits_SX, bias_X, config)[0]


def route_traced(
    logits_SX: jax.Array, bias_X: jax.Array | None, config: ExpertsConfig
) -> tuple[Routing, RouterTrace]:
    """`route`, and how close its choices were.

    Args:
        logits_SX: Router logits, float32 [S, X].
        bias_X: What is added to scores, [X]; None: nothing.
        config: How experts are chosen.

    Returns:
        The routing, and its trace [S].
    """
    is_softmax = config.score == "softmax"
    score_SX = (jax.nn.softmax if is_softmax else jax.nn.sigmoid)(logits_SX)
    rank_SX = score_SX
    if bias_X is not None:
        rank_SX = score_SX + bias_X.astype(jnp.float32)[None]
    is_kept_SG = _best_groups(rank_SX, config)
    eligible_SX = _only_groups(rank_SX, is_kept_SG)
    best_SC, expert_SC = jax.lax.top_k(eligible_SX, config.per_token)
    weight_SC = (
        jnp.take_along_axis(score_SX, expert_SC, axis=1)
        if config.bias == "choice"
        else best_SC
    )
    if config.renormalize:
        total_S1 = jnp.sum(weight_SC, axis=1, keepdims=True)
        weight_SC = weight_SC / (total_S1 + _SMALLEST_SUM)
    routing = Routing(expert_SC, weight_SC * config.scale)
    return routing, layer_trace(logits_SX, rank_SX, expert_SC, is_kept_SG, config)


def _best_groups(rank_SX: jax.Array, config: ExpertsConfig) -> jax.Array:
    """The groups that a token's experts are chosen from, bool [S, G]."""
    tokens = rank_SX.shape[0]
    if config.groups == 1:
        return jnp.ones((tokens, 1), bool)
    rank_SGM = rank_SX.reshape(tokens, config.groups, -1)
    group_SG = jnp.sum(jax.lax.top_k(rank_SGM, 2)[0], axis=-1)
    _, kept_SK = jax.lax.top_k(group_SG, config.kept_groups)
    return jnp.any(kept_SK[..., None] == jnp.arange(config.groups)[None, None], axis=1)


def _only_groups(rank_SX: jax.Array, is_kept_SG: jax.Array) -> jax.Array:
    """Ranks with those outside of a token's groups at minus infinity."""
    if is_kept_SG.shape[1] == 1:
        return rank_SX
    rank_SGM = rank_SX.reshape(*is_kept_SG.shape, -1)
    rank_SGM = jnp.where(is_kept_SG[..., None], rank_SGM, -jnp.inf)
    return rank_SGM.reshape(rank_SX.shape)


class Router(nnx.Module):
    """The matrix that scores experts, and the bias of their scores.

    Attributes:
        kernel: An array [E, X].
        bias: An array [X], or None.
    """

    def __init__(self, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        """Initialise parameters.

        Args:
            config: The model's shape.
            dtype: Of the parameters.
            rngs: Where the kernel is drawn from.
        """
        experts = config.experts
        assert experts is not None
        self.config = experts
        shape = (config.hidden, experts.count)
        self.kernel = nnx.Param(INIT(rngs.params(), shape, dtype))
        has_bias = experts.bias != "none"
        self.bias = nnx.Param(jnp.zeros(experts.count, dtype)) if has_bias else None

    def __call__(self, x_SE: jax.Array) -> tuple[Routing, RouterTrace]:
        """Send tokens to experts.

        Args:
            x_SE: Normed vectors [S, E].

        Returns:
            Where they go, and how close that was, [S].
        """
        kernel, bias = self.kernel.get_value(), self.bias
        bias_X = None if bias is None else bias[...]
        if not isinstance(kernel, TrainedRouter):
            return route_traced(router_logits(x_SE, kernel), bias_X, self.config)
        logits_SX = router_logits(x_SE, kernel.array)
        if kernel.balance:
            chosen_SC = route(logits_SX, bias_X, self.config).expert_SC
            logits_SX, bias_X = balanced(
                logits_SX, bias_X, chosen_SC, self.config, kernel.balance
            )
        return route_traced(logits_SX, bias_X, self.config)

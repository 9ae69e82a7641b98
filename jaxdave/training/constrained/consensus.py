"""Federated consensus: agents that come and go agree on one model.

    minimise sum_i f_i(x_i) subject to x_i = x_0

m agents hold x_i and f_i, a server holds x_0. At a step agent i is connected with
probability p; only then is x_i - x_0 known, and 0 stands for it otherwise. That is an
unbiased estimate of p (x_i - x_0), a constraint with the same solutions, so this is
`smoothed_lagrangian`'s to solve. Who is connected changes from step to step, so the
same sample cannot be had twice, and STORM does not apply.

Axes: G agents.

Source: the example of the talk on Huang, Zhang, Alacaoglu, arXiv 2504.07607.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.training.constrained.constraint import ConstraintSamples, Residual


class Federation(NamedTuple):
    """The parameters of all, as one pytree.

    Attributes:
        server: x_0, a pytree.
        agents: x_i, of the same structure; every array has a leading axis [G].
    """

    server: Any
    agents: Any


def start_federation(params: Any, num_agents: int) -> Federation:
    """Give the server and all agents the same parameters.

    Args:
        params: The parameters, a pytree.
        num_agents: G.

    Returns:
        The federation.
    """
    repeated = jax.tree.map(
        lambda x: jnp.broadcast_to(x[None], (num_agents, *x.shape)), params
    )
    return Federation(params, repeated)


def zero_multipliers(federation: Federation) -> Any:
    """Zeros of the residual's structure: `start_multipliers` of a federation."""
    return jax.tree.map(jnp.zeros_like, federation.agents)


def connected_residual(is_connected_G: jax.Array) -> Residual:
    """Build the sample of the constraint for a set of connected agents.

    Args:
        is_connected_G: True for the agents that are connected, bool [G].

    Returns:
        From a federation to x_i - x_0 for these and 0 for the others, as `agents`.
    """

    def residual(federation: Federation) -> Any:
        def difference(agent: jax.Array, server: jax.Array) -> jax.Array:
            shape = (-1, *(1 for _ in server.shape))
            return jnp.where(is_connected_G.reshape(shape), agent - server[None], 0)

        return jax.tree.map(difference, federation.agents, federation.server)

    return residual


def draw_connections(
    key: jax.Array, num_agents: int, probability: float, *, rounds: int = 3
) -> ConstraintSamples:
    """Draw who is connected in a step.

    Args:
        key: Random key.
        num_agents: G.
        probability: p, with which an agent is connected in a round.
        rounds: 3 draws three times, and the step is unbiased for the constraint
            p (x_i - x_0). 1 draws once and uses it throughout, as one round of messages
            a step allows. Being connected is a projection, D D = D, so the penalty's
            gradient becomes that of rho p, not rho p^2, and eta p (1 - p) is added to
            it: another penalty weight, not another solution.

    Returns:
        The samples.

    Raises:
        ValueError: If `rounds` is not 1 or 3, or the probability not in (0, 1].
    """
    if rounds not in (1, 3):
        raise ValueError(f"rounds is {rounds}; give 1 or 3")
    if not 0 < probability <= 1:
        raise ValueError(f"probability is {probability}; it must be > 0 and <= 1")
    drawn = jax.random.bernoulli(key, probability, (rounds, num_agents))
    samples = [connected_residual(drawn[index % rounds]) for index in range(3)]
    return ConstraintSamples(*samples)


def federated_gradient(
    agent_gradient: Callable[[Any, Any], Any], federation: Federation, data_G: Any
) -> Federation:
    """Compute the gradient of sum_i f_i(x_i): every agent's own, none at the server.

    Args:
        agent_gradient: From an agent's parameters and data to a gradient.
        federation: The parameters.
        data_G: Data of the agents, a pytree whose arrays have a leading axis [G].

    Returns:
        The gradient, a federation.
    """
    return Federation(
        jax.tree.map(jnp.zeros_like, federation.server),
        jax.vmap(agent_gradient)(federation.agents, data_G),
    )


def disagreement(federation: Federation) -> jax.Array:
    """Compute how far agents are from the server: the root of sum_i ||x_i - x_0||^2."""
    is_connected_G = jnp.ones(jax.tree.leaves(federation.agents)[0].shape[0], bool)
    differences = jax.tree.leaves(connected_residual(is_connected_G)(federation))
    return jnp.sqrt(sum(jnp.sum(d**2) for d in differences))

"""All policies in one program, chosen by the parameters: compiling one takes seconds.

A network's parameters gain an index, and its hidden vectors a last column that holds
it; the merged policy reads it there and steps that policy alone. Each keeps a memory
of its own, so what is stepped is what would be stepped without the others.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.model_api import ModelFns
from jaxdave.core.policy_api import Memory, ModelQueries, Policy, PolicyView
from jaxdave.engine import decoders


class Chosen(NamedTuple):
    """The parameters of a network, and the index of the policy to step."""

    params: Any
    index: jax.Array


def can_merge(policy: Policy) -> bool:
    """Whether a policy is its two functions, and asks for nothing else.

    How sure it is does not matter: the programs here are decoded with exact numerics.
    """
    names = ("init", "revises", "is_certain", "commit_order", "tokens_per_step")
    names += ("max_post_steps",)
    own = {name: getattr(policy, name) for name in names}
    usual = {**Policy._field_defaults, **own}
    return all(getattr(policy, field) == value for field, value in usual.items())


def merged(policies: tuple[Policy, ...]) -> Policy:
    """One policy that steps the one of `policies` whose index the network says."""

    def init(size: int, width: int) -> Memory:
        return tuple(policy.init(size, width - 1) for policy in policies)

    def step(view: PolicyView, memory: Memory):
        column_W1 = view.queries.hidden_WE[:, -1:]
        seen = view._replace(queries=_narrow(view.queries, column_W1))

        def alone(at: int):
            tokens_W, moved = policies[at].step(seen, memory[at])
            return tokens_W, (*memory[:at], moved, *memory[at + 1 :])

        steps = [functools.partial(alone, at) for at in range(len(policies))]
        return jax.lax.switch(column_W1[0, 0].astype(jnp.int32), steps)

    def commit_order(view: PolicyView, memory: Memory) -> jax.Array:
        column_W1 = view.queries.hidden_WE[:, -1:]
        seen = view._replace(queries=_narrow(view.queries, column_W1))
        orders = [
            functools.partial(policy.commit_order, seen, memory[at])  # pyright: ignore
            for at, policy in enumerate(policies)
        ]
        return jax.lax.switch(column_W1[0, 0].astype(jnp.int32), orders)

    name = "+".join(policy.name for policy in policies)
    revises = any(policy.revises for policy in policies)
    has_order = all(policy.commit_order for policy in policies)
    order = commit_order if has_order else None
    (post_steps,) = {policy.max_post_steps for policy in policies}
    return Policy(
        name, step, init, revises, commit_order=order, max_post_steps=post_steps
    )


def _narrow(look: ModelQueries, column_W1) -> ModelQueries:
    """The look of the network inside, whose vectors have no last column."""

    def divergence(then_WE):
        column = column_W1.astype(then_WE.dtype)
        return look.divergence(jnp.concatenate([then_WE, column], axis=-1))

    return look._replace(hidden_WE=look.hidden_WE[:, :-1], divergence=divergence)


@functools.cache
def choosing(network: ModelFns) -> ModelFns:
    """The network with `Chosen` parameters and the index behind its hidden vectors."""

    def marked(hidden, index):
        column = jnp.full((*hidden.shape[:-1], 1), index, hidden.dtype)
        return jnp.concatenate([hidden, column], axis=-1)

    def forward(chosen: Chosen, *args):
        hidden, added = network.forward(chosen.params, *args)
        return marked(hidden, chosen.index.astype(hidden.dtype)), added

    def evaluate_blocks(chosen: Chosen, *args):
        hidden, added = network.evaluate_blocks(chosen.params, *args)  # pyright: ignore
        return marked(hidden, chosen.index.astype(hidden.dtype)), added

    def prefill(chosen: Chosen, *args):
        hidden, cache = network.prefill(chosen.params, *args)
        return marked(hidden, chosen.index.astype(hidden.dtype)), cache

    def logits(chosen: Chosen, hidden_RE, first):
        return network.logits(chosen.params, hidden_RE[:, :-1], first)

    def logits_at(chosen: Chosen, hidden_RE, ids_RM):
        return network.logits_at(chosen.params, hidden_RE[:, :-1], ids_RM)

    def shadow(hidden_RE):
        said_RE = network.shadow(hidden_RE[:, :-1])  # pyright: ignore
        return jnp.concatenate([said_RE, hidden_RE[:, -1:]], axis=-1)

    return network._replace(
        forward=forward,
        prefill=prefill,
        logits=logits,
        logits_at=logits_at,
        shadow=network.shadow and shadow,
        evaluate_blocks=network.evaluate_blocks and evaluate_blocks,
    )


def programs(
    config,
    network_of: Callable[[Policy], ModelFns],
    policies: Mapping[str, Policy],
    draft_steps: int,
    **settings,
) -> Iterator[tuple[decoders.Decoder, list[tuple[str, jax.Array]]]]:
    """FreeDave over all policies, in one program, and in more for those that need it.

    network_of: what a policy is decoded with; one object for all that ask for the same.
    Yields the decoder, and the name and the index of every policy in it.
    """
    # Drafts are made in another way of policies that say an order.
    merging = {name: p for name, p in policies.items() if can_merge(p)}
    groups: dict[tuple[bool, int | None], list[str]] = {}
    for name, policy in sorted(
        merging.items(), key=lambda item: not item[1].commit_order
    ):
        kind = bool(policy.commit_order), policy.max_post_steps
        groups.setdefault(kind, []).append(name)
    alone = [[name] for name in policies if name not in merging]
    for names in [*groups.values(), *alone]:
        group = tuple(policies[name] for name in names)
        policy = merged(group) if can_merge(group[0]) else group[0]
        decoder = decoders.freedave(
            config,
            policy,
            draft_steps=draft_steps,
            network=choosing(network_of(policy)),
            numerics="exact",
            **settings,
        )
        yield decoder, [(name, jnp.int32(at)) for at, name in enumerate(names)]

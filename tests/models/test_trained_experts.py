"""Gradients of mixtures of experts, against every expert computed for every token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import plain_experts
from helpers.plain_experts import KINDS

from jaxdave.models.experts import Experts
from jaxdave.models.trained_experts import (
    TrainedRouter,
    TrainedStack,
    balanced,
    trained_outputs,
)
from jaxdave.runtime.machine import MachineKind, this_machine
from jaxdave.training.objective.trained_matrix import with_written_gradients

MACHINE = this_machine()
OTHER = dataclasses.replace(MACHINE, kind=MachineKind.TPU)
HIDDEN = plain_experts.TINY.hidden
EVERY = pytest.mark.parametrize("kind", KINDS)


def drawn(*shape: int, seed: int = 0) -> jax.Array:
    draws = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(draws, jnp.float32)


def assert_close(ours, theirs, rtol=1e-4):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = float(jnp.max(jnp.abs(b))) + 1e-9
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale)


def every_expert(x_SE, params, config, is_chosen_SX):
    """The layer as a dense computation: all experts, those not chosen times 0."""
    router, stacks = params["router"], params["experts"]
    logits = x_SE @ router["kernel"]
    is_softmax = config.score == "softmax"
    score = (jax.nn.softmax if is_softmax else jax.nn.sigmoid)(logits)
    bias = router["bias"][None] if config.bias != "none" else 0.0
    weight = (score if config.bias == "choice" else score + bias) * is_chosen_SX
    if config.renormalize:
        weight = weight / jnp.sum(weight, axis=1, keepdims=True)

    def swiglu(gate, up, down):
        return (jax.nn.silu(x_SE @ gate) * (x_SE @ up)) @ down

    names = ("gate", "up", "down")
    outputs = jax.vmap(swiglu)(*(stacks[name]["kernel"] for name in names))
    mixed = jnp.einsum("xse,sx->se", outputs, weight * config.scale)
    if config.shared_inter:
        mixed += swiglu(*(params["shared"][name]["kernel"] for name in names))
    return mixed


@EVERY
@pytest.mark.parametrize("machine", [MACHINE, OTHER], ids=["cpu", "other"])
def test_a_layer_s_gradients_are_those_of_a_dense_computation(kind, machine):
    config = plain_experts.tiny(kind)
    experts = KINDS[kind]
    layer = Experts(config, dtype=jnp.float32, rngs=nnx.Rngs(0), machine=machine)
    graph, state = nnx.split(layer)
    params = jax.tree.map(lambda a: a * 8, nnx.to_pure_dict(state))
    if experts.bias != "none":
        params["router"]["bias"] = 0.1 * drawn(experts.count, seed=3)
    x_SE = drawn(40, HIDDEN, seed=1)

    def ours(x_SE, params):
        wrapped = with_written_gradients({"blocks": params})["blocks"]
        return jnp.sum(jnp.sin(nnx.merge(graph, wrapped)(x_SE)))

    router, count = params["router"], experts.count
    logits = x_SE @ router["kernel"]
    chosen, _ = plain_experts.route(logits, router.get("bias"), experts)
    is_chosen_SX = jnp.asarray(np.eye(count)[chosen].sum(1), jnp.float32)

    def theirs(x_SE, params):
        mixed = every_expert(x_SE, params, experts, is_chosen_SX)
        return jnp.sum(jnp.sin(mixed))

    found = jax.jit(jax.value_and_grad(ours, (0, 1)))(x_SE, params)
    expected = jax.jit(jax.value_and_grad(theirs, (0, 1)))(x_SE, params)
    assert_close(found, expected, 1e-4)


@pytest.mark.parametrize(("tokens", "count"), [(5, 16), (300, 4)])
def test_tiles_of_every_size_have_the_gradient(tokens, count):
    draws = np.random.default_rng(0)
    one = [draws.permutation(count)[:2] for _ in range(tokens)]
    expert_SC = jnp.asarray(np.stack(one), jnp.int32)
    stacks = drawn(count, 8, 6, seed=1), drawn(count, 8, 6, seed=2)
    arguments = (drawn(tokens, 8), *stacks, drawn(count, 6, 8, seed=3))

    def plain(x_SE, gate, up, down):
        gate, up = (jnp.einsum("se,xef->sxf", x_SE, part) for part in (gate, up))
        outputs = jnp.einsum("sxf,xfe->sxe", jax.nn.silu(gate) * up, down)
        return jnp.take_along_axis(outputs, expert_SC[..., None], axis=1)

    def gradient(function):
        total = lambda *args: jnp.sum(jnp.sin(function(*args)))  # noqa: E731
        return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))(*arguments)

    ours = gradient(lambda x, *stacks: trained_outputs(x, expert_SC, *stacks))
    assert_close(ours, gradient(plain))


def test_a_balance_changes_gradients_only():
    softmax, choice = KINDS["qwen"], KINDS["llada2"]
    logits, expert = drawn(9, 8), jnp.zeros((9, 2), jnp.int32)

    def auxiliary(logits):
        """Qwen3-MoE's loss: experts x sum of share of tokens x mean probability."""
        share = jnp.array([2.0] + [0.0] * 7)
        mean = jnp.mean(jax.nn.softmax(logits), axis=0)
        return 8 * jnp.sum(share * mean)

    same, bias = balanced(logits, None, expert, softmax, 0.5)
    np.testing.assert_array_equal(same, logits)
    assert bias is None
    found = jax.grad(lambda a: jnp.sum(balanced(a, None, expert, softmax, 0.5)[0]))
    expected = 1 + 0.5 * 9 * jax.grad(auxiliary)(logits)
    np.testing.assert_allclose(found(logits), expected, rtol=1e-5)

    def total(logits, bias):
        logits, bias = balanced(logits, bias, expert, choice, 0.5)
        assert bias is not None
        return jnp.sum(logits) + jnp.sum(bias)

    of_logits, of_bias = jax.grad(total, (0, 1))(drawn(9, 16), jnp.zeros(16))
    np.testing.assert_array_equal(of_logits, jnp.ones((9, 16)))
    excess = jnp.array([18.0] + [0.0] * 15) - 18 / 16
    np.testing.assert_allclose(of_bias, 1 + 0.5 * excess, rtol=1e-6)


def test_what_is_wrapped():
    params = {"router": {"kernel": jnp.ones((2, 3))}, "shared": {}}
    params["experts"] = {"gate": {"kernel": jnp.ones((3, 2, 2))}}
    wrapped = with_written_gradients({"blocks": params}, 0.25)["blocks"]
    assert wrapped["router"]["kernel"].balance == 0.25
    assert isinstance(wrapped["router"]["kernel"], TrainedRouter)
    assert isinstance(wrapped["experts"]["gate"]["kernel"], TrainedStack)

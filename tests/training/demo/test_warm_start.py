"""Models that start from the weights of others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.models import transformer
from jaxdave.models.presets import preset
from jaxdave.training.demo.recipes import RECIPES
from jaxdave.training.demo.warm_start import warm_start_params


def test_experts_are_the_neurons_of_a_dense_model():
    config = RECIPES["llada2-demo"].config
    experts = config.experts
    assert experts is not None and config.dense_layers == 1
    dense = transformer.init(preset("sdar-1m"), 0)
    params = warm_start_params(config, dense)
    for path in ("attn", "norm2"):
        ours, theirs = params["blocks"][path], dense["blocks"][path]
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1:]), ours, theirs)
    mlp = dense["blocks"]["mlp"]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b[:1]),
        params["dense_blocks"]["mlp"],
        mlp,
    )
    mixture = params["blocks"]["mlp"]
    neurons = experts.shared_inter + experts.count * experts.inter
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, config.hidden)))
    x = x.astype(jnp.float32)

    def swiglu(gate, up, down):
        return (jax.nn.silu(x @ gate) * (x @ up)) @ down

    names = ("gate", "up", "down")
    total = swiglu(*(mixture["shared"][name]["kernel"][0] for name in names))
    for index in range(experts.count):
        stacks = (mixture["experts"][name]["kernel"][0, index] for name in names)
        total += swiglu(*stacks)
    gate, up, down = (mlp[name]["kernel"][1] for name in names)
    whole = swiglu(gate[:, :neurons], up[:, :neurons], down[:neurons])
    np.testing.assert_allclose(total, whole, rtol=1e-4, atol=1e-5)


def test_too_many_neurons_are_refused():
    config = preset("llada2-1m")
    assert config.experts is not None
    wide = dataclasses.replace(config.experts, inter=40, shared_inter=40)
    config = dataclasses.replace(config, experts=wide)
    with pytest.raises(ValueError, match="680 neurons in all, more than the 384"):
        warm_start_params(config, transformer.init(preset("sdar-1m"), 0))

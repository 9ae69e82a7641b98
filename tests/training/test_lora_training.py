"""Gradients of adapters, and a few steps of training with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.checkpoint_folders import CONFIG, random

from jaxdave.core.param_paths import leaves_by_path
from jaxdave.models.lora import TARGET_PATHS, LoraConfig, adapter_shapes
from jaxdave.numerics.quantization import quantize_params
from jaxdave.training.data.token_batch import pack_samples
from jaxdave.training.lora import init_adapters, join_lora, lora_loss, merge_lora
from jaxdave.training.objective.objective_loss import make_objective_loss
from jaxdave.training.objective.objectives import sdar

LORA = LoraConfig(rank=4, alpha=8.0)
BATCH = pack_samples(
    [[([5, 6, 7], [8, 9, 10, 11]), ([12], [13, 14, 15])], [([1, 2], [3, 4, 5, 6])]],
    length=16,
    pad_id=CONFIG.pad_id,
    block_length=4,
)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_only_adapters_are_trained(quantize):
    """Gradients and states are of adapters; a few steps lower the loss of one batch."""
    params = random() if quantize is None else quantize_params(random(), quantize)
    plain_loss = make_objective_loss(CONFIG, sdar(block_length=4))
    loss = lora_loss(plain_loss, params, LORA)
    optimiser = optax.adam(1e-2)
    adapters = init_adapters(CONFIG, LORA)
    state = optimiser.init(adapters)
    shapes = leaves_by_path(adapter_shapes(CONFIG, LORA))
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(sizes) == 1 + 2 * sum(leaf.size for leaf in shapes.values())

    @jax.jit
    def step(adapters, state, key):
        value, grads = jax.value_and_grad(lambda a: loss(a, BATCH, key).mean())(
            adapters
        )
        updates, state = optimiser.update(grads, state, adapters)
        return optax.apply_updates(adapters, updates), state, value, grads

    key = jax.random.key(0)
    value_of = jax.jit(lambda params: plain_loss(params, BATCH, key).mean())
    before = float(value_of(params))
    values = []
    for index in range(12):
        with jax.numpy_dtype_promotion("standard"):  # optax needs it
            adapters, state, value, grads = step(adapters, state, key)
        leaves = leaves_by_path(grads)
        assert {p: leaf.shape for p, leaf in leaves.items()} == {
            p: s.shape for p, s in shapes.items()
        }
        # Of the first step only B has a gradient, as A is multiplied by it.
        moved = {path.rsplit("_", 1)[1] for path, g in leaves.items() if g.any()}
        assert moved == ({"b"} if index == 0 else {"a", "b"})
        values.append(float(value))
    assert values[0] == pytest.approx(before, rel=1e-6)
    assert values[-1] < 0.8 * values[0]
    merged = merge_lora(join_lora(adapters, params, LORA))
    with jax.numpy_dtype_promotion("standard"):
        _, _, last, _ = step(adapters, state, key)
    assert float(value_of(merged)) == pytest.approx(float(last), rel=1e-4)


def test_the_gradient_is_that_of_the_merged_matrix():
    """dB = scale A^T G and dA = scale G B^T, with G the merged kernel's gradient."""
    params = random()
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda leaf: jnp.float32(leaf + 0.05 * rng.normal(size=leaf.shape)),
        init_adapters(CONFIG, LORA),
    )
    key = jax.random.key(1)
    loss = make_objective_loss(CONFIG, sdar(block_length=4))
    merged = merge_lora(join_lora(adapters, params, LORA))

    @jax.jit
    def gradients(adapters, merged):
        apart = jax.grad(lambda a: lora_loss(loss, params, LORA)(a, BATCH, key).mean())
        together = jax.grad(lambda p: loss(p, BATCH, key).mean())
        return apart(adapters), together(merged)

    grads, full = gradients(adapters, merged)
    full, trained_leaves = leaves_by_path(full), leaves_by_path(adapters)
    for path in TARGET_PATHS.values():
        kernel = np.asarray(full[f"{path}/kernel"], np.float64)
        a, b = (
            np.asarray(trained_leaves[f"{path}/lora_{x}"], np.float64) for x in "ab"
        )
        own = leaves_by_path(grads)
        expected_a = LORA.scale * kernel @ b.swapaxes(1, 2)
        expected_b = LORA.scale * a.swapaxes(1, 2) @ kernel
        for name, expected in (("a", expected_a), ("b", expected_b)):
            size = np.abs(expected).max()
            error = np.abs(np.asarray(own[f"{path}/lora_{name}"]) - expected).max()
            assert error < 1e-3 * size, (path, name)

"""Products with a matrix and its adapter, apart and merged, within derived bounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io import checkpoint
from jaxdave.models.lora import TARGET_PATHS
from jaxdave.numerics.layer_stack import PerLayer, fold_layers
from jaxdave.numerics.low_rank import AdaptedMatrix
from jaxdave.numerics.matmul import matmul
from jaxdave.numerics.quantization import EightBit, param_transform
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.runtime.machine import CPU, GPU

RANK, SCALE = 8, 2.0


def adapted(base, seed=0) -> AdaptedMatrix:
    """A random adapter, of the size that training gives one, beside a stack."""
    rng = np.random.default_rng(seed)
    layers, fan_in, fan_out = base.shape
    a = rng.uniform(-1, 1, (layers, fan_in, RANK)) / np.sqrt(fan_in)
    b = rng.normal(size=(layers, RANK, fan_out)) * 0.05
    return AdaptedMatrix(base, jnp.float32(a), jnp.float32(b), SCALE)


def layer(matrix, index: int):
    return jax.tree.map(lambda array: array[index], matrix)


def wide(array) -> np.ndarray:
    return np.abs(np.asarray(array, np.float64))


def gamma(count: int) -> float:
    """The relative error of `count` float32 operations one upon the other.

    A sum of n products, in whatever order, has gamma(n): Higham, Accuracy and Stability
    of Numerical Algorithms, section 3.1.
    """
    unit = count * 2.0**-24
    return unit / (1 - unit)


def bound(x, matrix: AdaptedMatrix, weights_dtype) -> np.ndarray:
    """How far a product apart may be from one with the merged matrix.

    Apart: n products and their sum, one more addition; the thin path n, then a factor,
    then r, then that addition. Merged: r products, a factor, an addition and a rounding
    make the matrix, then there are n products. Either way both paths end within
    gamma(n + 1) |x| |W| + gamma(n + r + 2) scale |x| |A| |B| of the exact value.

    In bfloat16 three more roundings to 8 bits: the base's product, the merged matrix
    and its product, each relative to at most |x| (|W| + scale |A| |B|) (1 + 2^-8).
    """
    fan_in, rank = matrix.lora_a.shape[-2:]
    base = wide(x) @ wide(matrix.base)
    added = matrix.scale * (wide(x) @ wide(matrix.lora_a)) @ wide(matrix.lora_b)
    total = 2 * gamma(fan_in + 1) * base + 2 * gamma(fan_in + rank + 2) * added
    if weights_dtype == jnp.bfloat16:
        total = total * (1 + 2.0**-8) + 3 * 2.0**-8 * (1 + 2.0**-8) * (base + added)
    return total


@jax.jit
def products(x, stack: AdaptedMatrix, merged):
    """Of every layer's vectors: with matrix and adapter apart, merged, and without."""
    return jax.vmap(
        lambda x, apart, together: tuple(
            matmul(x, one, CPU) for one in (apart, together, apart.base)
        )
    )(x, stack, merged)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["sdar-1m", "llada-1m", "dream-1m"])
def test_products_apart_are_those_of_the_merged_matrix(name, dtype):
    leaves = leaves_by_path(to_stacked(checkpoint.load(name, dtype=dtype).params))
    used = 0.0
    for path in TARGET_PATHS.values():
        stack = adapted(leaves[f"{path}/kernel"])
        merged = stack.merge()
        assert merged.dtype == stack.base.dtype and merged.shape == stack.base.shape
        layers, fan_in, _ = stack.base.shape
        x = jnp.asarray(
            np.random.default_rng(1).normal(size=(layers, 8, fan_in)), dtype
        )
        apart, together, plain = (
            np.asarray(part, np.float64) for part in products(x, stack, merged)
        )
        limit = bound(x, stack, stack.base.dtype)
        used = max(used, float(np.max(np.abs(apart - together) / limit)))
        # Without the adapter it is another product altogether.
        assert np.abs(apart - plain).max() > 0.01
    assert 0 < used <= 1


def test_the_merged_matrix_is_the_sum_rounded_once():
    base = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 5)), jnp.bfloat16)
    rng = np.random.default_rng(3)
    # Small whole numbers: products and sums are exact in float32 in any order.
    a, b = (jnp.float32(rng.integers(-3, 4, s)) for s in ((2, 6, 3), (2, 3, 5)))
    merged = AdaptedMatrix(base, a, b, 0.25).merge()
    exact = np.asarray(base, np.float64) + 0.25 * np.asarray(a) @ np.asarray(b)
    np.testing.assert_array_equal(merged, jnp.asarray(np.float32(exact), jnp.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.as_shipped
def test_a_zero_b_leaves_the_bits_of_the_base(dtype):
    rng = np.random.default_rng(4)
    base = jnp.asarray(rng.normal(size=(1, 64, 48)), dtype)
    matrix = layer(adapted(base), 0)
    matrix = dataclasses.replace(matrix, lora_b=jnp.zeros_like(matrix.lora_b))
    # Activations between float16 weights are float32.
    x = jnp.asarray(
        rng.normal(size=(3, 64)), "float32" if dtype == "float16" else dtype
    )
    plain = jax.jit(lambda x: matmul(x, matrix.base, CPU))(x)
    apart = jax.jit(lambda x: matmul(x, matrix, CPU))(x)
    np.testing.assert_array_equal(apart.astype(plain.dtype), plain)
    np.testing.assert_array_equal(matrix.merge(), matrix.base)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_base_in_8_bits_merges_to_float32(kind):
    rng = np.random.default_rng(5)
    weights = jnp.float32(rng.normal(size=(2, 16, 12)))
    base = param_transform(kind)("blocks/attn/q/kernel", weights)
    assert isinstance(base, EightBit)
    stack = dataclasses.replace(adapted(base.values), base=base)
    x = jnp.float32(rng.normal(size=(4, 16)))
    merged = stack.merge()
    assert merged.dtype == jnp.float32 and merged.shape == (2, 16, 12)
    for index in range(2):
        apart = layer(stack, index).matmul(x, CPU)
        one = dataclasses.replace(
            layer(stack, index),
            base=np.asarray(base.values[index], float) * np.asarray(base.scale[index]),
        )
        # The scale of a channel is one more factor on either side.
        limit = bound(x, one, jnp.float32) + 2 * gamma(1) * wide(x) @ wide(one.base)
        error = wide(apart - jnp.matmul(x, merged[index], precision="highest"))
        assert (error <= limit).all()


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["scanned", "spelled out"])
def test_layers_see_their_own_adapter(machine):
    base = jnp.float32(np.random.default_rng(6).normal(size=(3, 8, 8)) * 0.3)
    stack = adapted(base)
    x = jnp.float32(np.random.default_rng(7).normal(size=(2, 8)))

    def multiply(x, weights, _):
        return weights["kernel"].matmul(x, machine), x[0, 0]

    layers = {"kernel": stack, "norm": jnp.zeros((3, 1))}
    folded, _ = fold_layers(multiply, x, layers, jnp.zeros(3), machine)
    one_by_one = x
    for index in range(3):
        one_by_one = layer(stack, index).matmul(one_by_one, machine)
    np.testing.assert_allclose(folded, one_by_one, rtol=1e-5)
    assert np.abs(np.asarray(one_by_one - x @ base[0] @ base[1] @ base[2])).max() > 0.01


def test_a_matrix_of_its_own_for_each_layer_is_selected():
    base = jnp.float32(np.random.default_rng(8).normal(size=(3, 8, 8)))
    stack = adapted(base)
    x = jnp.float32(np.random.default_rng(9).normal(size=(2, 8)))
    layers = PerLayer(tuple(layer(stack, index) for index in range(3)))
    chosen = jax.jit(lambda i: layers.select(i).matmul(x, CPU))(jnp.int32(2))
    np.testing.assert_allclose(chosen, layer(stack, 2).matmul(x, CPU), rtol=1e-5)


def test_a_base_in_a_device_layout_is_not_merged():
    stack = adapted(jnp.zeros((2, 8, 8)))
    own = dataclasses.replace(stack, base=PerLayer(tuple(stack.base)))
    with pytest.raises(ValueError, match="PerLayer.*to_stacked"):
        own.merge()

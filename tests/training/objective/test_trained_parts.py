"""Written-out gradients are those that JAX derives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.models import transformer
from jaxdave.models.attention import dense_attention
from jaxdave.models.param_shapes import Binder
from jaxdave.models.presets import preset
from jaxdave.models.rope import rope_table
from jaxdave.runtime.machine import this_machine
from jaxdave.training.objective.trained_attention import trained_attention
from jaxdave.training.objective.trained_matrix import (
    TrainedMatrix,
    with_written_gradients,
)


def value_and_pullback(function, cotangent, *args):
    """The value of a function, and its cotangents."""
    value, pullback = jax.vjp(function, *args)
    return value, pullback(cotangent)


def assert_close(found, expected, rtol):
    """Equal leaf by leaf, up to a share of the largest value."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * abs(b).max())


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_has_the_gradients_of_dense_attention(dtype, rtol, kv_heads):
    rng = np.random.default_rng(0)
    shapes = (2, 6, 4, 8), (2, 6, kv_heads, 8), (2, 6, kv_heads, 8), (2, 6, 4, 8)
    q, k, v, cotangent = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    # Every query sees some keys, but not all.
    mask = jnp.asarray(rng.random((2, 6, 6)) < 0.5) | jnp.eye(6, dtype=bool)[None]
    found, expected = (
        value_and_pullback(lambda q, k, v, f=f: f(q, k, v, mask), cotangent, q, k, v)
        for f in (trained_attention, dense_attention)
    )
    assert_close(found, expected, rtol)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_a_matrix_has_the_gradients_of_its_array(dtype, rtol):
    rng = np.random.default_rng(0)
    x, matrix, cotangent = (
        jnp.asarray(rng.normal(size=shape), dtype)
        for shape in ((2, 3, 5), (5, 7), (2, 3, 7))
    )
    found = value_and_pullback(
        lambda x, w: TrainedMatrix(w).matmul(x, this_machine()), cotangent, x, matrix
    )
    assert_close(found, value_and_pullback(jnp.matmul, cotangent, x, matrix), rtol)


def test_spelled_out_layers_compute_what_looped_ones_do():
    config = dataclasses.replace(preset("dream-1m", num_layers=3), vocab_rows=776)
    params = transformer.init(config, 0)
    tokens = jnp.arange(8, dtype=jnp.int32)[None]
    cos, sin = rope_table(config, 8)
    rope = jnp.asarray(cos)[None], jnp.asarray(sin)[None]
    mask = jnp.ones((1, 8, 8), bool)

    def total(params, spell_out, wrap):
        hidden, kv = Binder(config)(wrap(params)).hidden(
            tokens,
            rope,
            lambda _, q, k, v: dense_attention(q, k, v, mask),
            jnp.zeros((3,)),
            spell_out=spell_out,
        )
        return jnp.sum(hidden**3) + sum(jnp.sum(part**2) for part in kv)

    def gradient(*options):
        return jax.jit(jax.grad(lambda params: total(params, *options)))(params)

    plain = gradient(False, lambda params: params)
    assert_close(gradient(True, with_written_gradients), plain, 2e-5)
    assert_close(gradient(False, with_written_gradients), plain, 2e-5)

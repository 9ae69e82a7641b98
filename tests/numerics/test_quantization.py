"""8-bit models: rounded once, read one way everywhere, and lossless as any model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import checkpoint_folders, fake_model
from helpers.losslessness import saved_calls

from jaxdave.engine import decoders
from jaxdave.engine.bitwise_check import slot_probe
from jaxdave.engine.decode_layout import decode_layout
from jaxdave.io import checkpoint
from jaxdave.models.forward import forward
from jaxdave.models.param_shapes import Binder
from jaxdave.numerics.matmul import embed
from jaxdave.numerics.quantization import (
    FLOAT8,
    QUANTIZATIONS,
    EightBit,
    channel_axis,
    einsum_kernel,
    is_eight_bit,
    quantize_param,
    quantize_params,
)
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.runtime.machine import CPU

TIED = dataclasses.replace(fake_model.TINY, tie_embeddings=True)
FULL = dataclasses.replace(fake_model.TINY, attention="full", logits_shift="full")


def random(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def dense(params):
    """Quantised parameters dequantised to float32 arrays."""

    def one(path, leaf):
        axis = channel_axis(jax.tree_util.keystr(path, simple=True, separator="/"))
        return dequantized(leaf, axis) if is_eight_bit(leaf) else leaf

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_eight_bit)


def dequantized(made, axis: int | None):
    assert axis is not None
    return made.values.astype(jnp.float32) * jnp.expand_dims(made.scale, axis)


def int8_of(config, seed: int = 0):
    return quantize_params(fake_model.scaled(config, seed))


@functools.cache
def float8_values() -> np.ndarray:
    """All finite values of float8_e4m3fn, ascending, by its definition."""
    normal = [2.0**e * (1 + m / 8) for e in range(-6, 9) for m in range(8)]
    # The last of them is the NaN; below 2^-6 the steps are even.
    positive = [2.0**-9 * m for m in range(1, 8)] + normal[:-1]
    return np.asarray([-v for v in positive[::-1]] + [0.0, *positive])


@pytest.mark.parametrize(("path", "axis"), [("a/kernel", -2), ("embedding", -1)])
def test_values_are_half_a_level_off_at_most(path, axis):
    leaf = random(3, 8, 5) if axis == -2 else random(8, 5)
    leaf = leaf.at[(..., 2) if axis == -2 else 2].set(0.0)
    made = quantize_param(path, leaf)
    assert isinstance(made, EightBit)
    assert made.values.dtype == jnp.int8 and made.scale.dtype == jnp.float32
    away = jnp.abs(dequantized(made, axis) - leaf)
    assert jnp.all(away <= jnp.expand_dims(made.scale, axis) * 0.5001)
    assert jnp.all(jnp.isfinite(made.scale))
    # Every channel uses all of the range, unless it is nothing but zeros.
    most = jnp.max(jnp.abs(made.values.astype(jnp.int32)), axis=axis)
    assert set(np.unique(most)) <= {0, 127} and most.max() == 127
    assert int(made.values.min()) >= -127


@pytest.mark.parametrize(("path", "axis"), [("a/kernel", -2), ("embedding", -1)])
def test_float8_values_are_the_nearest_that_there_are(path, axis):
    leaf = random(3, 8, 5) if axis == -2 else random(8, 5)
    leaf = leaf * jnp.exp(4 * random(*leaf.shape)[::-1])
    leaf = leaf.at[(..., 2) if axis == -2 else 2].set(0.0)
    made = quantize_param(path, leaf, FLOAT8)
    assert isinstance(made, EightBit)
    assert made.values.dtype == jnp.float8_e4m3fn and made.scale.dtype == jnp.float32
    values = np.asarray(made.values, np.float32)
    wanted = np.asarray(leaf) / np.expand_dims(made.scale, axis)
    found_distance = np.abs(values - wanted)
    least = np.abs(float8_values() - wanted[..., None]).min(axis=-1)
    np.testing.assert_allclose(found_distance, least, rtol=1e-4, atol=1e-4)
    # Every channel uses all of the range, unless it is nothing but zeros.
    most = np.abs(values).max(axis=axis)
    assert set(np.unique(most)) == {0, 448}


def test_norms_and_biases_stay():
    leaf = random(7)
    assert quantize_param("blocks/norm1/scale", leaf) is leaf
    assert quantize_param("blocks/attn/q/bias", leaf) is leaf


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_scale_after_the_product_is_a_scale_before_it(dtype, quantize):
    x = random(4, 16).astype(dtype)
    kernel = QUANTIZATIONS[quantize]("o/kernel", random(16, 6))
    wide = np.asarray(dequantized(kernel, -2))
    want = np.asarray(x.astype(jnp.float32)) @ wide
    found = einsum_kernel("ri,io->ro", x, kernel, CPU)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, rtol=2e-6, atol=2e-6)


def test_a_tied_table_looks_up_what_the_head_compares_with():
    params = int8_of(TIED)
    table = Binder(TIED)(params).head_table()
    assert isinstance(table, EightBit)
    ids = jnp.arange(TIED.vocab_rows, dtype=jnp.int32)
    found = embed(params["embedding"], ids, jnp.float32)
    np.testing.assert_array_equal(found, dequantized(table, -1))


@pytest.mark.parametrize(
    ("config", "quantize"),
    [*((c, "int8") for c in (fake_model.TINY, TIED, FULL)), (TIED, "fp8")],
)
def test_logits_are_those_of_the_rounded_weights(config, quantize):
    params = quantize_params(fake_model.scaled(config, 0), quantize)
    tokens = jnp.asarray(fake_model.prompts_of([24], most=34), jnp.int32)
    logits = jax.jit(forward(config))
    found, want = logits(params, tokens), logits(dense(params), tokens)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    plain = logits(fake_model.scaled(config, 0), tokens)
    assert np.abs(np.asarray(found) - np.asarray(plain)).max() > 1e-3


@pytest.mark.parametrize(
    ("cache", "temperature", "dtype", "quantize"),
    [
        pytest.param(None, 0.7, jnp.float32, "int8", marks=pytest.mark.slow),
        pytest.param(None, 0.0, jnp.bfloat16, "int8", marks=pytest.mark.slow),
        pytest.param(None, 0.0, jnp.float32, "fp8", marks=pytest.mark.slow),
        pytest.param(None, 0.7, jnp.bfloat16, "fp8", marks=pytest.mark.slow),
        ("dual", 0.0, jnp.float32, "int8"),
    ],
)
def test_drafts_keep_the_text(cache, temperature, dtype, quantize):
    config = fake_model.TINY if cache is None else FULL
    decoder = decoders.freedave(
        config,
        draft_steps=8,
        max_new_tokens=16,
        block_length=4,
        cache=cache,
        temperature=temperature,
    )
    saved = 0
    for seed, cap, lengths in ((0, 2, [33, 2]), (1, 8, [5, 40]), (2, 5, [3, 17])):
        drawn = fake_model.scaled(config, seed)
        params = jax.tree.map(lambda a: a.astype(dtype), drawn)
        params = quantize_params(params, quantize)
        prompts = fake_model.prompts_of(lengths, seed)
        saved += saved_calls(decoder, cap, params, prompts, seed)
    assert saved > 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.as_shipped
def test_a_drafts_index_does_not_change_bits(dtype):
    spec = decoders.freedave(fake_model.TINY, draft_steps=4).spec
    half = jax.tree.map(lambda a: a.astype(dtype), fake_model.tiny_params(0))
    assert slot_probe(spec, quantize_params(half)).holds


def test_chunked_logits_are_those_of_the_whole_head():
    config = fake_model.TINY
    made = decode_layout(config, 4, None, 2, 8).make_model(config, numerics="exact")
    params, hidden = int8_of(config), random(3, config.hidden)
    want = Binder(config)(params).logits(hidden)
    np.testing.assert_allclose(
        made.logits(params, hidden, jnp.int32(0)), want[:, : made.head_chunk], rtol=1e-5
    )
    ids = jnp.asarray([[1, 5], [0, 39], [7, 7]], jnp.int32)
    np.testing.assert_allclose(
        made.logits_at(params, hidden, ids),
        jnp.take_along_axis(want, ids, axis=1),
        rtol=1e-5,
    )


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_loading_rounds_what_it_reads(tmp_path, quantize):
    checkpoint_folders.make(tmp_path / "m")
    model = checkpoint.load(tmp_path / "m", quantize=quantize)
    checkpoint_folders.assert_equal(
        model.params,
        quantize_params(to_stacked(checkpoint.load(tmp_path / "m").params), quantize),
    )
    assert model.quantize == quantize
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    whole_size = sum(
        leaf.nbytes for leaf in jax.tree.leaves(checkpoint_folders.random())
    )
    matrices = sum(
        a.size for a in jax.tree.leaves(checkpoint_folders.random()) if a.ndim > 2
    )
    assert size < whole_size - 2.5 * matrices


def test_what_cannot_be_is_refused_in_a_line(tmp_path):
    checkpoint_folders.make(tmp_path / "m")
    for quantize in ("int4", "", "INT8"):
        with pytest.raises(ValueError, match="is unknown; use int8, fp8") as caught:
            checkpoint.load(tmp_path / "m", quantize=quantize)
        assert "\n" not in str(caught.value)
    for quantize in QUANTIZATIONS:
        params = checkpoint.load(tmp_path / "m", quantize=quantize).params
        with pytest.raises(ValueError, match="parameters in 8 bits are not saved"):
            checkpoint.save(
                tmp_path / "n", checkpoint_folders.CONFIG, params, dtype="float32"
            )


@pytest.mark.slow
def test_the_command_line_knows_it(run, tmp_path):
    checkpoint_folders.make(tmp_path / "m")
    options = ("--model", tmp_path / "m", "--max-new-tokens", 4)
    for quantize in QUANTIZATIONS:
        code, out, _ = run("generate", "hi", *options, "--quantize", quantize, "--json")
        assert code == 0 and f'"quantize": "{quantize}"' in out
    code, _, err = run("generate", "hi", *options, "--quantize", "int3")
    assert code == 2 and "quantize='int3' is unknown; use int8" in err
    assert err.count("\n") == 1

"""The CPU layout of parameters: the same numbers, and no copies at run time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import checkpoint_folders, fake_model
from helpers.losslessness import saved_calls

from jaxdave.core.config import NOISE_CHUNK
from jaxdave.engine import decoders
from jaxdave.io import checkpoint
from jaxdave.io.sharding import shardings
from jaxdave.models.decode_model import DecodeModel
from jaxdave.models.forward import forward
from jaxdave.models.param_shapes import Binder
from jaxdave.numerics import weight_layout
from jaxdave.numerics.layer_stack import PerLayer
from jaxdave.numerics.matmul import (
    ChunkedTable,
    FusedKernels,
    RowMajor,
    SelectedMatrix,
    embed,
    gather_rows,
    matmul,
)
from jaxdave.numerics.quantization import EightBit, quantize_params
from jaxdave.numerics.weight_layout import to_device_layout, to_stacked
from jaxdave.runtime import compilation
from jaxdave.runtime.machine import CPU, TPU
from jaxdave.training.demo.warm_start import warm_start_params

ROWS = 2 * NOISE_CHUNK + 40
"""Two chunks of the head and a short one, which is moved back to fit."""
WIDE = dataclasses.replace(
    fake_model.TINY, vocab_rows=ROWS, vocab_size=ROWS - 3, hidden=16
)
TIED = dataclasses.replace(WIDE, tie_embeddings=True)
CONFIGS = [pytest.param(c, id=i) for c, i in ((WIDE, "head"), (TIED, "tied"))]
random_params = functools.cache(fake_model.scaled)
KINDS = {
    "float32": lambda params: params,
    "int8": quantize_params,
    "fp8": functools.partial(quantize_params, quantize="fp8"),
}


@pytest.fixture(params=["small", "large"])
def order(request, monkeypatch) -> str:
    """Matrices in either order, whatever their size."""
    monkeypatch.setattr(
        weight_layout, "LARGE_MATRIX", {"small": 2**40, "large": 1}[request.param]
    )
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_numbers_come_back(config, kind, order):
    params = KINDS[kind](random_params(config, 0))
    laid_out = to_device_layout(params, config)
    down = laid_out["blocks"]["mlp"]["down"]["kernel"]
    table = "embedding" if config.tie_embeddings else "head"
    assert isinstance(down, PerLayer) and len(down.layers) == config.num_layers
    assert isinstance(down.layers[0], RowMajor) == (order == "large")
    assert isinstance(laid_out["blocks"]["attn"]["q"]["kernel"], FusedKernels)
    assert (
        isinstance(laid_out[table], ChunkedTable) and len(laid_out[table].chunks) == 3
    )
    checkpoint_folders.assert_equal(laid_out, params)
    checkpoint_folders.assert_equal(to_device_layout(laid_out, config), params)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_the_layers_own_matrix(kind, order):
    params = KINDS[kind](random_params(fake_model.TINY, 0))
    stack = params["blocks"]["mlp"]["down"]["kernel"]
    apart = to_device_layout(params, fake_model.TINY)["blocks"]["mlp"]["down"]["kernel"]
    x = np.random.default_rng(0).normal(size=(3, 5, 64)).astype(np.float32)
    for index in range(fake_model.TINY.num_layers):
        matrix = jax.tree.map(lambda a, i=index: np.asarray(a[i], np.float64), stack)
        if isinstance(matrix, EightBit):
            matrix = matrix.values * matrix.scale
        found = jax.jit(functools.partial(matmul, machine=CPU))(
            x, SelectedMatrix(apart.layers, jnp.int32(index))
        )
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, x @ matrix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_chunked_table_are_those_of_the_whole_one(kind):
    params = KINDS[kind](random_params(TIED, 0))
    whole_one, cut = params["embedding"], to_device_layout(params, TIED)["embedding"]
    edges = [
        0,
        NOISE_CHUNK - 1,
        NOISE_CHUNK,
        ROWS - NOISE_CHUNK - 1,
        ROWS - NOISE_CHUNK,
        2 * NOISE_CHUNK,
        ROWS - 1,
    ]
    ids = jnp.asarray([edges, edges[::-1]], jnp.int32)
    for found, want in zip(
        jax.tree.leaves(gather_rows(cut, ids)),
        jax.tree.leaves(gather_rows(whole_one, ids)),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(
        embed(cut, ids, jnp.float32), embed(whole_one, ids, jnp.float32)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS)
def test_a_chunked_head_gives_the_logits_of_the_whole_one(config, kind):
    params = KINDS[kind](random_params(config, 0))
    laid_out = to_device_layout(params, config)
    tokens = jnp.asarray(fake_model.prompts_of([24], most=34), jnp.int32)
    logits = jax.jit(forward(config))
    np.testing.assert_allclose(
        logits(laid_out, tokens), logits(params, tokens), rtol=1e-4, atol=1e-4
    )
    model = DecodeModel(config, exact=False, wide=False, machine=CPU)
    hidden = jax.random.normal(jax.random.key(0), (4, config.hidden))
    want = Binder(config)(params).logits(hidden)
    part = jax.jit(model.logits)
    for first in (0, NOISE_CHUNK, ROWS - NOISE_CHUNK):
        found = part(laid_out, hidden, jnp.int32(first))
        np.testing.assert_allclose(
            found, want[:, first : first + NOISE_CHUNK], rtol=1e-4, atol=1e-4
        )
    ids = jnp.asarray([[1, NOISE_CHUNK + 5]] * 4, jnp.int32)
    np.testing.assert_allclose(
        model.logits_at(laid_out, hidden, ids),
        jnp.take_along_axis(want, ids, axis=1),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.as_shipped
@pytest.mark.parametrize(
    "numerics", [pytest.param("guarded", marks=pytest.mark.slow), "exact"]
)
def test_drafts_keep_the_text(numerics, monkeypatch):
    monkeypatch.setattr(
        weight_layout, "LARGE_MATRIX", 2**11
    )  # the MLP's, not attention's
    config = dataclasses.replace(
        TIED, vocab_rows=NOISE_CHUNK + 40, vocab_size=NOISE_CHUNK
    )
    decoder = decoders.freedave(
        config, draft_steps=8, max_new_tokens=16, numerics=numerics
    )
    params = to_device_layout(random_params(config, 0), config)
    assert saved_calls(decoder, 8, params, fake_model.prompts_of([3, 20, 33])) > 0


def test_nothing_is_copied_out_of_a_stack():
    """A loop over stacks holds a copy of a matrix and of a chunk; this one does not."""
    config = dataclasses.replace(
        fake_model.TINY,
        inter=8192,
        num_layers=3,
        vocab_rows=8 * NOISE_CHUNK,
        vocab_size=8 * NOISE_CHUNK,
    )
    decoder = decoders.static(config, max_new_tokens=8, numerics="fast")
    found = []
    for made in (to_device_layout, lambda params, _: params):
        params = made(random_params(config, 0), config)
        fake_model.decode(decoder, params, [[1, 2, 3]])
        made = compilation.memory_analysis(decoder.spec, "run")
        found.append(made.temp_size_in_bytes)
        compilation.clear_executables()
    matrix, chunk = 4 * 32 * 8192, 4 * 32 * NOISE_CHUNK
    assert found[1] - found[0] > matrix + chunk


def test_saved_and_trained_from_as_any(tmp_path, order):
    params = checkpoint_folders.random()
    laid_out = to_device_layout(params, checkpoint_folders.CONFIG)
    for name, some in (("a", params), ("b", laid_out)):
        checkpoint.save(
            tmp_path / name, checkpoint_folders.CONFIG, some, dtype="float32"
        )
    a, b = (tmp_path / name / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    checkpoint_folders.assert_equal(
        warm_start_params(checkpoint_folders.CONFIG, to_stacked(laid_out)), params
    )


def test_what_needs_stacks_says_so(tmp_path):
    laid_out = to_device_layout(random_params(TIED, 0), TIED)
    with pytest.raises(ValueError, match="use `weight_layout.to_stacked`") as caught:
        quantize_params(laid_out)
    assert "\n" not in str(caught.value)
    mesh = jax.make_mesh((1,), ("model",))
    with pytest.raises(ValueError, match="use `weight_layout.to_stacked`"):
        shardings(laid_out, TIED, mesh)
    for broken in ({}, {"blocks": {}}, {**laid_out, "blocks": {"attn": {}}}):
        with pytest.raises(ValueError, match="do not have the shapes of config"):
            checkpoint.save(tmp_path / "m", TIED, broken, dtype="float32")


def test_elsewhere_stacks_stay():
    params = random_params(TIED, 0)
    laid_out = to_device_layout(params, TIED, TPU)
    assert jax.tree.structure(laid_out) == jax.tree.structure(params)
    assert jax.tree.structure(to_stacked(laid_out)) == jax.tree.structure(params)

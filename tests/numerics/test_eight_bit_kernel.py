"""The kernel that reads 8-bit weights as stored: XLA's numbers, and no widened copy."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import checkpoint_folders, fake_model
from helpers.kernel_machine import KERNEL_MACHINE
from helpers.losslessness import saved_calls
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.device_topology import target_devices
from jaxdave.engine import decoders
from jaxdave.models.decode_model import DecodeModel
from jaxdave.numerics.eight_bit_kernel import (
    BLOCK_IN,
    BLOCK_OUT,
    MAX_ROWS,
    MAX_SPLITS,
    PROCESSORS,
    eight_bit_matmul,
    split_inputs,
)
from jaxdave.numerics.layer_stack import PerLayer
from jaxdave.numerics.matmul import (
    EightBitRows,
    EightBitTable,
    FusedKernels,
    RowMajor,
    embed,
    matmul,
)
from jaxdave.numerics.quantization import (
    QUANTIZATIONS,
    EightBit,
    narrow_parts,
    quantize_params,
)
from jaxdave.numerics.weight_layout import to_device_layout, to_stacked
from jaxdave.runtime.machine import GPU, H100, TPU

TIED = dataclasses.replace(fake_model.TINY, tie_embeddings=True)
LAYER = {
    "qkv": (2560, 6144),
    "o": (4096, 2560),
    "up": (2560, 19456),
    "down": (9728, 2560),
}
"""SDAR-4B's products, (in, out)."""
VOCABULARY = 151_936


def random(seed: int, *shape: int, dtype=jnp.float32) -> jax.Array:
    drawn = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(drawn, jnp.float32).astype(dtype)


def rows_of(quantize: str, outputs: int, inputs: int) -> EightBit:
    """A random matrix [out, in] with channels of very different sizes."""
    table = random(1, outputs, inputs) * jnp.exp(3 * random(2, outputs, 1))
    return QUANTIZATIONS[quantize]("head", table)


def kernel_product(x: jax.Array, matrix: EightBit) -> jax.Array:
    product = functools.partial(matmul, machine=KERNEL_MACHINE)
    return jax.jit(product)(x, EightBitRows(matrix))


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        (1, BLOCK_IN, BLOCK_OUT),
        (48, 10 * BLOCK_IN, 2 * BLOCK_OUT),
        (70, 5 * BLOCK_IN, 130),
        (5, 37, 3),
        (17, 1000, 129),
        (64, 66, 1),
    ],
)
def test_the_product_is_xlas(rows, inputs, outputs, dtype, quantize):
    matrix, x = rows_of(quantize, outputs, inputs), random(0, rows, inputs, dtype=dtype)
    found = kernel_product(x, matrix)
    want = jax.jit(functools.partial(matmul, machine=GPU))(x, RowMajor(matrix))
    assert found.dtype == want.dtype == jnp.float32 and found.shape == want.shape
    # Sums of the same products in another order: of each channel's own size.
    size = np.abs(want).max(axis=0, keepdims=True) + 1e-30
    assert np.max(np.abs(found - want) / size) < 4e-6


@given(
    st.integers(1, 40), st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**31)
)
def test_the_product_is_that_of_whole_numbers(rows, inputs, outputs, seed):
    """Integers whose sums float32 holds: the product has to be exact."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    x = rng.integers(-9, 10, (rows, inputs)).astype(np.float32)
    scale = 2.0 ** rng.integers(-3, 4, outputs).astype(np.float32)
    found = kernel_product(jnp.asarray(x), EightBit(jnp.asarray(values), scale))
    np.testing.assert_array_equal(found, x @ values.T.astype(np.float32) * scale)


@pytest.mark.as_shipped
@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_a_row_has_the_same_bits_whatever_other_rows_hold(quantize):
    matrix = rows_of(quantize, 200, 700)
    x, other = random(0, 20, 700), random(9, 20, 700)
    alone = kernel_product(x, matrix)
    mixed = kernel_product(other.at[3].set(x[3]), matrix)
    np.testing.assert_array_equal(alone[3], mixed[3])
    np.testing.assert_array_equal(kernel_product(x, matrix), alone)


def test_a_batch_is_more_rows_of_one_product():
    """`vmap` would otherwise read the weights for each element of the batch."""
    matrix, x = rows_of("int8", 140, 200), random(0, 4, 3, 2, 200)
    product = functools.partial(
        matmul, matrix=EightBitRows(matrix), machine=KERNEL_MACHINE
    )
    batched = jax.vmap(jax.vmap(product), in_axes=1, out_axes=1)
    want = product(x.reshape(-1, 200)).reshape(4, 3, 2, 140)
    np.testing.assert_array_equal(jax.jit(batched)(x), want)
    program = str(jax.make_jaxpr(batched)(x))
    kernels = re.findall(r"f32\[\d+,(\d+),140\] = pallas_call", program)
    assert kernels == ["24"]
    with pytest.raises(NotImplementedError, match="map over the matrices"):
        jax.vmap(
            lambda values: eight_bit_matmul(
                narrow_parts(x[0, 0]), values, matrix.scale, interpret=True
            )
        )(jnp.stack([matrix.values] * 2))


@given(st.integers(1, 200_000), st.integers(1, 30_000))
def test_parts_of_a_matrix_cover_it_once(outputs, inputs):
    steps, splits = split_inputs(outputs, inputs)
    blocks = -(-inputs // BLOCK_IN)
    assert (splits - 1) * steps < blocks <= splits * steps
    assert splits <= MAX_SPLITS
    channels = -(-outputs // BLOCK_OUT)
    assert splits == 1 or splits * channels <= PROCESSORS


@pytest.mark.parametrize("machine", [TPU, GPU], ids=lambda m: m.name)
def test_many_vectors_and_other_machines_take_xlas_way(machine):
    rows = MAX_ROWS + 1 if machine.is_gpu else 8
    matrix, x = EightBitRows(rows_of("int8", 64, 64)), random(0, rows, 64)
    program = str(jax.make_jaxpr(functools.partial(matmul, machine=machine))(x, matrix))
    assert "dot_general" in program and "pallas_call" not in program


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
@pytest.mark.parametrize("config", [fake_model.TINY, TIED], ids=["head", "tied"])
def test_the_layout_is_for_gpus_that_can_and_comes_back(config, quantize):
    params = quantize_params(fake_model.scaled(config, 0), quantize)
    laid_out = to_device_layout(params, config, GPU)
    down = laid_out["blocks"]["mlp"]["down"]["kernel"]
    fused = laid_out["blocks"]["attn"]["q"]["kernel"]
    table = "embedding" if config.tie_embeddings else "head"
    assert isinstance(down, PerLayer) and isinstance(fused, FusedKernels)
    assert isinstance(down.layers[0], EightBitRows)
    assert isinstance(fused.matrix.layers[0], EightBitRows)
    assert isinstance(laid_out[table], EightBitTable)
    checkpoint_folders.assert_equal(to_stacked(laid_out), params)
    checkpoint_folders.assert_equal(
        to_stacked(to_device_layout(laid_out, config, GPU)), params
    )
    ids = jnp.asarray([[0, 5], [39, 0]], jnp.int32)
    np.testing.assert_array_equal(
        embed(laid_out["embedding"], ids, jnp.float32),
        embed(params["embedding"], ids, jnp.float32),
    )
    old = dataclasses.replace(GPU, has_float8=False)
    down = to_device_layout(params, config, old)["blocks"]["mlp"]["down"]["kernel"]
    assert isinstance(down.layers[0], EightBitRows) == (quantize == "int8")


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_logits_are_those_of_xlas_way(quantize):
    params = quantize_params(fake_model.scaled(TIED, 0), quantize)
    hidden = random(0, 4, TIED.hidden)
    found, want = (
        jax.jit(DecodeModel(TIED, exact=False, wide=True, machine=m).logits)(
            to_device_layout(params, TIED, m), hidden, jnp.int32(0)
        )
        for m in (KERNEL_MACHINE, TPU)
    )
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("quantize", "numerics", "temperature", "dtype"),
    [
        pytest.param("int8", "guarded", 0.0, jnp.float32, marks=pytest.mark.slow),
        pytest.param("fp8", "guarded", 0.7, jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param("fp8", "exact", 0.0, jnp.float32, marks=pytest.mark.slow),
    ],
)
def test_drafts_keep_the_text(quantize, numerics, temperature, dtype):
    decoder = decoders.freedave(
        TIED,
        draft_steps=4,
        max_new_tokens=12,
        block_length=4,
        numerics=numerics,
        temperature=temperature,
        machine=KERNEL_MACHINE,
    )
    drawn = jax.tree.map(lambda a: a.astype(dtype), fake_model.scaled(TIED, 1))
    params = to_device_layout(quantize_params(drawn, quantize), TIED, KERNEL_MACHINE)
    assert saved_calls(decoder, 4, params, fake_model.prompts_of([3, 20], 1), 1) > 0


def shapes_in(text: str) -> dict[str, list[tuple[str, int, int]]]:
    """Arrays of a compiled program's instructions: name -> (dtype, elements, bytes)."""
    found = {}
    for name, kind in re.findall(
        r"^\s*(?:ROOT )?%([\w.-]+) = (.+?) [\w-]+\(", text, re.M
    ):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", kind)
        sizes = [
            (t, math.prod(map(int, filter(None, d.split(","))))) for t, d in arrays
        ]
        width = {"f32": 4, "s32": 4, "bf16": 2, "f16": 2, "s8": 1, "f8e4m3fn": 1}
        found[name] = [(t, n, n * width.get(t, 1)) for t, n in sizes]
    return found


@pytest.mark.as_shipped
@pytest.mark.parametrize("quantize", QUANTIZATIONS)
@pytest.mark.parametrize("name", [*LAYER, "head"])
def test_compiled_for_an_h100_weights_are_read_once_as_stored(name, quantize):
    """48 tokens in float32, as in a call with eight drafts."""
    pytest.importorskip("jax_cuda12_plugin", reason='needs pip install "jax[cuda12]"')
    device = target_devices("h100").devices[0]
    here = jax.sharding.SingleDeviceSharding(device)
    inputs, outputs = LAYER.get(name, (2560, VOCABULARY))
    matrix = jax.eval_shape(
        lambda: QUANTIZATIONS[quantize]("head", jnp.zeros((outputs, inputs)))
    )
    args = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here),
        (jax.ShapeDtypeStruct((48, inputs), jnp.float32), EightBitRows(matrix)),
    )
    product = jax.jit(functools.partial(matmul, machine=H100))
    lowered = product.trace(*args).lower(lowering_platforms=("cuda",))
    text = lowered.compile().as_text()
    assert text is not None and text.count("xla.gpu.triton") == 1
    entry = text[text.index("ENTRY") :]
    shapes = shapes_in(entry)
    weights = inputs * outputs
    # Nothing of the matrix's size but itself, and nothing wider.
    large = [(t, n) for kinds in shapes.values() for t, n, _ in kinds if n >= weights]
    assert [n for _, n in large] == [weights] and large[0][0] in ("s8", "f8e4m3fn")
    read = sum(
        num_bytes
        for operands in re.findall(r"(?:fusion|custom-call)\(([^)]*)\)", entry)
        for operand in re.findall(r"%([\w.-]+)", operands)
        for _, _, num_bytes in shapes[operand]
    )
    # What is not weights: the vectors in two parts, and sums of parts of the matrix.
    assert weights < read < LARGEST_SHARE[name] * weights


LARGEST_SHARE = {"qkv": 1.25, "o": 1.4, "up": 1.05, "down": 1.3, "head": 1.05}
"""Bytes that a product reads, by those of its weights; of a layer's together 1.12."""


def test_a_layers_products_read_little_but_weights():
    weights, rest, tokens = 0, 0, 48
    for inputs, outputs in LAYER.values():
        _, splits = split_inputs(outputs, inputs)
        weights += inputs * outputs
        # Two parts in bfloat16, and float32 sums.
        rest += 4 * tokens * inputs + 4 * tokens * outputs * splits
    assert rest < 0.15 * weights

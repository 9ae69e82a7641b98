"""The model over a whole canvas: what sees what, which output predicts which token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import checkpoint_folders

from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.forward import (
    forward,
    layer_states,
    positions,
    source_columns,
    visibility,
)

BLOCKS = dataclasses.replace(checkpoint_folders.CONFIG, block_length=2)
FULL = dataclasses.replace(
    checkpoint_folders.CONFIG, attention="full", logits_shift="full"
)


def grid(text: str) -> np.ndarray:
    return np.array([[c == "1" for c in row] for row in text.split()])


def test_visibility_by_hand():
    place = positions(jnp.zeros((1, 4), jnp.int32))
    blocks = visibility(BLOCKS, place)[0]
    np.testing.assert_array_equal(blocks, grid("1100 1100 1111 1111"))
    np.testing.assert_array_equal(visibility(FULL, place)[0], grid("1111 " * 4))


def test_pads_are_neither_seen_nor_counted():
    """Blocks are those of the row alone: columns 1, 2 and columns 3, 4."""
    valid = jnp.asarray(grid("01111"))
    place = positions(jnp.zeros((1, 5), jnp.int32), valid)
    np.testing.assert_array_equal(place, [[1, 0, 1, 2, 3]])
    blocks = visibility(BLOCKS, place, valid)[0, 1:]
    np.testing.assert_array_equal(blocks, grid("01100 01100 01111 01111"))
    np.testing.assert_array_equal(
        visibility(FULL, place, valid)[0, 1:], grid("01111 " * 4)
    )


def test_sources_by_hand():
    """[a0, a1, a2, a3] becomes [a0, a0, a1, a2]; pads shift nothing into a row."""
    tokens, valid = jnp.zeros((1, 4), jnp.int32), jnp.asarray(grid("0111"))
    np.testing.assert_array_equal(source_columns(positions(tokens)), [[0, 0, 1, 2]])
    np.testing.assert_array_equal(
        source_columns(positions(tokens, valid))[0, 1:], [1, 1, 2]
    )


@pytest.mark.parametrize("config", [BLOCKS, FULL])
def test_padded_row_is_the_row_alone(config):
    params = checkpoint_folders.random(config)
    tokens = np.random.default_rng(0).integers(0, 775, (2, 12)).astype(np.int32)
    valid = np.ones((2, 12), bool)
    valid[1, :3] = False
    both = jax.jit(forward(config))(params, tokens, valid)
    first = jax.jit(forward(config))(params, tokens[:1])
    second = jax.jit(forward(config))(params, tokens[1:, 3:])
    np.testing.assert_allclose(both[:1], first, atol=2e-5)
    np.testing.assert_allclose(both[1:, 3:], second, atol=2e-5)
    assert np.abs(both[1, 3:] - both[0, 3:]).max() > 0.1


def test_shift_moves_rows_and_nothing_else():
    tokens = np.random.default_rng(1).integers(0, 775, (1, 8)).astype(np.int32)
    params = checkpoint_folders.random(FULL)
    plain = dataclasses.replace(FULL, logits_shift="none")
    raw = np.asarray(jax.jit(forward(plain))(params, tokens))
    shifted = np.asarray(jax.jit(forward(FULL))(params, tokens))
    np.testing.assert_allclose(shifted[:, 1:], raw[:, :-1], atol=1e-5)
    np.testing.assert_allclose(shifted[:, :1], raw[:, :1], atol=1e-5)


def test_decoding_window_agrees():
    """The engine's prefill of an empty cache is the same model."""
    params = checkpoint_folders.random(BLOCKS)
    tokens = np.random.default_rng(2).integers(0, 775, (1, 64)).astype(np.int32)
    net = block_causal_model(BLOCKS)
    zero, end = jnp.int32(0), jnp.int32(64)
    hidden, _ = net.prefill(params, jnp.asarray(tokens[0]), zero, zero, end, 64, 64)
    states = jax.jit(layer_states(BLOCKS))(params, tokens)
    assert states.shape == (3, 1, 64, 16)
    np.testing.assert_allclose(states[-1][0], hidden, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3), (4,)])
def test_validity_has_the_shape_of_the_tokens(shape):
    with pytest.raises(AssertionError):
        forward(FULL)(
            checkpoint_folders.random(FULL),
            jnp.zeros((1, 4), jnp.int32),
            jnp.ones(shape),
        )

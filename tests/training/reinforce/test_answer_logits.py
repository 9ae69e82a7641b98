"""Copies beside finished text are the states that a block-causal decoder sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_models import SMALL

from jaxdave.models import transformer
from jaxdave.models.presets import preset
from jaxdave.training.reinforce.answer_logits import answer_logits
from jaxdave.training.reinforce.network_logits import network_logits

START, SIZE, TEXT = 4, 12, 24


@pytest.mark.parametrize("name", ["sdar-1m", "fast-dllm-v2-1.5b"])
def test_every_block_is_that_of_its_whole_state(name):
    config = preset(name, **SMALL)
    params = transformer.init(config, seed=0)
    rng = np.random.default_rng(0)
    tokens_T = rng.integers(0, 57, TEXT).astype(np.int32)
    window_R = tokens_T[START : START + SIZE]
    is_masked_SR = rng.random((3, SIZE)) < 0.6
    states_SR = np.where(is_masked_SR, config.mask_id, window_R).astype(np.int32)
    logits_of = answer_logits(config)(
        params, jnp.asarray(tokens_T), jnp.ones(TEXT, bool), jnp.int32(START), SIZE
    )
    got_SRV = jax.jit(logits_of)(jnp.asarray(states_SR))
    whole_logits = jax.jit(network_logits(config)(params))
    for begin in range(0, SIZE, config.block_length):
        block = slice(begin, begin + config.block_length)
        # Text up to the block, the state of the block, masks behind it.
        whole_ST = np.full((3, TEXT), config.mask_id, np.int32)
        whole_ST[:, : START + begin] = tokens_T[: START + begin]
        whole_ST[:, START + block.start : START + block.stop] = states_SR[:, block]
        want_STV = whole_logits(jnp.asarray(whole_ST))
        want = want_STV[:, START + block.start : START + block.stop]
        np.testing.assert_allclose(got_SRV[:, block], want, rtol=2e-4, atol=2e-5)
    assert np.all(np.isneginf(np.asarray(got_SRV)[..., [59, 60, 63]]))


def test_pads_on_the_left_change_nothing_of_full_attention():
    config = preset("llada-1m", **SMALL)
    params = transformer.init(config, seed=0)
    tokens_T = np.arange(10, dtype=np.int32)
    states_ST = np.stack([tokens_T, np.where(tokens_T > 6, config.mask_id, tokens_T)])
    padded_ST = np.pad(states_ST, ((0, 0), (3, 0)), constant_values=config.mask_id)
    valid_T = jnp.arange(13) >= 3
    logits_of = answer_logits(config)(
        params, jnp.asarray(padded_ST[0]), valid_T, jnp.int32(0), 13
    )
    want = network_logits(config)(params)(jnp.asarray(states_ST))
    got = logits_of(jnp.asarray(padded_ST))[:, 3:]
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)

"""Full-attention training: masking, the loss, and warm starts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoint_folders import TOKENIZER, random
from tokenizers import Tokenizer

from jaxdave.models.attention import dense_attention
from jaxdave.models.param_shapes import Binder, param_shapes
from jaxdave.models.presets import preset
from jaxdave.models.rope import rope_table
from jaxdave.training.demo.canvas import (
    PADDING_WEIGHT,
    make_canvas_batches,
    make_canvas_loss,
)
from jaxdave.training.demo.recipes import CANVAS_LENGTH, RECIPES
from jaxdave.training.demo.warm_start import warm_start_params

RECIPE = dataclasses.replace(RECIPES["llada-demo"], batch_size=32)
SMALL = {"num_layers": 2, "hidden": 16, "inter": 24, "head_dim": 8, "rotary_dim": 8}


@pytest.fixture(scope="module")
def batches():
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    first, again, other = (
        make_canvas_batches(RECIPE, tokenizer, step) for step in (0, 0, 1)
    )
    for name in first:
        jax.tree.map(np.testing.assert_array_equal, first[name], again[name])
        assert (first[name].noisy_BS != other[name].noisy_BS).any()
    return first


def test_prompts_stay_and_only_hidden_tokens_weigh(batches):
    mask = RECIPE.config.mask_id
    kinds = set()
    for batch in batches.values():
        rows = zip(*batch, strict=True)
        for noisy, begin, answer, weight in rows:
            assert mask not in noisy[:begin] and mask not in answer
            canvas = noisy[begin : begin + CANVAS_LENGTH]
            hidden = canvas == mask
            np.testing.assert_array_equal(hidden, weight > 0)
            np.testing.assert_array_equal(canvas[~hidden], answer[~hidden])
            assert (noisy[begin + CANVAS_LENGTH :] == RECIPE.config.pad_id).all()
            length = int(np.flatnonzero(answer == RECIPE.config.stop_ids[0])[0]) + 1
            assert hidden[:length].any()
            assert set(weight[: length + 1]) <= {0.0, 1.0}
            assert set(weight[length + 1 :]) <= {0.0, np.float32(PADDING_WEIGHT)}
            kinds.add(bool(hidden[32:].all()))
    assert kinds == {True, False}


@pytest.mark.parametrize("shift", ["none", "full"])
def test_the_loss_is_the_cross_entropy_of_what_is_hidden(batches, shift):
    config = dataclasses.replace(preset("llada-1m", **SMALL), logits_shift=shift)
    params = random(config)
    batch = jax.tree.map(lambda a: a[:2], batches["short"])
    with jax.numpy_rank_promotion("allow"):
        total, weight = make_canvas_loss(config)(
            params, jax.tree.map(jnp.asarray, batch)
        )
    expected = 0.0
    cos, sin = rope_table(config, 256)
    for noisy, begin, answer, weights in zip(*batch, strict=True):
        end = int(begin) + CANVAS_LENGTH  # alone, without padding
        see = jnp.ones((1, end, end), bool)
        hidden, _ = Binder(config)(params).hidden(
            jnp.asarray(noisy[None, :end]),
            (jnp.asarray(cos)[:end], jnp.asarray(sin)[:end]),
            lambda _, q, k, v, see=see: dense_attention(q, k, v, see),
            jnp.zeros((config.num_layers,)),
        )
        logits = Binder(config)(params).logits(hidden)[0]
        log_probs = np.asarray(jax.nn.log_softmax(logits), np.float64)
        for place in np.flatnonzero(weights):
            at = begin + place - (shift == "full")
            expected -= weights[place] * log_probs[at, answer[place]]
    np.testing.assert_allclose(float(total), expected, rtol=1e-4)
    np.testing.assert_allclose(float(weight), batch.weight_BC.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", ["llada-1m", "dream-1m"])
def test_a_warm_start_repeats_heads_and_scales_kernels_as_their_norms(name):
    source, config = preset("sdar-1m", **SMALL), preset(name, **SMALL)
    old, new = random(source), warm_start_params(config, random(source))
    like = param_shapes(config)
    assert jax.tree.map(lambda a: a.shape, new) == jax.tree.map(lambda a: a.shape, like)
    np.testing.assert_array_equal(new["embedding"], old["embedding"])
    times = config.kv_heads // source.kv_heads
    heads = np.asarray(old["blocks"]["attn"]["v"]["kernel"]).reshape(2, 16, 2, 8)
    np.testing.assert_array_equal(
        np.asarray(new["blocks"]["attn"]["v"]["kernel"]).reshape(2, 16, 2 * times, 8),
        np.repeat(heads, times, axis=2),
    )
    # Random inputs of size one: with and without the norm, outputs of one size.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 16)) * np.asarray(old["blocks"]["norm1"]["scale"][0])
    plain = (x @ np.asarray(old["blocks"]["attn"]["q"]["kernel"][0])).reshape(-1, 4, 8)
    normed = plain / np.sqrt((plain**2).mean(-1, keepdims=True))
    normed = normed * np.asarray(old["blocks"]["attn"]["q_norm"]["scale"][0])
    scaled = (x @ np.asarray(new["blocks"]["attn"]["q"]["kernel"][0])).reshape(-1, 4, 8)
    ratio = np.sqrt((scaled**2).mean((0, 2)) / (normed**2).mean((0, 2)))
    assert (np.abs(ratio - 1) < 0.3).all()


def test_a_warm_start_of_another_size_is_refused():
    with pytest.raises(ValueError, match="embedding"):
        warm_start_params(preset("llada-1m", **SMALL), random())


def test_a_warm_start_of_fewer_layers_takes_the_first_ones_and_the_last():
    source = preset("sdar-1m", **{**SMALL, "num_layers": 4})
    old = random(source)
    new = warm_start_params(preset("sdar-1m", **{**SMALL, "num_layers": 3}), old)
    for name in ("norm1", "norm2"):
        np.testing.assert_array_equal(
            new["blocks"][name]["scale"],
            np.asarray(old["blocks"][name]["scale"])[[0, 1, 3]],
        )

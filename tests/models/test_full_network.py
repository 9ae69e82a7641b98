"""Full-attention networks against the whole-canvas forward pass, on bits too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.models.forward import forward
from jaxdave.models.full_attention import cached_model, uncached_model
from jaxdave.models.guidance import with_guidance, with_suppressed_ids
from jaxdave.models.presets import preset

SMALL = dict(
    num_layers=3, hidden=32, inter=40, head_dim=8, rotary_dim=8, vocab_rows=50,
    vocab_size=48, mask_id=47, pad_id=46, stop_ids=(45,),
)  # fmt: skip
BEGIN, END, CAPACITY, BLOCK = 70, 102, 192, 8
MAKERS = {"cached": cached_model, "whole": uncached_model}


def model(name: str):
    """A random model of a family whose predictions vary."""
    from helpers.checkpoint_folders import random

    config = preset(name, **SMALL)
    return config, random(config, 3)


def canvas(seed: int = 0):
    """A row's canvas: a prompt, some tokens known, garbage past its end."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 48, CAPACITY).astype(np.int32))


def prefilled(net, params, tokens_T, start, window):
    at = (jnp.int32(x) for x in (BEGIN, start, END))
    return jax.jit(lambda t: net.prefill(params, t, *at, window, CAPACITY))(tokens_T)


@functools.cache
def jitted_forward(config):
    return jax.jit(forward(config))


def expected(config, params, tokens_T, start, window):
    """Logits of a window by the model over the whole canvas, nothing cached."""
    logits_TV = jitted_forward(config)(params, tokens_T[None, :END])[0]
    return np.asarray(logits_TV)[start : start + window]


def logits(net, params, hidden):
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits_RV = np.asarray(net.logits(params, flat, jnp.int32(0)))
    return logits_RV.reshape(*hidden.shape[:-1], -1)


def pairs(first, second):
    """Every pair of two and two, half of them slow: each of the four is in one."""
    return [
        pytest.param(a, b, marks=pytest.mark.slow if (i + j) % 2 else ())
        for i, a in enumerate(first)
        for j, b in enumerate(second)
    ]


NAMES = "llada-1m", "dream-1m"


@pytest.mark.parametrize(("name", "numerics"), pairs(NAMES, ("exact", "fast")))
@pytest.mark.parametrize("kind", MAKERS)
def test_prefill_gives_the_logits_of_the_whole_model(kind, name, numerics):
    config, params = model(name)
    net = MAKERS[kind](config, numerics=numerics)
    for start, window in ((BEGIN, 32), (BEGIN + BLOCK, BLOCK)):
        hidden, _ = prefilled(net, params, canvas(), start, window)
        want = expected(config, params, canvas(), start, window)
        np.testing.assert_allclose(logits(net, params, hidden), want, atol=1e-4)


@pytest.mark.parametrize(("name", "numerics"), pairs(NAMES, ("exact", "fast")))
def test_a_window_without_a_cache_is_the_whole_model(name, numerics):
    config, params = model(name)
    net = uncached_model(config, numerics=numerics)
    _, cache = prefilled(net, params, canvas(), BEGIN, 32)
    drafts = np.random.default_rng(1).integers(0, 48, (3, 32)).astype(np.int32)
    args = jnp.asarray(drafts), jnp.int32(BEGIN), jnp.int32(END), cache
    hidden, added = jax.jit(net.forward)(params, *args)
    assert added is None
    for draft, found in zip(drafts, logits(net, params, hidden), strict=True):
        tokens = canvas().at[BEGIN:END].set(draft)
        want = expected(config, params, tokens, BEGIN, 32)
        np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize(("name", "window"), pairs(NAMES, (8, 32)))
def test_a_frozen_cache_is_read_alike_by_both_attentions(name, window):
    """An unchanged window gives the whole model's logits. A changed one gives the same
    by tiles and in two parts, which share no line, and not what no cache gives."""
    config, params = model(name)
    start = BEGIN + 8
    changed = np.random.default_rng(2).integers(0, 48, window).astype(np.int32)
    same = np.asarray(canvas()[start : start + window])
    result = {}
    for numerics in ("exact", "fast"):
        net = cached_model(config, numerics=numerics)
        _, cache = prefilled(net, params, canvas(), start, window)
        drafts = jnp.asarray(np.stack([same, changed]))
        args = drafts, jnp.int32(start), jnp.int32(END), cache
        result[numerics] = logits(net, params, jax.jit(net.forward)(params, *args)[0])
        inside = slice(1, min(window, END - start))  # a first token may lie outside
        want = expected(config, params, canvas(), start, window)
        np.testing.assert_allclose(result[numerics][0, inside], want[inside], atol=1e-4)
    inside = slice(1, min(window, END - start))
    np.testing.assert_allclose(
        result["exact"][1, inside], result["fast"][1, inside], atol=1e-4
    )
    tokens = canvas().at[start : start + window].set(changed)
    fresh = expected(config, params, tokens, start, window)
    assert np.abs(result["exact"][1, inside] - fresh[inside]).max() > 1e-2


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.as_shipped
def test_capacity_and_garbage_past_the_end_do_not_change_bits(kind):
    config, params = model("llada-1m")
    net = MAKERS[kind](config)
    longer = jnp.concatenate([canvas(), canvas(1)])[:256].at[END:192].set(5)
    bits = []
    for tokens_T in (canvas(), longer):
        hidden, cache = prefilled(net, params, tokens_T, BEGIN, 32)
        drafts = jnp.stack([tokens_T[BEGIN:END]] * 2).at[:, 3].set(47)
        args = drafts, jnp.int32(BEGIN), jnp.int32(END), cache
        later, _ = jax.jit(net.forward)(params, *args)
        bits.append([np.asarray(a).view(np.uint32) for a in (hidden, later)])
    for a, b in zip(*bits, strict=True):
        np.testing.assert_array_equal(a, b)


def test_guidance_mixes_the_logits_of_two_canvases():
    config, params = model("llada-1m")
    plain = cached_model(config)
    net = with_guidance(plain, 1.5, config.mask_id)
    hidden, cache = prefilled(net, params, canvas(), BEGIN, 8)
    masked = canvas().at[:BEGIN].set(config.mask_id)
    conditional, unconditional = (
        expected(config, params, tokens, BEGIN, 8) for tokens in (canvas(), masked)
    )
    want = unconditional + 2.5 * (conditional - unconditional)
    np.testing.assert_allclose(logits(net, params, hidden), want, atol=1e-4)
    args = canvas()[None, BEGIN : BEGIN + 8], jnp.int32(BEGIN), jnp.int32(END), cache
    again, _ = jax.jit(net.forward)(params, *args)
    np.testing.assert_allclose(logits(net, params, again)[0], want, atol=1e-4)
    ids = jnp.asarray([[3, 7]] * 8)
    some = net.logits_at(params, hidden, ids)
    np.testing.assert_allclose(some, want[:, [3, 7]], atol=1e-4)


def test_ids_can_be_forbidden():
    net = cached_model(preset("llada-1m", **SMALL))
    assert with_suppressed_ids(net, (45, 46)).suppressed_ids == (45, 46, 47)

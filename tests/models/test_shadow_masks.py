# pyright: reportCallIssue=false
"""Shadows against dense attention over a canvas and its shadows, without any cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model

from jaxdave import policies
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.models.attention import dense_attention
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.full_attention import cached_model, uncached_model
from jaxdave.models.guidance import with_guidance
from jaxdave.models.param_shapes import Binder
from jaxdave.models.presets import preset
from jaxdave.models.rope import rope_table
from jaxdave.models.shadow_masks import with_shadow_masks
from jaxdave.sampling.predictions import model_queries

SMALL = dict(
    hidden=32, inter=40, heads=4, kv_heads=2, head_dim=8, rotary_dim=8, vocab_rows=50,
    vocab_size=48, mask_id=47, pad_id=46, stop_ids=(45,), max_positions=512,
)  # fmt: skip
BEGIN, END, CAPACITY, BLOCK, DRAFTS = 72, 104, 192, 8, 3
KINDS = {
    "llada none": ("llada-1m", uncached_model),
    "dream none": ("dream-1m", uncached_model),
    "llada cached": ("llada-1m", cached_model),
    "dream cached": ("dream-1m", cached_model),
    "sdar": ("sdar-1m", block_causal_model),
    "fast-dllm": ("fast-dllm-v2-7b", block_causal_model),
}
CASES = [
    ("dream none", "exact"),
    ("llada cached", "exact"),
    ("sdar", "exact"),
    ("dream cached", "fast"),
    ("sdar", "fast"),
    *(
        pytest.param(kind, "exact", marks=pytest.mark.slow)
        for kind in ("llada none", "dream cached", "fast-dllm")
    ),
]


@functools.cache
def model(kind: str, layers: int = 3):
    """A random model whose predictions vary, and the maker of its networks."""
    name, maker = KINDS[kind]
    settings = {} if maker is not block_causal_model else {"block_length": BLOCK}
    shape = SMALL if name != "llada-1m" else {**SMALL, "kv_heads": 4}
    config = preset(name, num_layers=layers, **shape, **settings)
    return config, fake_model.scaled(config, 3), with_shadow_masks(maker, BLOCK)


def canvas(seed: int = 0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 48, CAPACITY).astype(np.int32))


def prefilled(net, params, tokens_T, start, window):
    at = (jnp.int32(x) for x in (BEGIN, start, END))
    return jax.jit(lambda t: net.prefill(params, t, *at, window, 128))(tokens_T)


def forwarded(net, params, tokens_KL, start, cache):
    args = jnp.asarray(tokens_KL), jnp.int32(start), jnp.int32(END), cache
    return jax.jit(net.forward)(params, *args)[0]


def logits_of_halves(net, params, hidden):
    """Logits of both halves, [2, ..., L, V]."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    halves = [net.logits(params, h, jnp.int32(0)) for h in (flat, net.shadow(flat))]
    return np.asarray(halves).reshape(2, *hidden.shape[:-1], -1)


def expected(config, params, tokens_T, start, window):
    """Both halves' logits by the mask of the whole, written out pair by pair."""
    causal = config.attention == "block_causal"
    end = start + window if causal else END
    shift = int(config.logits_shift != "none")
    predicted = np.arange(start, start + window)
    position = np.concatenate([np.arange(end), predicted - shift])

    def may(q, k):
        return not causal or k // BLOCK <= q // BLOCK

    mask = np.zeros((len(position), len(position)), bool)
    for a, q in enumerate(position):
        for b, k in enumerate(position):
            if b < end:
                mask[a, b] = may(q, k) and (a < end or k != predicted[a - end])
            elif a >= end:
                same = (a - end) // BLOCK == (b - end) // BLOCK
                mask[a, b] = same and may(q, k)
    tokens = jnp.concatenate([tokens_T[:end], jnp.full(window, 47, jnp.int32)])
    cos, sin = (jnp.asarray(t)[position] for t in rope_table(config, CAPACITY))
    bound = Binder(config)(params)

    def attend(_, q, k, v):
        return dense_attention(q, k, v, jnp.asarray(mask)[None])

    hidden, _ = bound.hidden(tokens[None], (cos, sin), attend, None)
    logits = np.asarray(bound.logits(hidden))[0]
    return np.stack([logits[predicted - shift], logits[end:]])


@pytest.mark.parametrize(("kind", "numerics"), CASES)
def test_both_calls_agree_with_dense_attention(kind, numerics):
    config, params, make = model(kind)
    net = make(config, numerics=numerics)
    start, window = BEGIN + BLOCK, 16
    hidden, cache = prefilled(net, params, canvas(), start, window)
    want = expected(config, params, canvas(), start, window)
    np.testing.assert_allclose(logits_of_halves(net, params, hidden), want, atol=1e-4)
    tokens_L = np.asarray(canvas()[start : start + window])
    drafts = np.stack([tokens_L, (tokens_L + 1) % 47])
    logits = logits_of_halves(net, params, forwarded(net, params, drafts, start, cache))
    # A first token's own predictor may lie outside the window, its shadow does not.
    np.testing.assert_allclose(logits[0, 0, 1:], want[0, 1:], atol=1e-4)
    np.testing.assert_allclose(logits[1, 0], want[1], atol=1e-4)
    if "cached" not in kind:
        tokens_T = canvas().at[start : start + window].set(drafts[1])
        want = expected(config, params, tokens_T, start, window)
        np.testing.assert_allclose(logits[0, 1, 1:], want[0, 1:], atol=1e-4)
        np.testing.assert_allclose(logits[1, 1], want[1], atol=1e-4)


@pytest.mark.parametrize("kind", ["llada cached", "dream cached"])
def test_a_frozen_cache_is_read_alike_by_both_attentions(kind):
    config, params, make = model(kind)
    logits, start, window = [], BEGIN + BLOCK, BLOCK
    changed = np.random.default_rng(2).integers(0, 48, (DRAFTS, window), np.int32)
    for numerics in ("exact", "fast"):
        net = make(config, numerics=numerics)
        _, cache = prefilled(net, params, canvas(), start, window)
        logits.append(
            logits_of_halves(net, params, forwarded(net, params, changed, start, cache))
        )
    np.testing.assert_allclose(logits[0][:, :, 1:], logits[1][:, :, 1:], atol=1e-4)


@pytest.mark.parametrize(("kind", "numerics"), CASES)
def test_a_shadow_does_not_look_at_its_own_token(kind, numerics):
    """In one layer, to the bit; in more, tokens that saw it pass on what they saw."""
    config, params, make = model(kind, 1)
    net = make(config, numerics=numerics)
    tokens_L = np.asarray(canvas()[BEGIN:END])
    _, cache = prefilled(net, params, canvas(), BEGIN, 32)
    place = np.arange(32)
    drafts = np.stack([tokens_L] + [np.where(place == i, 11, tokens_L) for i in place])
    hidden = forwarded(net, params, drafts.astype(np.int32), BEGIN, cache)
    shadow = np.asarray(hidden)[..., config.hidden :]
    moved = 0
    for i in place:
        if numerics == "exact":
            assert shadow[1 + i, i].tobytes() == shadow[0, i].tobytes()
        np.testing.assert_allclose(shadow[1 + i, i], shadow[0, i], atol=1e-5)
        moved += (np.abs(shadow[1 + i] - shadow[0]) > 1e-3).any()
    assert moved > 0


def test_odds_are_those_against_all_others():
    """Tempered, in chunks, without the ids that may not be predicted."""
    decoder = fake_model.build(
        policies.wino(), 1, 8, 16, temperature=0.5, suppressed_ids=(3,)
    )
    spec, net = decoder.spec, fake_model.weights(4, peak=1.0)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.integers(0, 1 << 32, (64, 6), np.uint64), jnp.uint32)
    every = jnp.tile(jnp.arange(fake_model.ROWS, dtype=jnp.int32)[None], (64, 1))
    z = spec.model.logits_at(net, hidden[:, jnp.array([3, 4, 5, 0, 1, 2])], every)
    z = 2 * np.asarray(z, np.float64)
    z[:, [3, fake_model.MASK, *range(fake_model.SIZE, fake_model.ROWS)]] = -np.inf
    ids = rng.integers(0, fake_model.SIZE, 64).astype(np.int32)
    got = np.asarray(model_queries(spec, net, hidden).shadow_at(jnp.asarray(ids)))
    never = np.isin(ids, (3, fake_model.MASK))
    assert never.any() and (got[never] < -1e29).all()
    for i in np.flatnonzero(~never):
        others = np.delete(z[i], ids[i])
        weigh = np.log(np.sum(np.exp(others - others.max()))) + others.max()
        assert abs(got[i] - (z[i, ids[i]] - weigh)) < 1e-4 * max(1, abs(got[i]))
    assert np.abs(got[~never]).max() > 60


def test_guidance_mixes_what_the_shadows_of_two_canvases_say():
    config, params, make = model("llada cached")
    net = with_guidance(make(config), 1.5, config.mask_id)
    hidden, cache = prefilled(net, params, canvas(), BEGIN, BLOCK)
    masked = canvas().at[:BEGIN].set(config.mask_id)
    conditional, unconditional = (
        expected(config, params, tokens, BEGIN, BLOCK) for tokens in (canvas(), masked)
    )
    want = unconditional + 2.5 * (conditional - unconditional)
    np.testing.assert_allclose(logits_of_halves(net, params, hidden), want, atol=2e-4)
    tokens_KL = canvas()[None, BEGIN : BEGIN + BLOCK]
    again = forwarded(net, params, tokens_KL, BEGIN, cache)
    np.testing.assert_allclose(
        logits_of_halves(net, params, again)[:, 0], want, atol=2e-4
    )


@pytest.mark.parametrize(
    "kind",
    [
        *("llada none", "fast-dllm"),
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("llada dual", "dream dual", "dream prefix", "sdar")
        ),
    ],
)
def test_drafts_keep_the_text_of_real_networks(kind):
    name, _, cache = kind.partition(" ")
    family = kind if kind in KINDS else f"{name} cached"
    config, params, _ = model(family, 2)
    settings = {"cache": cache} if cache else {}
    decoder = decoders.freedave(
        config, policies.wino(0.05, 0.5), draft_steps=4, max_new_tokens=16,
        block_length=BLOCK, **settings,
    )  # fmt: skip
    prompts = fake_model.prompts_of([9, 16], 1, 40)
    plain = generate(fake_model.capped(decoder, 1), params, prompts)
    quick = generate(decoder, params, prompts)
    assert fake_model.texts(quick) == fake_model.texts(plain)
    for a, b in zip(quick.completions, plain.completions, strict=True):
        assert a.nfe.total <= b.nfe.total == b.steps <= 16

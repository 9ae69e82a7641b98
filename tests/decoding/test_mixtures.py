"""Law 1 over mixtures of experts: drafts change no text, near ties of routers included.

Near ties are made: the columns of a router are one column and noise of 1e-7, so that
which experts are chosen hangs on the last bits of a sum.
"""

import dataclasses

import jax
import numpy as np
import pytest
from helpers.fake_model import capped, texts
from helpers.plain_experts import tiny

from jaxdave import policies
from jaxdave.engine import decoders, generation
from jaxdave.engine.bitwise_check import slot_probe
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.generation import generate
from jaxdave.models import transformer
from jaxdave.numerics.quantization import quantize_params
from jaxdave.numerics.weight_layout import to_device_layout

PROMPTS = [[1, 2, 3], [4] * 7, [5, 6]]
FULL = {"attention": "full", "block_length": 8, "family": "llada-moe"}
CONFIGS = {
    "qwen": tiny("qwen"),
    "llada2": tiny("llada2", rotary_dim=4, family="llada2"),
    "llada": tiny("llada", **FULL),
}


def random_params(config, noise: float | None):
    """Weights whose predictions vary; routers with columns that differ by noise."""
    params = transformer.init(config, 0)
    params = jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, params)
    if noise is not None:
        router = params["blocks"]["mlp"]["router"]
        drawn = noise * np.random.default_rng(0).normal(size=router["kernel"].shape)
        router["kernel"] = router["kernel"][..., :1] + drawn.astype(np.float32)
    return to_device_layout(params, config)


CASES = [
    pytest.param("qwen", 8, 0.7, 3),
    pytest.param("llada2", 2, 0.0, 1),
    *(
        pytest.param(name, drafts, temperature, rows, marks=pytest.mark.slow)
        for name in CONFIGS
        for drafts in (2, 8)
        for temperature in (0.0, 0.7)
        for rows in (1, 3)
    ),
]


@pytest.mark.parametrize(("name", "drafts", "temperature", "rows"), CASES)
def test_drafts_change_no_text(name, drafts, temperature, rows):
    config, prompts = CONFIGS[name], PROMPTS[:rows]
    decoder = decoders.freedave(
        config, draft_steps=drafts, temperature=temperature, max_new_tokens=16
    )
    assert decoder.numerics == "exact"
    for noise in (None, 1e-7):
        params = random_params(config, noise)
        plain = generate(capped(decoder, 1), params, prompts, seed=1)
        quick = generate(decoder, params, prompts, seed=1)
        assert texts(quick) == texts(plain)
        pairs = list(zip(quick.completions, plain.completions, strict=True))
        assert all(a.nfe.total <= b.nfe.total for a, b in pairs)
        # Drafts of a single answer drawn from random weights may all be refused.
        saved = sum(b.nfe.total - a.nfe.total for a, b in pairs)
        assert noise or rows < len(PROMPTS) or saved > 0


def test_drafts_change_no_text_of_eight_bit_experts():
    config = CONFIGS["llada2"]
    params = quantize_params(transformer.init(config, 0))
    assert params["blocks"]["mlp"]["experts"]["up"]["kernel"].values.dtype == np.int8
    params = to_device_layout(params, config)
    decoder = decoders.freedave(config, draft_steps=4, max_new_tokens=8)
    plain = generate(capped(decoder, 1), params, PROMPTS, seed=1)
    assert texts(generate(decoder, params, PROMPTS, seed=1)) == texts(plain)


CAUSAL_POLICIES = {
    "sdar": policies.low_confidence_dynamic(4, 0.85),
    "llada2": policies.low_confidence_dynamic(32, 0.95),
    "eager": policies.low_confidence_dynamic(4, 0.2),
    "threshold": policies.threshold(0.3),
    "llada2.1": policies.joint_threshold(0.3, 0.1),
}
FULL_POLICIES = {
    "rnd1": policies.entropy(256),
    "entropy": policies.entropy(6),
    "static": policies.static(1),
    "low_confidence": policies.low_confidence(4),
    "threshold": policies.threshold(0.3),
}
RND1 = tiny("qwen", **{**FULL, "family": "rnd1", "logits_shift": "full"})
USED = [
    pytest.param(CONFIGS["llada2"], CAUSAL_POLICIES["eager"], None, 0.0, id="quick"),
    *(
        pytest.param(
            CONFIGS[name],
            policy,
            None,
            temperature,
            id=f"{name}-{title}-{temperature}",
            marks=pytest.mark.slow,
        )
        for name in ("qwen", "llada2")
        for title, policy in CAUSAL_POLICIES.items()
        for temperature in (0.0, 1.0)
    ),
    *(
        pytest.param(
            config,
            policy,
            cache,
            temperature,
            id=f"{config.family}-{title}-{cache}-{temperature}",
            marks=pytest.mark.slow,
        )
        for config in (RND1, CONFIGS["llada"])
        for title, policy in FULL_POLICIES.items()
        for cache, temperature in (("none", 0.01), ("none", 0.0), ("dual", 0.7))
    ),
]


@pytest.mark.parametrize(("config", "policy", "cache", "temperature"), USED)
def test_drafts_change_no_text_of_the_policies_in_use(
    config, policy, cache, temperature
):
    """Every policy that the families are used with; a block is the answer for RND1."""
    is_rnd1 = config.family == "rnd1" and cache == "none"
    decoder = decoders.freedave(
        config,
        policy,
        draft_steps=4,
        cache=cache,
        temperature=temperature,
        block_length=16 if is_rnd1 else None,
        max_new_tokens=16,
    )
    params = random_params(config, None)
    plain = generate(capped(decoder, 1), params, PROMPTS, seed=1)
    quick = generate(decoder, params, PROMPTS, seed=1)
    assert texts(quick) == texts(plain)
    for ours, theirs in zip(quick.completions, plain.completions, strict=True):
        assert ours.nfe.total <= theirs.nfe.total


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_draft_s_slot_does_not_show(name):
    config = CONFIGS[name]
    decoder = decoders.freedave(config, draft_steps=4, max_new_tokens=8)
    assert slot_probe(decoder.spec, random_params(config, 1e-7)).holds


GUARDED = [
    pytest.param("qwen", 0.0),
    *(
        pytest.param(name, temperature, marks=pytest.mark.slow)
        for name in CONFIGS
        for temperature in (0.0, 0.7)
    ),
]
MANY = [np.random.default_rng(n).integers(1, 30, 2 + n % 7).tolist() for n in range(16)]


def guarded(name: str, temperature: float):
    decoder = decoders.freedave(
        CONFIGS[name],
        draft_steps=4,
        temperature=temperature,
        max_new_tokens=16,
        numerics="guarded",
    )
    assert decoder.numerics == "guarded"
    return decoder


@pytest.mark.parametrize(("name", "temperature"), GUARDED)
def test_near_ties_are_decided_in_the_trusted_shape(name, temperature):
    decoder = guarded(name, temperature)
    for noise in (None, 1e-6):
        params = random_params(CONFIGS[name], noise)
        plain = generate(capped(decoder, 1), params, MANY, seed=1)
        quick = generate(decoder, params, MANY, seed=1)
        alone = [generate(decoder, params, [one], seed=1) for one in MANY[:2]]
        assert texts(quick) == texts(plain)
        # Requests have numbers of their own, which noise is drawn by.
        assert temperature or [texts(one)[0] for one in alone] == texts(quick)[:2]
        rechecks = sum(answer.nfe.recheck for answer in quick.completions)
        calls = sum(answer.nfe.total for answer in quick.completions)
        assert rechecks > calls / 3 if noise else rechecks < calls / 3


def test_without_margins_near_ties_change_texts(monkeypatch):
    """What the measured error of predictions alone would make of them."""
    tuned = generation.tuned_params

    def blind(*args):
        runtime, seconds = tuned(*args)
        never = runtime.error_bound._replace(router=np.float32(-1))
        return runtime._replace(error_bound=never), seconds

    monkeypatch.setattr(generation, "tuned_params", blind)
    decoder, params = guarded("qwen", 0.0), random_params(CONFIGS["qwen"], 1e-7)
    plain = generate(capped(decoder, 1), params, MANY, seed=1)
    quick = generate(decoder, params, MANY, seed=1)
    assert texts(quick) != texts(plain)


def test_numerics_of_mixtures():
    assert decoders.freedave(CONFIGS["qwen"]).numerics == "exact"
    # As for dense models, what cannot tell how certain it is falls back.
    unsure = decoders.freedave(CONFIGS["qwen"], policy="klass", numerics="guarded")
    assert unsure.numerics == "exact"
    assert decoders.freedave(CONFIGS["qwen"], numerics="fast").numerics == "fast"
    dense = dataclasses.replace(CONFIGS["qwen"], experts=None, family="sdar")
    assert decoders.freedave(dense).numerics == "guarded"
    assert DecodeConfig().numerics is None

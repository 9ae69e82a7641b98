"""Absurd parameters of policies are refused in one line, or decode as any others."""

import math

import jax
import pytest
from helpers.fake_model import build, prompts_of, weights

from jaxdave import policies
from jaxdave.decoding import loop
from jaxdave.engine.batching import pack_prompts
from jaxdave.engine.decoders import Decoder
from jaxdave.policies.registry import listing

NUMBERS = {
    int: (-1, 0, 10**6, 2**31, 999_999_999_999, 10**30),
    float: (-1.0, 1e-300, 1e-38, 1e38, 1e300, math.inf, math.nan),
}
CASES = [
    (entry.name, key, value)
    for entry in listing()
    for key, default in entry.parameters.items()
    for value in NUMBERS.get(type(default), ())
]


def test_there_are_cases():
    assert len(CASES) > 200


@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
def test_absurd_numbers_are_refused_or_work(name):
    """Of the numbers that a parameter takes the largest is traced; below, all."""
    for decoders in accepted(name).values():
        trace(decoders[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({name for name, _, _ in CASES}))
def test_absurd_numbers_that_are_taken_all_work(name):
    for decoders in accepted(name).values():
        for decoder in decoders:
            trace(decoder)


def accepted(name: str) -> dict[str, list[Decoder]]:
    """Decoders of the numbers that each parameter takes; others are refused well."""
    found = {}
    for own, key, value in CASES:
        if own != name:
            continue
        try:
            policy = policies.parse(f"{name}:{key}={value}")
        except ValueError as error:
            assert key in str(error) and "\n" not in str(error)
            continue
        assert math.isfinite(value)
        try:
            decoder = build(policy, 2, 4, 8, lossy=True)
        except ValueError as error:
            assert key in str(error) and " is more than " in str(error)
            continue
        found.setdefault(key, []).append(decoder)
    return found


def trace(decoder: Decoder) -> None:
    """Find what does not fit an array; the law tests decode."""
    prompts, length = pack_prompts(decoder, prompts_of([3], 1))
    spec = decoder.spec
    runtime = spec.runtime(2, 8)

    def prefill(params, runtime, prompts):
        return loop.prefill(spec, params, runtime, prompts, length)

    state = jax.eval_shape(prefill, weights(0), runtime, prompts)
    jax.eval_shape(lambda *a: loop.step(spec, *a), weights(0), runtime, state)


def test_more_tokens_a_step_than_a_block_holds():
    for given in (5, 99):
        with pytest.raises(ValueError, match=f"tokens_per_step={given} is more than"):
            build(None, 2, 4, 8, tokens_per_step=given)


PAST_A_BLOCK = {
    "static": "tokens_per_step",
    "left_to_right": "tokens_per_step",
    "saber": "n",
    "local_leap": "radius",
    "deferred": "window",
    "dilated": "base",
    "multi_block": "length",
    "lopa": "branches",
    "threshold": "small_blocks",
}


@pytest.mark.parametrize("name", PAST_A_BLOCK)
def test_more_positions_than_a_block_holds_by_name(name):
    key = PAST_A_BLOCK[name]
    text = f"{name}:{key}=99"
    for policy in (text, policies.parse(text)):
        with pytest.raises(ValueError, match=f"^{key}=99 is more than a block of 4 ho"):
            build(policy, 2, 4, 8, lossy=True)
    # What a block does hold, and the published defaults, stand.
    for whole in (f"{name}:{key}=4", name):
        build(whole, 2, 4, 8, lossy=True)


def test_what_an_answer_or_a_small_block_does_not_hold():
    with pytest.raises(ValueError, match="answer_length=12 is more than an answer of"):
        build("prophet:answer_start=7", 2, 4, 8)
    build("prophet:answer_start=3", 2, 4, 8)
    with pytest.raises(ValueError, match="tokens_per_step=3 is more than a block of 2"):
        policies.parse("static:tokens_per_step=3,small_blocks=2")

"""Absurd parameters of policies are refused in one line, or decode as any others."""

import math

import jax
import pytest
from helpers.fake_model import build, prompts_of, weights

from jaxdave import policies
from jaxdave.decoding import loop
from jaxdave.engine.batching import pack_prompts
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
    for own, key, value in CASES:
        if own != name:
            continue
        try:
            policy = policies.parse(f"{name}:{key}={value}")
        except ValueError as error:
            assert key in str(error) and "\n" not in str(error)
            continue
        assert math.isfinite(value)
        decoder = build(policy, 2, 4, 8, lossy=True)
        prompts, length = pack_prompts(decoder, prompts_of([3], 1))
        spec = decoder.spec
        runtime = spec.runtime(2, 8)

        def prefill(params, runtime, prompts, spec=spec, length=length):
            return loop.prefill(spec, params, runtime, prompts, length)

        # Tracing finds what does not fit an array; the law tests decode.
        state = jax.eval_shape(prefill, weights(0), runtime, prompts)
        jax.eval_shape(
            lambda *a, spec=spec: loop.step(spec, *a), weights(0), runtime, state
        )


def test_more_tokens_a_step_than_a_block_holds():
    for given in (5, 99):
        with pytest.raises(ValueError, match=f"tokens_per_step={given} is more than"):
            build(None, 2, 4, 8, tokens_per_step=given)

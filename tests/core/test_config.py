"""Configs with absurd values are refused; temperatures near 0 are greedy decoding."""

import dataclasses
import math

import numpy as np
import pytest
from helpers import fake_model
from helpers.fake_model import build, prompts_of, weights

from jaxdave import policies
from jaxdave.core.config import SamplingConfig, logit_scale
from jaxdave.engine.generation import generate


@pytest.mark.parametrize(
    "change",
    [
        {"rms_eps": math.nan},
        {"rms_eps": -1e-6},
        {"rms_eps": math.inf},
        {"rope_theta": -1e4},
        {"rope_theta": 0.0},
        {"rope_theta": math.nan},
        {"rope_theta": math.inf},
        {"num_layers": 10**9},
        {"hidden": 0},
        {"vocab_rows": 10**12},
        {"max_positions": 10**10},
    ],
)
def test_absurd_values_are_refused_in_one_line(change):
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=name) as caught:
        dataclasses.replace(fake_model.TINY, **change)
    assert str(value) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [math.inf, math.nan, -1.0])
def test_temperatures_that_mean_nothing(temperature):
    with pytest.raises(ValueError, match="temperature="):
        SamplingConfig(temperature=temperature)


@pytest.mark.parametrize(
    "temperature",
    [
        pytest.param(1e-38, marks=pytest.mark.slow),
        pytest.param(1e-45, marks=pytest.mark.slow),
        5e-324,
    ],
)
def test_a_tiny_temperature_is_greedy(temperature):
    prompts, net = prompts_of([3, 6], 2), weights(2)
    greedy = build(policies.left_to_right(1), 4, 4, 12)
    cold = build(policies.left_to_right(1), 4, 4, 12, temperature=temperature)
    want, got = (generate(d, net, prompts, seed=5) for d in (greedy, cold))
    assert [a.token_ids for a in got.completions] == [
        a.token_ids for a in want.completions
    ]
    # Logits of a hundred stay far inside float32, and above what a masked id has.
    assert np.float32(-100 * logit_scale(SamplingConfig(temperature))) > -1e30

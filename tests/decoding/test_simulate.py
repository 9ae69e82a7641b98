"""Drafts of policies that say their order, against the policy run step by step."""

import dataclasses
import functools
from typing import Any

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.core.draft_api import DraftState
from jaxdave.core.prediction import Prediction
from jaxdave.core.state import PolicyState, PromptBatch
from jaxdave.decoding.policy_step import states_to_evaluate
from jaxdave.decoding.prefill_rows import empty_row
from jaxdave.decoding.propose import propose_all
from jaxdave.decoding.simulate import simulate_step, simulate_steps
from jaxdave.engine import decoders
from jaxdave.engine.decode_config import DecodeConfig

LENGTH, DRAFTS, BEGIN = 4, 8, 6
NUM_STEPS = 12
ORDERED = [
    "static",
    "static:tokens_per_step=2",
    "static:tokens_per_step=3",
    "left_to_right",
    "left_to_right:tokens_per_step=3",
    "threshold:threshold=0.5",
    "threshold:threshold=0",
    "local_leap:threshold=0.7,relaxed_threshold=0.5,radius=1",
    "leftmost_run:threshold=0.5",
    "dilated",
    "dilated:base=3",
    "entropy_threshold:threshold=0.5",
    "low_confidence:steps=3",
    "low_confidence:steps=2",
    "low_confidence_static:steps=3",
    "low_confidence_dynamic:steps=3,threshold=0.6",
    "demote",
    "certain",
]
SIMULATED = [
    "first_hitting",
    "factor",
    "hierarchical",
    "deferred",
    "dilated:small_blocks=2",
    "multi_block",
    "eb_sampler",
    "leftmost_run:tokens_per_step=2",
    "static:small_blocks=2",
    "low_confidence:small_blocks=2",
    "random",
]


def policy_of(name: str):
    if name == "demote":
        return policies.demote(policies.threshold(0.5), (fake_model.STOP, 3))
    if name == "certain":
        return policies.certain(policies.static(2))
    return policies.parse(name)


@functools.cache
def spec_of(name: str):
    config = DecodeConfig(
        policy=policy_of(name),
        draft_steps=DRAFTS,
        block_length=LENGTH,
        max_new_tokens=40,
        numerics="exact",
    )
    return decoders.make_decoder(
        fake_model.CONFIG, config, network=fake_model.network(LENGTH)
    ).spec


@functools.cache
def both_ways(name: str):
    """(step by step, at once), as one compiled function of a window."""
    spec = spec_of(name)
    policy = spec.policy._replace(commit_order=None)
    plain = dataclasses.replace(spec, policy=policy)
    assert spec.policy.commit_order is not None

    def run(tokens_T, end, pred, steps_before):
        capacity = tokens_T.shape[0]
        prompt = PromptBatch(
            tokens_BT=tokens_T,
            begin_B=jnp.int32(BEGIN),
            end_B=end,
            draft_text_BT=jnp.full((capacity,), -1, jnp.int32),
            seed_B=jnp.uint32(3),
            request_B=jnp.uint32(4),
        )
        size = spec.layout.window_length
        row = empty_row(spec, prompt, jnp.zeros((size, 2)))
        row = dataclasses.replace(row, pred=jax.tree.map(lambda a: a[None], pred))
        state = PolicyState(spec.layout.window_tokens(row), row.memory, row.n)
        # A policy with a memory may be in the middle of a block.
        state = jax.lax.fori_loop(
            0,
            steps_before,
            lambda _, state: (
                simulate_step(plain, None, row, state, jnp.int32(0)).policy_state
            ),
            state,
        )
        tokens_NL = states_to_evaluate(spec, row, state)
        first = DraftState(state, tokens_NL, jnp.bool_(True))
        return [
            simulate_steps(one, None, row, first, NUM_STEPS) for one in (plain, spec)
        ]

    return jax.jit(run)


@st.composite
def windows(draw, size: int):
    """A window's tokens, where its row ends, and a prediction with many ties."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from((0.0, 0.3, 0.8)))
    tokens_T = np.full(3 * size, fake_model.MASK, np.int32)
    is_known_T = rng.random(3 * size) < share
    tokens_T[is_known_T] = rng.integers(0, 10, is_known_T.sum())
    tokens_T[:BEGIN] = rng.integers(0, 10, BEGIN)
    end = draw(st.sampled_from((12, 20, 40)))
    scores = np.array(draw(st.sampled_from((
        (0.0, 1.0), (-3.0, -1.0, 0.5, 0.6, 1.0, 4.0), (0.0, np.nan, np.inf, -np.inf),
    ))), np.float32)  # fmt: skip
    values = scores[rng.integers(0, len(scores), (4, size))]
    if draw(st.booleans()):
        values[0] += rng.normal(size=size).astype(np.float32)
    lowest = draw(st.sampled_from((0, 0, -1)))
    highest = draw(st.sampled_from((10, fake_model.STOP + 1)))
    token_L = rng.integers(lowest, highest, size).astype(np.int32)
    if draw(st.booleans()):
        token_L[rng.integers(0, size) :] = -1
    pred = Prediction._make([token_L, *values, np.zeros(size, np.int32), values[0]])
    return tokens_T, np.int32(end), pred


@pytest.mark.parametrize("name", ORDERED)
def test_an_order_is_that_of_the_steps(name):
    run = both_ways(name)
    lengths = set()

    @hypothesis.seed(0)
    @settings(max_examples=100)
    @given(windows(spec_of(name).layout.window_length), st.integers(0, 3))
    def law(window, steps_before):
        looped, at_once = run(*window, np.int32(steps_before))
        chex.assert_trees_all_equal(looped, at_once)
        lengths.add(int(np.sum(looped[1])))

    law()
    # The law says little of chains that end at once.
    assert max(lengths) > 2 and len(lengths) > 2


@pytest.mark.parametrize("name", SIMULATED)
def test_an_order_that_is_not_known_is_not_said(name):
    """Wrappers and parameters that make a policy's order depend on its steps."""
    assert policies.parse(name).commit_order is None


def test_a_decode_at_a_temperature_is_simulated():
    """Its steps see predictions of their own, so that no order holds for all."""
    spec = spec_of("static")
    hot = dataclasses.replace(
        spec, sampling=dataclasses.replace(spec.sampling, temperature=1.0)
    )
    asked = []

    def commit_order(view, memory):
        asked.append(view)
        return jnp.zeros_like(view.tokens_W)

    policy = spec.policy._replace(commit_order=commit_order)
    for one, times in ((spec, 1), (hot, 0)):
        asked.clear()
        drafts_of(dataclasses.replace(one, policy=policy))
        assert len(asked) == times


def drafts_of(spec):
    """Trace the drafts of a row."""
    size = spec.layout.window_length
    number: Any = jax.ShapeDtypeStruct((), jnp.int32)
    key: Any = jax.ShapeDtypeStruct((), jnp.uint32)
    tokens: Any = jax.ShapeDtypeStruct((2 * size,), jnp.int32)
    prompt = PromptBatch(
        tokens_BT=tokens,
        begin_B=number,
        end_B=number,
        draft_text_BT=tokens,
        seed_B=key,
        request_B=key,
    )

    def trace(prompt):
        return propose_all(spec, None, empty_row(spec, prompt, jnp.zeros((size, 2))))

    return jax.eval_shape(trace, prompt)

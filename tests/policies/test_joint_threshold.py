"""LLaDA2.1's rule: 10,000 random states against the rule in plain Python."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference_policies as rules
from helpers import replays

from jaxdave import policies
from jaxdave.core.prediction import Prediction

STATES, WIDE, VOCAB = 10_000, 8, 5
PARAMETERS = [(0.5, 0.0, 1), (0.7, 0.5, 1), (0.6, 0.3, 3)]


@functools.cache
def states(seed: int):
    """Tokens, predicted tokens, log-odds and prompt lengths of random blocks.

    Half of the log-odds lie on the rules' thresholds or on each other.
    """
    rng = np.random.default_rng(seed)
    shape = STATES, WIDE
    is_masked = rng.random(shape) < rng.choice([0.0, 0.3, 0.8], (STATES, 1))
    tokens = np.where(is_masked, replays.MASK, rng.integers(0, VOCAB, shape))
    levels = np.array([-2.0, -0.5, 0.0, 0.5, 2.0, 40.0], np.float32)
    odds = rng.choice(levels, shape) + np.where(
        rng.random(shape) < 0.5, 0.0, rng.normal(0, 1, shape)
    )
    prompt = np.where(rng.random(STATES) < 0.5, 0, rng.integers(0, WIDE, STATES))
    tokens = np.where(np.arange(WIDE) < prompt[:, None], replays.PROMPT, tokens)
    return (
        tokens.astype(np.int32),
        rng.integers(0, VOCAB, shape).astype(np.int32),
        odds.astype(np.float32),
        prompt.astype(np.int32),
    )


def stepped(policy, tokens, predicted, odds, prompt):
    def step(tokens_W, token_W, score_W, prompt):
        pred = Prediction(
            token=token_W,
            score=score_W,
            gap=score_W,
            margin=score_W,
            entropy=score_W,
            runner_up=-token_W,
            lead=score_W,
        )
        view = replays.view_of(
            pred,
            jnp.zeros((WIDE, VOCAB)),
            tokens_W,
            start=-prompt,
            max_new_tokens=jnp.int32(WIDE) - prompt,
            n=jnp.int32(0),
            key=replays.key_of(0, 0),
        )
        return policy.step(view, ())[0]

    return np.asarray(jax.jit(jax.vmap(step))(tokens, predicted, odds, prompt))


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_the_rule_in_plain_python_gives_every_state(parameters):
    tau, editing, least = parameters
    tokens, predicted, odds, prompt = states(7)
    policy = policies.joint_threshold(tau, editing, num_to_transfer=least)
    got = stepped(policy, tokens, predicted, odds, prompt)
    rule = rules.joint_threshold(tau, editing, least)
    edited = 0
    for case in range(STATES):
        block = tokens[case].tolist()
        inside = range(int(prompt[case]), WIDE)
        view = SimpleNamespace(
            token=predicted[case].tolist(),
            odds=odds[case].tolist(),
            open=[i for i in inside if block[i] == replays.MASK],
            decoded=[i for i in inside if block[i] != replays.MASK],
            block=list(block),
        )
        for i, token in rule(view, {}).items():
            edited += block[i] != replays.MASK
            block[i] = token
        assert got[case].tolist() == block, case
    assert edited > STATES


def test_the_modes_are_the_rule_at_their_thresholds():
    tokens, predicted, odds, prompt = states(3)
    for mode, parameters in (
        (policies.llada2_s(), (0.5, 0.0)),
        (policies.llada2_q(), (0.7, 0.5)),
    ):
        rule = policies.joint_threshold(*parameters)
        assert mode.max_post_steps == rule.max_post_steps == 16
        assert mode.step is rule.step and mode.is_certain is rule.is_certain
    assert policies.parse("llada2_s") is policies.llada2_s()

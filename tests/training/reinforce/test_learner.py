"""The learner: on policy at its first update, uphill, the same however it is cut."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdave
from jaxdave.models import transformer
from jaxdave.models.presets import preset
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.training.reinforce.answer_batch import num_steps, take_rows
from jaxdave.training.reinforce.estimates import EstimateConfig
from jaxdave.training.reinforce.learner import Learner, step_key
from jaxdave.training.reinforce.learner_config import ReinforceConfig
from jaxdave.training.reinforce.policy_loss import PolicyLossConfig
from jaxdave.training.reinforce.rollouts import with_params
from jaxdave.training.trainer import LoopConfig, fit
from jaxdave.training.update import init_state

pytestmark = pytest.mark.usefixtures("loose_promotion")

PROMPTS = ["Tom has 2 pens. How many?", "Mia has 7 pens. She buys 4 more. How many?"]
DECODE = jaxdave.DecodeConfig(
    draft_steps=2,
    max_new_tokens=8,
    temperature=1.0,
    record_steps=True,
    numerics="exact",
)
LOSS = PolicyLossConfig(kl_weight=0.0, reduction="sequence")
CONFIG = ReinforceConfig(
    group_size=4, prompts_per_batch=2, rows_per_call=4, loss=LOSS, advantages="none"
)
PACKAGED = jaxdave.load("sdar-1m")


@functools.cache
def small_model():
    """A random network of one layer behind the demo's tokenizer."""
    config = preset(
        "sdar-1m",
        num_layers=1,
        hidden=32,
        inter=64,
        heads=2,
        kv_heads=1,
        head_dim=16,
        rotary_dim=16,
    )
    params = transformer.init(config, seed=0)
    return dataclasses.replace(PACKAGED, config=config, params=params, tables={})


def low_tokens(_: int, answer) -> float:
    """The share of the first tokens that are of the lower half of the vocabulary."""
    return float(np.mean(np.array(answer.trajectory.token_ids) < 388))


def small_learner(config=CONFIG, reward=low_tokens, rate=0.02, **options):
    """A learner of the small model, and the state before its first step."""
    sampler = jaxdave.Sampler(small_model(), DECODE)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))
    learner = Learner(
        sampler, lambda _: (PROMPTS, reward), optimiser, config, **options
    )
    return learner, init_state(small_model().params, optimiser, seed=3, ema=False)


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_same(first, second):
    for one, other in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_on_policy_the_ratio_is_one():
    """What the demo model recorded is what is computed: within float32's rounding."""
    temperature = 4.0
    decode = dataclasses.replace(DECODE, temperature=temperature, max_new_tokens=18)
    sampler = jaxdave.Sampler(PACKAGED, decode)
    learner = Learner(sampler, lambda _: (PROMPTS, low_tokens), optax.sgd(0.0), CONFIG)
    params = jax.tree.map(jnp.asarray, to_stacked(PACKAGED.params))
    state = init_state(params, optax.sgd(0.0), seed=0, ema=False)
    rollouts = sum(learner.rollouts(state.params, 0), [])
    answers = learner.pack(rollouts, step_key(state, 0))
    states = num_steps(answers, PACKAGED.config)
    got = learner.values(state.params, answers, states, recorded=False)
    counted = answers.is_counted_BR
    np.testing.assert_allclose(
        got[counted], answers.recorded_BR[counted], rtol=1e-3, atol=1e-3
    )
    # Not all is certain, so that wrong states would be seen.
    assert np.min(got) < -0.5 and np.all(got[~counted] == 0)
    _, metrics = learner(state)
    assert metrics["clipped"] == 0 and abs(metrics["loss"]) < 1e-3
    assert metrics["grad_norm"] > 1e-3


def test_the_expected_reward_rises():
    """Fixed before: 64 answers to each prompt, of seeds that are not trained on.

    After four steps the mean reward of the answers is higher by more than four standard
    errors of the difference; it starts near one half.
    """
    learner, state = small_learner(dataclasses.replace(CONFIG, group_size=16))
    count = 64

    def rewards(params):
        sampler = with_params(learner.sampler, params)
        requests = [1000 + k for k in range(count)] * len(PROMPTS)
        prompts = [prompt for prompt in PROMPTS for _ in range(count)]
        answers = sampler.batch(prompts, requests=requests, group_size=count)
        return np.array([low_tokens(0, answer) for answer in answers])

    before = rewards(state.params)
    for _ in range(4):
        state, metrics = learner(state)
    after = rewards(state.params)
    error = math.sqrt((before.var() + after.var()) / len(before))
    assert after.mean() - before.mean() > 4 * error, (before.mean(), after.mean())
    assert int(state.step) == 4 and metrics["reward"] > before.mean()


@pytest.mark.parametrize(
    ("method", "ratio", "reduction"),
    [
        ("trajectory", "token", "token"),
        ("trajectory", "token", "sequence"),
        ("chain", "sequence", "sum"),
        ("gdpo", "sequence", "sequence"),
        ("bgpo", "sequence", "sum"),
    ],
)
def test_rows_of_a_call_change_nothing(method, ratio, reduction):
    """One update by gradient descent, its gradient of 8 answers at once or of 3."""
    loss = PolicyLossConfig(ratio=ratio, reduction=reduction, kl_weight=0.1)
    config = dataclasses.replace(
        CONFIG, estimate=EstimateConfig(method=method), loss=loss
    )
    reference = jax.tree.map(lambda leaf: 0.9 * leaf, small_model().params)
    found = []
    for rows in (8, 3):
        config = dataclasses.replace(config, rows_per_call=rows)
        learner, state = small_learner(config, reference=reference)
        learner = Learner(
            learner.sampler, learner.task, optax.sgd(1.0), config, reference=reference
        )
        state = init_state(state.params, optax.sgd(1.0), seed=3, ema=False)
        after, metrics = learner(state)
        moved = jax.tree.map(jnp.subtract, after.params, state.params)
        found.append((leaves(moved), metrics))
    (first, one), (second, other) = found
    largest = max(np.abs(leaf).max() for leaf in first)
    assert largest > 1e-4 and one["kl"] > 0
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * largest)
    for name in ("loss", "kl", "grad_norm"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-6)


def test_answers_of_equal_groups_are_left_out_and_counted():
    """Half of the groups teach nothing: the gradient is half of the other's alone."""

    def first_only(prompt: int, answer) -> float:
        return low_tokens(prompt, answer) if prompt == 0 else 1.0

    moved = []
    for prompts in (PROMPTS, PROMPTS[:1]):
        learner, state = small_learner()
        learner = Learner(
            learner.sampler,
            lambda _, p=prompts: (p, first_only),
            optax.sgd(1.0),
            CONFIG,
        )
        state = init_state(state.params, optax.sgd(1.0), seed=3, ema=False)
        after, _ = learner(state)
        moved.append(leaves(jax.tree.map(jnp.subtract, after.params, state.params)))
    for both, alone in zip(*moved, strict=True):
        np.testing.assert_allclose(2 * both, alone, atol=1e-5)
    assert max(np.abs(leaf).max() for leaf in moved[0]) > 1e-4


def test_nothing_to_learn_changes_nothing():
    learner, state = small_learner(reward=lambda *_: 1.0)
    after, metrics = learner(state)
    assert_same(after.params, state.params)
    assert_same(after.opt, state.opt)
    assert int(after.step) == 1 and metrics["equal_groups"] == 1.0
    assert metrics["reward_variance"] == 0 and metrics["reward"] == 1.0


def test_a_run_goes_on_with_the_same_bits(tmp_path):
    """Three steps at once, and one step, a new process's objects, and two more."""
    config = dataclasses.replace(CONFIG, epochs=2, minibatches=2)
    learner, state = small_learner(config)
    loop = LoopConfig(steps=3, save_every=1, log_every=1)
    whole = fit(learner, state, tmp_path / "whole", loop)
    short = dataclasses.replace(loop, steps=1)
    fit(*small_learner(config), tmp_path / "cut", short)
    again = fit(*small_learner(config), tmp_path / "cut", loop)
    assert_same(again, whole)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert {"reward", "reward_variance", "equal_groups", "calls", "kl"} < {*records[0]}
    assert {"clipped", "rollout_seconds", "update_seconds"} < {*records[0]}


def test_speed_is_rewarded_beside_the_reward():
    learner, _ = small_learner(dataclasses.replace(CONFIG, advantages="decoupled"))
    # The mean over a group of each kind is 0, and so is that of their sum.
    groups = learner.rollouts(small_model().params, 0)
    advantages = learner.advantages(groups)
    np.testing.assert_allclose(advantages.mean(axis=1), 0, atol=1e-6)
    right = small_learner()[0].advantages(groups)
    assert np.abs(advantages - right).max() > 0.1


def broken(_: int, answer) -> float:
    del answer
    raise KeyError("gold")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda *_: math.nan, "step 0, prompt 0 .'Tom has 2 pens.*is nan"),
        (lambda at, _: [0.0, math.inf][at], "prompt 1 .'Mia has 7 pens.*is inf"),
        (broken, r"prompt 0 .*could not be computed \(KeyError: 'gold'\)"),
    ],
)
def test_rewards_that_are_none_are_refused_in_one_line(reward, message):
    learner, state = small_learner(reward=reward)
    with pytest.raises(ValueError, match=message) as caught:
        learner(state)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"record_steps": False}, "record_steps"),
        ({"top_k": 5}, "top_k=5"),
        ({"top_p": 0.9}, "top_p=0.9"),
        ({"no_stop": True}, "no_stop=True"),
    ],
)
def test_samplers_that_draw_otherwise_are_refused(changes, message):
    sampler = jaxdave.Sampler(PACKAGED, dataclasses.replace(DECODE, **changes))
    with pytest.raises(ValueError, match=message):
        Learner(sampler, lambda _: (PROMPTS, low_tokens), optax.sgd(0.1))


def test_a_full_attention_model_needs_no_cache():
    model = jaxdave.load("llada-1m")
    decode = dataclasses.replace(DECODE, block_length=8)
    with pytest.raises(ValueError, match="cache='none'"):
        Learner(
            jaxdave.Sampler(model, decode),
            lambda _: (PROMPTS, low_tokens),
            optax.sgd(1),
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group_size": 1}, "group_size=1"),
        ({"epochs": 0}, "epochs=0"),
        ({"advantages": "mean"}, "advantages='mean'"),
        ({"speed_weight": -1.0}, "speed_weight=-1.0"),
        ({"estimate": EstimateConfig(method="gdpo")}, "ratio='sequence'"),
    ],
)
def test_settings_that_are_none(values, message):
    with pytest.raises(ValueError, match=message):
        ReinforceConfig(**values)
    with pytest.raises(ValueError, match="needs a reference"):
        small_learner(dataclasses.replace(CONFIG, loss=PolicyLossConfig()))


def test_rows_that_fill_up_have_no_gradient():
    """A call of more rows than there are answers: the same update."""
    moved = []
    for rows in (8, 16):
        learner, state = small_learner(dataclasses.replace(CONFIG, rows_per_call=rows))
        after, _ = learner(state)
        moved.append(leaves(after.params))
    for first, second in zip(*moved, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)
    answers = learner.pack(
        sum(learner.rollouts(state.params, 0), []), step_key(state, 0)
    )
    assert not take_rows(answers, [0], 2).is_counted_BR[1].any()

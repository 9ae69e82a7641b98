"""Exact log-probabilities, against all that three tokens can do."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model, toy_policy
from helpers.fake_model import build, dense_logits, prompts_of, weights
from helpers.toy_policy import IS_ANSWER, MASK, ORDERS, SEQUENCES, table

from jaxdave import policies
from jaxdave.engine.generation import generate
from jaxdave.engine.trajectory import Trajectory
from jaxdave.training.reinforce import log_probs, step_maps

STEP_MAPS = [*ORDERS, (0, 0, 1), (1, 0, 1), (0, 0, 0)]


def all_sequences(params, steps, num_steps, **options):
    """Log-probabilities of the tokens of all 27 answers along one path, [27, 3]."""

    def one(tokens_T):
        return log_probs.trajectory_log_probs(
            toy_policy.logits_of(params),
            tokens_T,
            jnp.asarray(steps, jnp.int32),
            num_steps,
            mask_id=MASK,
            **options,
        )

    return jax.vmap(one)(jnp.asarray(SEQUENCES))


@pytest.mark.parametrize("steps", STEP_MAPS)
def test_a_path_is_the_product_of_its_steps_and_sums_to_one(steps):
    params = table(0, 2.0)
    got = all_sequences(params, steps, 3)
    want = [toy_policy.path_log_probs(params, row, steps) for row in SEQUENCES.tolist()]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(jnp.exp(jnp.sum(got, axis=1))), 1, rtol=1e-5)


def test_the_chain_is_one_order_whatever_a_text_was_decoded_in():
    params = table(1, 2.0)

    def chain(tokens_T):
        return log_probs.chain_log_probs(
            toy_policy.logits_of(params), tokens_T, IS_ANSWER, 3, mask_id=MASK
        )

    got = jax.vmap(chain)(jnp.asarray(SEQUENCES))
    np.testing.assert_array_equal(got, all_sequences(params, (0, 1, 2), 3))
    backwards = all_sequences(params, (2, 1, 0), 3)
    assert float(jnp.max(jnp.abs(jnp.sum(got - backwards, axis=1)))) > 0.5


def test_rules_that_look_at_distributions_are_exact():
    """The most certain position first: the paths' probabilities sum to 1."""
    params = table(2, 2.0)
    total = 0.0
    for tokens in SEQUENCES.tolist():
        steps, state = [9, 9, 9], [MASK] * 3
        for step in range(3):
            row = [
                max(toy_policy.log_prob(params, state, at, v) for v in range(3))
                if state[at] == MASK
                else -np.inf
                for at in range(3)
            ]
            place = int(np.argmax(row))
            steps[place], state[place] = step, tokens[place]
        got = log_probs.trajectory_log_probs(
            toy_policy.logits_of(params),
            jnp.asarray(tokens, jnp.int32),
            jnp.asarray(steps, jnp.int32),
            3,
            mask_id=MASK,
        )
        total += float(jnp.exp(jnp.sum(got)))
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_rules_that_look_at_the_draws_are_not():
    """The most likely of the drawn tokens first: what the docstring leaves out."""
    params, empty = table(2, 2.0), [MASK] * 3
    chance = {}
    for draw in itertools.product(range(3), repeat=3):
        drawn = [toy_policy.log_prob(params, empty, i, draw[i]) for i in range(3)]
        place = int(np.argmax(drawn))
        outcome = place, draw[place]
        chance[outcome] = chance.get(outcome, 0.0) + np.exp(sum(drawn))
    product = [np.exp(toy_policy.log_prob(params, empty, *at)) for at in chance]
    np.testing.assert_allclose(sum(chance.values()), 1.0, rtol=1e-6)
    assert abs(sum(product) - 1.0) > 0.1


def test_temperature_and_the_gradient_of_few_states_at_once():
    params, tokens = table(3), jnp.array([2, 0, 1])
    steps = jnp.array([0, 1, 2])

    def total(params, **options):
        logits_of = toy_policy.logits_of(params)
        return jnp.sum(
            log_probs.trajectory_log_probs(
                logits_of, tokens, steps, 3, mask_id=MASK, **options
            )
        )

    np.testing.assert_allclose(total(params, temperature=0.5), total(2 * params))
    whole = jax.value_and_grad(total)(params)
    for size in (1, 2):
        value, grad = jax.value_and_grad(total)(params, states_per_call=size)
        np.testing.assert_allclose(value, whole[0], rtol=1e-6)
        np.testing.assert_allclose(grad, whole[1], atol=1e-6)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        total(params, temperature=0)


def test_prompts_and_what_was_never_decoded_do_not_count():
    params = table(4, 2.0)
    steps = jnp.array([step_maps.GIVEN, 0, step_maps.NEVER])
    got = log_probs.trajectory_log_probs(
        toy_policy.logits_of(params),
        jnp.array([1, 2, MASK]),
        steps,
        1,
        mask_id=MASK,
    )
    want = toy_policy.log_prob(params, [1, MASK, MASK], 1, 2)
    np.testing.assert_allclose(got, [0.0, want, 0.0], rtol=1e-5)


def logits_of_network(net, length):
    """The `LogitsFn` of the hash network of the decoder's tests, on the host."""
    unused = [fake_model.MASK, *range(fake_model.SIZE, fake_model.ROWS)]

    def logits_of(states_ST):
        states = np.asarray(states_ST).tolist()
        places = list(range(len(states[0])))
        rows = [dense_logits(net, state, places, length) for state in states]
        logits_STV = np.array(rows, np.float32)
        logits_STV[..., unused] = -np.inf
        return jnp.asarray(logits_STV)

    return logits_of


@pytest.mark.parametrize(
    ("policy", "temperature"),
    [(policies.static(2), 0.7), (policies.threshold(0.3), 0.0)],
)
def test_what_the_decoder_has_recorded_is_what_is_computed(policy, temperature):
    """Old log-probabilities come from the rollout: ratios start at 1."""
    length, room, mask = 4, 8, fake_model.MASK
    decoder = build(policy, 4, length, room, record_steps=True, temperature=temperature)
    net, prompts = weights(1), prompts_of([4, 4], 3, fake_model.STOP)
    rows = generate(decoder, net, prompts, seed=2).completions
    for prompt, row in zip(prompts, rows, strict=True):
        trace = row.trajectory
        assert trace is not None
        canvas = step_maps.canvas_of(tuple(prompt), trace, room, mask)
        got = log_probs.trajectory_log_probs(
            logits_of_network(net, length),
            jnp.asarray(canvas.tokens_T),
            jnp.asarray(canvas.steps_T),
            canvas.num_steps,
            mask_id=mask,
            temperature=temperature or 1.0,
        )
        is_drawn_T = canvas.is_drawn_T
        assert np.sum(is_drawn_T) == len(trace.positions) > room // 2
        np.testing.assert_allclose(
            got[is_drawn_T], canvas.log_probs_T[is_drawn_T], rtol=1e-4, atol=1e-5
        )
        assert float(jnp.sum(got)) == pytest.approx(sum(trace.log_probs), rel=1e-4)


def test_step_maps():
    shrunk = step_maps.shrink_steps(np.array([-1, 7, 3, 5, step_maps.NEVER]), 2)
    assert shrunk.tolist() == [-1, 1, 0, 0, step_maps.NEVER]
    same = step_maps.shrink_steps(np.array([2, 0, 1]), 1)
    assert same.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="factor=0 must be at least 1"):
        step_maps.shrink_steps(same, 0)
    trace = Trajectory((3,), (1,), (0,), (0,), (-0.1,))
    with pytest.raises(ValueError, match="position 3 of its answer and the room is 3"):
        step_maps.canvas_of((), trace, 3, MASK)
    filled_in = Trajectory((1, 0), (2, 1), (0, 1), (0, 1), (float("nan"), -0.5))
    canvas = step_maps.canvas_of((7, 8), filled_in, 3, MASK)
    assert canvas.tokens_T.tolist() == [7, 8, 1, 2, MASK]
    assert canvas.steps_T.tolist() == [-1, -1, 1, 0, step_maps.NEVER]
    assert canvas.is_drawn_T.tolist() == [False, False, True, False, False]
    assert canvas.num_steps == 2

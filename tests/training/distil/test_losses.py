"""Distillation losses: plain statements in numpy, token by token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoint_folders import random
from helpers.distil_cases import (
    BATCH,
    DISTILLATION,
    FORCING,
    MASK,
    RECORDED,
    SAMPLING,
    START,
)

from jaxdave.models.param_shapes import param_shapes
from jaxdave.models.presets import preset
from jaxdave.training.distil import consistency
from jaxdave.training.distil.certainty import (
    CertaintyForcing,
    make_certainty_loss,
)
from jaxdave.training.distil.consistency import (
    later_states,
    make_consistency_loss,
    make_consistency_targets,
    teacher_share,
)
from jaxdave.training.distil.order import order_nats
from jaxdave.training.distil.state_logits import state_logits
from jaxdave.training.distil.states import draw_states, recorded_lateness
from jaxdave.training.objective.sequence_model import transformer_logits

SMALL = {"num_layers": 1, "hidden": 16, "inter": 24, "head_dim": 8, "rotary_dim": 8}
CAUSAL = preset("sdar-1m", block_length=2, **SMALL)
FULL = preset("llada-1m", **SMALL)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def plain_certainty(settings, logits, tokens, states):
    """dParallel's loss, token by token."""
    values = []
    for copy in range(logits.shape[1]):
        nats, entropies = [], []
        for row, column in np.argwhere(states.is_masked_BNA[:, copy]):
            z, label = logits[row, copy, column], tokens[row, column]
            is_later = states.is_later_BNA[row, copy, column]
            weight = settings.later_weight if is_later else 1.0
            nats.append((weight, -np.log(softmax(z)[label])))
            if z.argmax() == label:
                q = softmax(z / settings.temperature)
                entropies.append((weight, -np.sum(q * np.log(q))))
        values.append(average(nats) + settings.weight * average(entropies))
    return np.mean(values)


def average(pairs):
    total = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / total if total else 0.0


def plain_consistency(settings, student, teacher, tokens, states, later, share):
    """CD4LM's loss, token by token."""
    values, t = [], settings.temperature
    for copy in range(student.shape[1]):
        nats, divergences = [], []
        for row, column in np.argwhere(states.is_masked_BNA[:, copy]):
            z, label = student[row, copy, column], tokens[row, column]
            is_later = states.is_later_BNA[row, copy, column]
            weight = settings.later_weight if is_later else 1.0
            nats.append((weight, -np.log(softmax(z)[label])))
            if settings.teach_visible or later.is_masked_BNA[row, copy, column]:
                p = softmax(teacher[row, copy, column] / t)
                q = softmax(z / t)
                divergences.append((weight, t**2 * np.sum(p * np.log(p / q))))
        values.append(share * average(divergences) + (1 - share) * average(nats))
    return np.mean(values)


def plain_order(logits, steps, states, length):
    """The order loss, token by token."""
    values = []
    for copy in range(logits.shape[1]):
        nats = []
        ranked = states.is_masked_BNA[:, copy] & ~states.is_later_BNA[:, copy]
        for row, column in np.argwhere(ranked):
            block = column // length * length
            here = [c for c in range(block, block + length) if ranked[row, c]]
            order = sorted(here, key=lambda c: (steps[row, c], c))
            left = order[order.index(column) :]
            odds = {c: log_odds(logits[row, copy, c]) for c in left}
            total = np.log(sum(np.exp(value) for value in odds.values()))
            nats.append((1.0, total - odds[column]))
        values.append(average(nats))
    return np.mean(values)


def log_odds(z):
    p = softmax(z).max()
    return np.log(p / (1 - p))


def in_float64(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


@pytest.mark.parametrize(
    ("config", "later_weight"),
    [(CAUSAL, 0.0), (CAUSAL, 0.5), (FULL, 0.0)],
    ids=["alone", "ahead", "full"],
)
def test_certainty_forcing_is_its_formula(config, later_weight):
    sampling = dataclasses.replace(
        FORCING.sampling, is_causal=config.attention == "block_causal"
    )
    settings = CertaintyForcing(sampling=sampling, later_weight=later_weight)
    # Labels that an untrained network predicts, so that some are right.
    params, key = random(config), jax.random.key(2)
    function = jax.jit(state_logits(sampling, transformer_logits(config)))
    states = draw_states(key, sampling, BATCH, mask_id=config.mask_id)
    logits = np.asarray(function(params, BATCH, states))
    right = logits[:, 0].argmax(-1)
    tokens = np.array(BATCH.tokens_BT)
    tokens[:, START::2] = right[:, ::2]
    batch = BATCH._replace(tokens_BT=tokens)
    value, parts = jax.jit(make_certainty_loss(config, settings))(params, batch, key)
    states = draw_states(key, sampling, batch, mask_id=config.mask_id)
    logits = np.asarray(function(params, batch, states), np.float64)
    want = plain_certainty(settings, logits, tokens[:, START:], states)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert 0 < parts["right"] < 1 and parts["entropy"] > 0


@pytest.mark.parametrize(
    ("config", "teach_visible"),
    [(CAUSAL, False), (FULL, True)],
    ids=["causal", "full"],
)
def test_consistency_distillation_is_its_formula(config, teach_visible):
    sampling = dataclasses.replace(
        DISTILLATION.sampling, is_causal=config.attention == "block_causal"
    )
    settings = dataclasses.replace(
        DISTILLATION, sampling=sampling, teach_visible=teach_visible
    )
    teacher, student, key = random(config, 1), random(config, 2), jax.random.key(3)
    targets = make_consistency_targets(config, settings)
    batch = jax.jit(targets)(teacher, BATCH, key, jnp.float32(0.7))
    loss = make_consistency_loss(config, settings)
    value, parts = jax.jit(loss)(student, batch, key)
    function = jax.jit(state_logits(sampling, transformer_logits(config)))
    later = later_states(jax.random.split(key)[1], settings, BATCH, batch.student)
    want = plain_consistency(
        settings,
        np.asarray(function(student, BATCH, batch.student), np.float64),
        np.asarray(function(teacher, BATCH, later), np.float64),
        BATCH.tokens_BT[:, START:],
        batch.student,
        later,
        0.7,
    )
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert parts["consistency"] > 0 and parts["cross_entropy"] > 0


@pytest.mark.parametrize("config", [CAUSAL, FULL], ids=["causal", "full"])
@pytest.mark.parametrize("order", ["random", "recorded"])
def test_the_order_loss_is_its_formula(config, order):
    sampling = dataclasses.replace(
        SAMPLING,
        is_causal=config.attention == "block_causal",
        low=0.5,
        high=1.0,
        block_length=2 if config is CAUSAL else 3,
        order=order,
    )
    settings = CertaintyForcing(sampling=sampling, order_weight=0.7)
    params, key = random(config), jax.random.key(6)
    value, parts = jax.jit(make_certainty_loss(config, settings))(params, RECORDED, key)
    states = draw_states(key, sampling, RECORDED, mask_id=config.mask_id)
    function = jax.jit(state_logits(sampling, transformer_logits(config)))
    logits = np.asarray(function(params, RECORDED, states), np.float64)
    steps = RECORDED.step_BT[:, START:]
    want = plain_order(logits, steps, states, sampling.block_length)
    assert want > 0.01
    np.testing.assert_allclose(parts["order"], want, rtol=1e-4)
    rest = parts["cross_entropy"] + settings.weight * parts["entropy"]
    np.testing.assert_allclose(value, rest + 0.7 * parts["order"], rtol=1e-6)


def test_scores_that_fall_in_the_recorded_order_have_no_order_loss():
    """With gaps of 40 nats; against the order they cost as many."""
    sampling = dataclasses.replace(SAMPLING, low=1.0, high=1.0, is_causal=False)
    sampling = dataclasses.replace(sampling, block_length=6)
    states = draw_states(jax.random.key(0), sampling, RECORDED, mask_id=MASK)
    lateness, count = recorded_lateness(sampling, RECORDED)
    assert count[:, 0].tolist() == RECORDED.is_answer_BT.sum(1).tolist()
    score = 40 * jnp.broadcast_to(lateness[:, None], states.is_masked_BNA.shape)
    for sign, low, high in ((1, 0.0, 1e-6), (-1, 40.0, 300.0)):
        logits = jnp.stack([sign * score + 300, jnp.zeros_like(score)], axis=-1)
        nats, ranked = order_nats(logits, states, lateness, 6)
        is_last = ranked & (lateness[:, None] == 0)
        assert jnp.all(jnp.where(ranked & ~is_last, nats, low + 1e-7) >= low)
        assert jnp.all(jnp.where(ranked, nats, 0) <= high)
        np.testing.assert_allclose(nats[is_last], 0.0, atol=1e-5)


def test_an_order_loss_needs_the_steps():
    settings = dataclasses.replace(FORCING, order_weight=1.0)
    with pytest.raises(ValueError, match="give a RecordedBatch") as error:
        jax.eval_shape(
            make_certainty_loss(CAUSAL, settings),
            param_shapes(CAUSAL),
            BATCH,
            jax.random.key(0),
        )
    assert "\n" not in str(error.value)


def test_a_teacher_sees_a_later_state():
    settings = dataclasses.replace(
        DISTILLATION, sampling=dataclasses.replace(DISTILLATION.sampling, copies=600)
    )
    states = draw_states(jax.random.key(0), settings.sampling, BATCH, mask_id=MASK)
    later = later_states(jax.random.key(1), settings, BATCH, states)
    assert not (later.is_masked_BNA & ~states.is_masked_BNA).any()
    assert later.ratio_BN.min() >= 0.1 and later.ratio_BN.max() <= 0.6
    factor = later.ratio_BN / states.ratio_BN
    inside = (later.ratio_BN > 0.1) & (later.ratio_BN < 0.6)
    assert 0.3 <= factor[inside].min() and factor[inside].max() <= 0.7 + 1e-6
    # Of the tokens that may be masked, as many as the ratios say, also after the
    # active block.
    answer = BATCH.is_answer_BT[:, START:]
    share = np.mean(
        np.asarray(later.is_masked_BNA)[:, :, :][answer[:, None].repeat(600, 1)]
    )
    assert abs(share - later.ratio_BN.mean()) < 0.03
    tokens = BATCH.tokens_BT[:, START:]
    np.testing.assert_array_equal(
        later.noisy_BNA, np.where(later.is_masked_BNA, MASK, tokens[:, None])
    )
    # Behind clean text: each block begins a state of its own.
    np.testing.assert_array_equal(later.first_block_BNA[0, 0], [0, 0, 1, 1, 2, 2])


def test_nothing_is_learnt_from_a_teacher_that_agrees():
    """One network, states of equal masks: no divergence, and no gradient of it."""
    settings = dataclasses.replace(
        DISTILLATION,
        sampling=dataclasses.replace(SAMPLING, low=0.5, high=0.5, lookahead=0),
        keep_low=1.0,
        keep_high=1.0,
        teacher_low=0.0,
        teacher_high=1.0,
    )
    params, key = random(CAUSAL), jax.random.key(4)
    batch = jax.jit(make_consistency_targets(CAUSAL, settings))(
        params, BATCH, key, jnp.float32(1)
    )
    loss = jax.jit(
        jax.value_and_grad(make_consistency_loss(CAUSAL, settings), has_aux=True)
    )
    (value, _), grads = loss(params, batch, key)
    assert abs(value) < 1e-5
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-4


def test_the_teachers_share_is_the_published_schedule():
    shares = [teacher_share(step, 100) for step in range(101)]
    assert shares[:10] == [0.9] * 10 and shares[100] == pytest.approx(0.5)
    for step in range(10, 101):
        u = (step / 100 - 0.1) / 0.9
        want = 0.9 + (0.5 - 0.9) * (1 - 0.5 * (1 + np.cos(np.pi * u)))
        assert shares[step] == pytest.approx(want)
    assert teacher_share(50, 100, first=0.0, last=0.5) < 0.5, "it may rise, too"


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (FORCING, {"temperature": 0.0}, "temperature=0.0 must be above 0"),
        (FORCING, {"weight": -1.0}, "weight=-1.0 must be 0 or more"),
        (FORCING, {"later_weight": -1.0}, "later_weight=-1.0 must be 0 or more"),
        (FORCING, {"order_weight": -1.0}, "order_weight=-1.0 must be 0 or more"),
        (DISTILLATION, {"temperature": -1.0}, "temperature=-1.0 must be above 0"),
        (DISTILLATION, {"keep_low": 0.8}, "keep_low=0.8 and keep_high=0.7"),
        (DISTILLATION, {"teacher_high": 2.0}, "teacher_high=2.0 must satisfy"),
        (DISTILLATION, {"later_weight": -1.0}, "later_weight=-1.0"),
    ],
)
def test_bad_settings_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(settings, **changes)
    assert "\n" not in str(error.value)


def test_a_model_of_other_attention_is_refused():
    with pytest.raises(ValueError, match="use is_causal=False"):
        make_certainty_loss(FULL, FORCING)
    for make in (make_consistency_targets, make_consistency_loss):
        with pytest.raises(ValueError, match="use is_causal=False"):
            make(FULL, DISTILLATION)
    assert consistency.softened_divergence(
        jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0]), 2.0
    ) == pytest.approx(0.0, abs=1e-6)

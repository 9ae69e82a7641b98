"""Recorded by the decoder, computed for training: the same log-probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdave
from jaxdave.training.reinforce import log_probs, step_maps
from jaxdave.training.reinforce.network_logits import network_logits
from jaxdave.training.reinforce.policy_loss import PolicyLossConfig, policy_loss

ROOM = 8
PROMPT = "Mia has 3 pens. How many pens?"


def recorded_answer(model, **options):
    """Ids of an answer, and its trajectory, drawn with drafts."""
    config = jaxdave.DecodeConfig(
        draft_steps=2,
        max_new_tokens=ROOM,
        record_steps=True,
        numerics="fast",
        **options,
    )
    answer = jaxdave.Sampler(model, config)(PROMPT, request=1)
    assert answer.trajectory is not None
    return answer.token_ids, answer.trajectory


@pytest.mark.parametrize(
    ("name", "options"),
    [("sdar-1m", {}), ("dream-1m", {"cache": "none", "block_length": 4})],
)
def test_on_policy_the_ratio_is_one(name, options):
    """With drafts, at a temperature, through the demo models."""
    model = jaxdave.load(name)
    _, trajectory = recorded_answer(model, temperature=0.8, **options)
    prompt = tuple(model.codec.encode_prompt(PROMPT))
    canvas = step_maps.canvas_of(prompt, trajectory, ROOM, model.config.mask_id)
    tokens_T, steps_T = jnp.asarray(canvas.tokens_T), jnp.asarray(canvas.steps_T)
    old_BT = jnp.asarray(canvas.log_probs_T)[None]
    mask_BT = jnp.asarray(canvas.is_drawn_T)[None]
    logits_with = network_logits(model.config)

    @jax.jit
    def loss(params):
        new_T = log_probs.trajectory_log_probs(
            logits_with(params),
            tokens_T,
            steps_T,
            canvas.num_steps,
            mask_id=model.config.mask_id,
            temperature=0.8,
            states_per_call=8,
        )
        config = PolicyLossConfig(clip_low=0.01, clip_high=0.01)
        found = policy_loss(
            new_T[None], old_BT, jnp.ones(1), mask_BT, config, reference_BT=old_BT
        )
        return found.loss, (new_T, found)

    grads, (new_T, found) = jax.grad(loss, has_aux=True)(model.params)
    drawn_T = canvas.is_drawn_T
    np.testing.assert_allclose(
        new_T[drawn_T], canvas.log_probs_T[drawn_T], rtol=1e-3, atol=1e-3
    )
    # Not all is certain, so that wrong states or a wrong temperature would be seen.
    assert float(jnp.min(new_T)) < -0.1
    np.testing.assert_allclose(found.surrogate, -1.0, atol=2e-3)
    assert float(found.clipped) == 0.0 and float(found.kl) < 1e-5
    norms = [float(jnp.linalg.norm(leaf.ravel())) for leaf in jax.tree.leaves(grads)]
    assert np.all(np.isfinite(norms)) and max(norms) > 1e-3


def test_a_text_is_as_likely_as_the_decoder_recorded_from_the_left():
    """What makes the likelihood of a reference answer that of drawing it."""
    model = jaxdave.load("sdar-1m")
    token_ids, trajectory = recorded_answer(
        model, temperature=2.0, policy="left_to_right"
    )
    prompt, mask_id = model.codec.encode_prompt(PROMPT), model.config.mask_id
    canvas = step_maps.canvas_of_text(prompt, token_ids, ROOM, mask_id)
    logits_with = network_logits(model.config)
    found_T = jax.jit(
        lambda params: log_probs.trajectory_log_probs(
            logits_with(params),
            jnp.asarray(canvas.tokens_T),
            jnp.asarray(canvas.steps_T),
            canvas.num_steps,
            mask_id=mask_id,
            temperature=2.0,
        )
    )(model.params)
    places = zip(trajectory.positions, trajectory.log_probs, strict=True)
    recorded = sum(value for at, value in places if at < len(token_ids))
    assert recorded < -1.0
    np.testing.assert_allclose(jnp.sum(found_T), recorded, rtol=1e-3)

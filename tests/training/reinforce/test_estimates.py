"""Estimates of a batch of answers, and their losses, beside plain statements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_models import SMALL

from jaxdave.models import transformer
from jaxdave.models.presets import preset
from jaxdave.training.reinforce import elbo, estimates, log_probs
from jaxdave.training.reinforce.answer_batch import (
    AnswerBatch,
    num_steps,
    pack_canvases,
)
from jaxdave.training.reinforce.estimates import EstimateConfig
from jaxdave.training.reinforce.network_logits import network_logits
from jaxdave.training.reinforce.policy_loss import PolicyLossConfig
from jaxdave.training.reinforce.step_maps import GIVEN, NEVER, RecordedCanvas

ONE_LAYER = SMALL | {"num_layers": 1}
CAUSAL = preset("sdar-1m", **ONE_LAYER)
FULL = preset("llada-1m", **(ONE_LAYER | {"kv_heads": 2}))
TEMPERATURE = 0.7


def canvas(rng, begin: int, size: int, room: int = 12) -> RecordedCanvas:
    """A prompt, and an answer that was decoded block by block in a drawn order."""
    total = begin + room
    tokens_T = rng.integers(0, 57, total).astype(np.int32)
    steps_T = np.full(total, NEVER, np.int32)
    steps_T[:begin] = GIVEN
    step = 0
    for block in range(begin // 4, (begin + size - 1) // 4 + 1):
        first, last = max(begin, 4 * block), min(begin + size, 4 * block + 4)
        steps_T[first:last] = step + rng.permutation(last - first)
        step += last - first
    tokens_T[steps_T == NEVER] = CAUSAL.mask_id
    log_probs_T = np.where((steps_T >= 0) & (steps_T < NEVER), -1.0, np.nan)
    return RecordedCanvas(tokens_T, steps_T, log_probs_T.astype(np.float32))


def batch_of(config, **options) -> tuple[list[RecordedCanvas], AnswerBatch]:
    rng = np.random.default_rng(0)
    canvases = [canvas(rng, 5, 9), canvas(rng, 8, 6)]
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(1), 2)))
    return canvases, pack_canvases(canvases, keys, config, **options)


def params_of(config):
    return transformer.init(config, seed=1)


@pytest.mark.parametrize("config", [CAUSAL, FULL], ids=["blocks", "full"])
@pytest.mark.parametrize("method", ["trajectory", "chain"])
def test_tokens_are_scored_in_their_states(config, method):
    """Beside whole canvases of one answer each, state by state."""
    is_chain = method == "chain"
    canvases, batch = batch_of(config, from_left=is_chain)
    params = params_of(config)
    estimate = EstimateConfig(method=method)
    of_batch = estimates.make_estimate(config, estimate, TEMPERATURE)
    got = jax.jit(of_batch, static_argnums=2)(params, batch, num_steps(batch, config))
    logits_of = jax.jit(network_logits(config)(params))
    for row, one in enumerate(canvases):
        is_answer_T = (one.steps_T != GIVEN) & (one.steps_T != NEVER)
        steps_T = np.where(is_answer_T, one.steps_T, one.steps_T)
        if is_chain:
            steps_T = np.where(is_answer_T, np.cumsum(is_answer_T) - 1, steps_T)
        want_T = log_probs.trajectory_log_probs(
            logits_of,
            jnp.asarray(one.tokens_T),
            jnp.asarray(steps_T),
            int(is_answer_T.sum()),
            mask_id=config.mask_id,
            temperature=TEMPERATURE,
        )
        # A full canvas behind its pads sees the masks of its room, and so it does here.
        want = np.asarray(want_T)[is_answer_T]
        counted = batch.is_counted_BR[row]
        np.testing.assert_allclose(got[row][counted], want, rtol=1e-3, atol=1e-4)
        assert np.all(got[row][~counted] == 0) and want.max() < -0.1


@pytest.mark.parametrize("method", ["gdpo", "bgpo"])
def test_bounds_are_sums_over_masked_tokens(method):
    """Of a block-causal model: every block masked behind finished text."""
    canvases, batch = batch_of(CAUSAL, whole_trajectory=False)
    estimate = EstimateConfig(method=method, num_masks=3)
    params = params_of(CAUSAL)
    of_batch = estimates.make_estimate(CAUSAL, estimate, TEMPERATURE)
    got_BN = jax.jit(of_batch, static_argnums=2)(params, batch, 4)
    logits_of = jax.jit(network_logits(CAUSAL)(params))
    draw = {
        "gdpo": lambda key, where: elbo.quadrature_masks(key, where, 3, 1),
        "bgpo": lambda key, where: elbo.random_masks(key, where, 3),
    }[method]
    for row, one in enumerate(canvases):
        key = jax.random.wrap_key_data(jnp.asarray(batch.key_B2[row]))
        masks = draw(key, jnp.asarray(batch.is_counted_BR[row]))
        start = int(batch.start_B[row])
        for index, masked_R in enumerate(np.asarray(masks.is_masked_NT)):
            total = 0.0
            for place in np.flatnonzero(masked_R) + start:
                state_T = one.tokens_T.copy()
                block = slice(place // 4 * 4, place // 4 * 4 + 4)
                state_T[block.stop :] = CAUSAL.mask_id
                in_block = masked_R[block.start - start : block.stop - start]
                state_T[block][in_block[: len(state_T[block])]] = CAUSAL.mask_id
                logits_V = np.asarray(logits_of(jnp.asarray(state_T[None])))[0, place]
                scaled_V = logits_V.astype(np.float64) / TEMPERATURE
                total += scaled_V[one.tokens_T[place]] - np.log(np.exp(scaled_V).sum())
            want = float(masks.weight_N[index]) * total
            np.testing.assert_allclose(got_BN[row, index], want, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["gdpo", "bgpo"])
def test_on_policy_the_gradient_is_that_of_the_bound(method):
    """Of the mean over answers of advantage times bound, GDPO's per token."""
    estimate = EstimateConfig(method=method, num_masks=3)
    loss = PolicyLossConfig(ratio="sequence", reduction="sequence", kl_weight=0.0)
    rng = np.random.default_rng(2)
    old_BN = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    advantages_B = jnp.asarray(rng.normal(size=4), jnp.float32)
    is_counted_BR = jnp.arange(6)[None] < jnp.array([[6], [5], [2], [1]])
    nodes, weights = np.polynomial.legendre.leggauss(3)
    shares = weights / 2 if method == "gdpo" else np.full(3, 1 / 3)

    def loss_of(new_BN):
        return estimates.estimate_loss(
            estimate, loss, new_BN, old_BN, advantages_B, is_counted_BR
        ).loss

    value, got_BN = jax.value_and_grad(loss_of)(old_BN)
    lengths = np.array([6, 5, 2, 1]) if method == "gdpo" else np.ones(4)
    want_BN = -np.asarray(advantages_B)[:, None] * shares[None] / lengths[:, None] / 4
    np.testing.assert_allclose(got_BN, want_BN, rtol=1e-5)
    np.testing.assert_allclose(value, -np.mean(advantages_B), rtol=1e-5)
    assert len(nodes) == estimate.num_masks


def test_divergences_of_bounds_are_per_token():
    loss = PolicyLossConfig(ratio="sequence", reduction="sequence", kl_weight=2.0)
    old_B1, is_counted_BR = jnp.array([[-3.0], [-4.0]]), jnp.ones((2, 2), bool)
    for method in ("gdpo", "bgpo"):
        found = estimates.estimate_loss(
            EstimateConfig(method=method, num_masks=1),
            loss,
            old_B1,
            old_B1,
            jnp.zeros(2),
            is_counted_BR,
            reference_BX=old_B1 - jnp.array([[1.0], [0.0]]),
        )
        want = (np.exp(-0.5) + 0.5 - 1) / 2
        np.testing.assert_allclose(found.kl, want, rtol=1e-5)
        np.testing.assert_allclose(found.loss, 2 * want, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "elbo"}, "method='elbo'"),
        ({"num_masks": 0}, "num_masks=0"),
        ({"shrink": 2, "method": "chain"}, "shrink=2"),
        ({"states_per_call": 0}, "states_per_call=0"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        EstimateConfig(**values)

"""The clipped loss, against plain statements."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.training.reinforce import policy_loss
from jaxdave.training.reinforce.policy_loss import PolicyLossConfig

GENERATOR = np.random.default_rng(0)
OLD = -GENERATOR.random((4, 5)) * 3
NEW = OLD + 0.5 * GENERATOR.normal(size=(4, 5))
REFERENCE = OLD + 0.5 * GENERATOR.normal(size=(4, 5))
ADVANTAGES = np.array([1.0, -2.0, 0.5, 3.0])
MASK = GENERATOR.random((4, 5)) < 0.6
MASK[2] = False  # an answer without a token that counts
FIELDS = [
    {"ratio": ratio, "reduction": reduction}
    for ratio in ("token", "sequence", "sequence_mean")
    for reduction in ("token", "sequence", "sum")
]


def averaged(rows, reduction):
    """The mean of lists of terms, one list an answer."""
    if reduction == "token":
        return sum(map(sum, rows)) / sum(map(len, rows))
    divisor = [max(len(row), 1) if reduction == "sequence" else 1 for row in rows]
    return sum(sum(row) / by for row, by in zip(rows, divisor, strict=True)) / len(rows)


def plain(config):
    """(surrogate, divergence, share of clipped terms), one token at a time."""
    terms, kls, held = [], [], []
    for row, advantage in enumerate(ADVANTAGES.tolist()):
        places = np.flatnonzero(MASK[row])
        logs = [NEW[row, at] - OLD[row, at] for at in places]
        if config.ratio == "sequence":
            logs = [sum(logs)] if logs else []
        if config.ratio == "sequence_mean":
            logs = [sum(logs) / len(logs)] if logs else []
        terms.append([])
        for log in logs:
            ratio = math.exp(log)
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            terms[-1].append(min(ratio * advantage, clipped * advantage))
            held.append(terms[-1][-1] != ratio * advantage)
        gaps = [REFERENCE[row, at] - NEW[row, at] for at in places]
        kls.append([math.exp(gap) - gap - 1 for gap in gaps])
    surrogate = -averaged(terms, config.reduction)
    return surrogate, averaged(kls, config.reduction), float(np.mean(held))


def computed(
    config: PolicyLossConfig,
    new: Any = NEW,
    old: Any = OLD,
    reference: Any = REFERENCE,
) -> policy_loss.PolicyLoss:
    """The loss of the arrays above, or of others."""
    if reference is not None:
        reference = jnp.asarray(reference, jnp.float32)
    return policy_loss.policy_loss(
        jnp.asarray(new, jnp.float32),
        jnp.asarray(old, jnp.float32),
        jnp.asarray(ADVANTAGES, jnp.float32),
        jnp.asarray(MASK),
        config,
        reference_BT=reference,
    )


@pytest.mark.parametrize("fields", FIELDS)
def test_plain_statement(fields):
    config = PolicyLossConfig(clip_low=0.2, clip_high=0.3, kl_weight=0.1, **fields)
    got, (surrogate, kl, clipped) = computed(config), plain(config)
    np.testing.assert_allclose(got.surrogate, surrogate, rtol=1e-5)
    np.testing.assert_allclose(got.kl, kl, rtol=1e-5)
    np.testing.assert_allclose(got.loss, surrogate + 0.1 * kl, rtol=1e-5)
    np.testing.assert_allclose(got.clipped, clipped, rtol=1e-5)


@pytest.mark.parametrize("fields", FIELDS)
def test_what_is_masked_has_no_value_and_no_gradient(fields):
    """Tokens that a policy filled in have no log-probability: NaN must not spread."""
    config = PolicyLossConfig(**fields)
    spoiled = [np.where(MASK, array, np.nan) for array in (NEW, OLD, REFERENCE)]
    value, grad = jax.value_and_grad(
        lambda new: computed(config, new, *spoiled[1:]).loss
    )(jnp.asarray(spoiled[0], jnp.float32))
    np.testing.assert_allclose(value, computed(config).loss, rtol=1e-6)
    assert np.all(np.asarray(grad)[~MASK] == 0)
    assert np.any(np.asarray(grad)[MASK] != 0) and np.all(np.isfinite(grad))


def test_the_clip_stops_the_gradient_on_one_side_only():
    def slope(log_ratio, advantage):
        return jax.grad(
            lambda x: policy_loss.clipped_objective(x, advantage, 0.2, 0.2)
        )(jnp.float32(log_ratio))

    assert slope(0.5, 1.0) == 0 and slope(-0.5, -1.0) == 0
    assert slope(-0.5, 1.0) > 0 and slope(0.5, -1.0) < 0


def test_bounds_of_whole_answers():
    """GDPO: min(r A, clip(r) A) with r = exp((ELBO - old ELBO) / length), by hand."""
    new, old = np.array([-4.0, -9.0, -6.0]), np.array([-5.0, -6.0, -6.0])
    length, advantages = np.array([4, 3, 5]), np.array([2.0, -1.0, 1.0])
    new_B1, old_B1 = (
        jnp.asarray(bound / length, jnp.float32)[:, None] for bound in (new, old)
    )
    got = policy_loss.policy_loss(
        new_B1,
        old_B1,
        jnp.asarray(advantages, jnp.float32),
        jnp.ones((3, 1), bool),
        PolicyLossConfig(ratio="sequence", reduction="sequence"),
    )
    # Ratios exp(1/4) and exp(-1) are clipped to 1.2 and 0.8; the third is 1.
    want = np.mean([1.2 * 2.0, -0.8, 1.0])
    np.testing.assert_allclose(-got.surrogate, want, rtol=1e-6)
    np.testing.assert_allclose(got.clipped, 2 / 3, rtol=1e-6)


def test_k3_is_unbiased_and_never_negative():
    """By enumeration of a distribution: the mean over samples is the divergence."""
    policy = np.array([0.5, 0.3, 0.2])
    reference = np.array([0.2, 0.2, 0.6])
    k3 = policy_loss.k3_divergence(
        jnp.asarray(np.log(policy), jnp.float32),
        jnp.asarray(np.log(reference), jnp.float32),
    )
    want = np.sum(policy * np.log(policy / reference))
    np.testing.assert_allclose(np.sum(policy * np.asarray(k3)), want, rtol=1e-5)
    assert float(jnp.min(k3)) >= 0


def test_no_reference_and_nothing_that_counts():
    got = computed(PolicyLossConfig(), reference=None)
    assert float(got.kl) == 0 and float(got.loss) == float(got.surrogate)
    none = jnp.zeros((2, 3), bool)
    zeros = jnp.zeros((2, 3))
    empty = policy_loss.policy_loss(
        zeros, zeros, jnp.ones(2), none, PolicyLossConfig(), reference_BT=zeros
    )
    assert [float(part) for part in empty] == [0.0] * 4


def test_likelihood_of_right_answers():
    is_correct = np.array([True, False, True, True])
    got = policy_loss.correct_nll(
        jnp.asarray(NEW, jnp.float32), jnp.asarray(is_correct), jnp.asarray(MASK)
    )
    want = -np.mean(NEW[MASK & is_correct[:, None]])
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ratio": "word"}, "ratio='word' must be one of"),
        ({"reduction": "max"}, "reduction='max' must be one of"),
        ({"clip_low": 1.5}, "clip_low=1.5 must be from 0 to 1"),
        ({"clip_high": float("nan")}, "clip_high=nan must be at least 0"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0 must be at least 0"),
    ],
)
def test_what_is_no_loss(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PolicyLossConfig(), **fields)

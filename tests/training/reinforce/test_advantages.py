"""Advantages, against plain statements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.training.reinforce.advantages import (
    decoupled_advantages,
    group_advantages,
)


def plain(group, normalize):
    centred = [r - sum(group) / len(group) for r in group]
    deviation = (sum(c * c for c in centred) / len(group)) ** 0.5
    if normalize == "none" or deviation == 0:
        return centred
    return [c / deviation for c in centred]


@pytest.mark.parametrize("normalize", ["std", "none"])
def test_a_group_is_compared_with_its_mean(normalize):
    drawn = np.random.default_rng(0).normal(size=(5, 7))
    drawn[2] = np.arange(7) > 3  # rewards of a grader
    got = group_advantages(jnp.asarray(drawn, jnp.float32), normalize=normalize)
    want = [plain(group.tolist(), normalize) for group in drawn]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e8])
def test_equal_rewards_teach_nothing(value):
    """0.1 is no float: a mean that is a little off would be divided by what is left."""
    for normalize in ("std", "none"):
        rewards = jnp.full((1, 7), value)
        got = jax.jit(group_advantages, static_argnames="normalize")(
            rewards, normalize=normalize
        )
        assert got.tolist() == [[0.0] * 7]


def test_a_wrong_normalisation_is_refused():
    with pytest.raises(ValueError, match="normalize='var' must be"):
        group_advantages(jnp.ones((1, 2)), normalize="var")  # pyright: ignore


@pytest.mark.parametrize("over_batch", [True, False])
def test_each_reward_is_normalised_by_itself(over_batch):
    generator = np.random.default_rng(1)
    accuracy = (generator.random((4, 6)) < 0.5).astype(float)
    accuracy[1] = 1.0  # all right: only their speed is compared
    speed = 1 + 5 * generator.random((4, 6))
    want = np.array(
        [
            np.array(plain(a, "std")) + 0.5 * np.array(plain(s, "std"))
            for a, s in zip(accuracy.tolist(), speed.tolist(), strict=True)
        ]
    )
    if over_batch:
        want = (want - want.mean()) / want.std()
    got = decoupled_advantages(
        jnp.asarray([accuracy, speed], jnp.float32),
        weights=(1.0, 0.5),
        over_batch=over_batch,
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_reward_added_first_would_hide_the_other():
    """What decoupling is for: right but slow against wrong but fast."""
    accuracy = jnp.array([[1.0, 1.0, 0.0, 0.0]])
    speed = jnp.array([[1.0, 9.0, 1.0, 9.0]])
    added = group_advantages(accuracy + speed)[0]
    apart = decoupled_advantages(jnp.stack([accuracy, speed]), over_batch=False)[0]
    assert added[3] > 0.7 * added[1]  # the wrong one is nearly as good
    np.testing.assert_allclose(apart, [0, 2, -2, 0], atol=1e-6)
    same = jnp.ones_like(accuracy)
    nothing = decoupled_advantages(jnp.stack([same, same]))
    assert nothing.tolist() == [[0.0] * 4]


def test_a_weight_for_each_reward():
    with pytest.raises(ValueError, match="1 weights for 2 kinds"):
        decoupled_advantages(jnp.ones((2, 1, 2)), weights=(1.0,))

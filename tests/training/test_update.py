"""One update: plain statements of accumulation, averages, masters and bad losses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdave.training.objective.objective_loss import LossSums
from jaxdave.training.update import UpdateConfig, init_state, make_update

RATE = 0.1


def squares(params, batch, key):
    """A weighted mean of squares, whose gradient is easy to write down."""
    del key
    x_BT, weight_BT = batch
    error_BT = x_BT @ params["w"] - params["b"]
    return LossSums(jnp.sum(weight_BT * error_BT**2), jnp.sum(weight_BT))


def problem(rows: int = 8):
    rng = np.random.default_rng(0)
    batch = (
        rng.normal(size=(rows, 3)).astype(np.float32),
        rng.uniform(size=rows).astype(np.float32),
    )
    params = {"w": jnp.array([0.5, -1.0, 2.0]), "b": jnp.float32(0.25)}
    return params, batch


def run(params, batch, *, steps=1, loss=squares, frozen=None, join=None, **settings):
    optimiser = optax.sgd(RATE)
    config = UpdateConfig(**settings)
    update = jax.jit(make_update(loss, optimiser, config, join))
    state = init_state(params, optimiser, 0, ema=config.ema_decay is not None)
    for _ in range(steps - 1):
        state, _ = update(state, batch, frozen)
    return update(state, batch, frozen)


def plain_gradient(params, batch):
    """The gradient of the weighted mean, in numpy."""
    x, weight = (np.asarray(part, np.float64) for part in batch)
    error = x @ np.asarray(params["w"], np.float64) - float(params["b"])
    share = 2 * weight * error / weight.sum()
    return {"w": share @ x, "b": -share.sum()}, float(
        (weight * error**2).sum()
    ) / float(weight.sum())


@pytest.mark.parametrize("accumulate", [1, 2, 8])
def test_an_update_is_the_gradient_of_the_whole_batch(accumulate):
    params, batch = problem()
    gradient, loss = plain_gradient(params, batch)
    state, metrics = run(params, batch, accumulate=accumulate)
    expected = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-5)
    norm = np.sqrt(sum((g**2).sum() for g in map(np.asarray, gradient.values())))
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)
    assert int(state.step) == 1


def test_parts_have_noise_of_their_own_and_every_row_is_in_one():
    seen = []

    def record(params, batch, key):
        jax.debug.callback(lambda *values: seen.append(values), batch, key_bits(key))
        return LossSums(jnp.sum(params["b"] * batch), jnp.float32(batch.size))

    rows = jnp.arange(6.0)
    run({"b": jnp.float32(1.0)}, rows, loss=record, accumulate=3, steps=2)
    jax.effects_barrier()
    assert len(seen) == 6
    for step in (seen[:3], seen[3:]):
        assert sorted(np.concatenate([part for part, _ in step])) == list(range(6))
    assert len({tuple(np.ravel(key)) for _, key in seen}) == 6


def key_bits(key):
    return jax.random.key_data(key)


def test_the_moving_average_is_of_the_parameters_after_each_step():
    params, batch = problem()
    average, decay = params, 0.75
    for steps in (1, 2, 3):
        state, _ = run(params, batch, steps=steps, ema_decay=decay)
        average = jax.tree.map(
            lambda a, p: decay * a + (1 - decay) * p, average, state.params
        )
        chex.assert_trees_all_close(state.ema, average, rtol=1e-6)


def test_small_updates_are_not_lost_in_bfloat16():
    """1 + 2^-10 is no bfloat16; a master in float32 gets there by small steps."""

    def loss(params, batch, key):
        assert params.dtype == jnp.bfloat16
        return LossSums(-params.astype(jnp.float32) * batch[0], jnp.float32(1))

    batch = jnp.full((1,), 2.0**-13 / RATE)
    state, _ = run(jnp.float32(1.0), batch, steps=8, loss=loss, dtype="bfloat16")
    np.testing.assert_allclose(state.params, 1 + 2.0**-10, rtol=1e-6)
    assert jnp.bfloat16(1) + jnp.bfloat16(2.0**-13) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_changes_no_parameter(bad):
    params, (x, weight) = problem()
    x[3, 1] = bad
    state, metrics = run(params, (x, weight), ema_decay=0.5)
    chex.assert_trees_all_equal(state.params, params)
    chex.assert_trees_all_equal(state.ema, params)
    assert not np.isfinite(metrics.loss)
    assert int(state.step) == 1  # the next step has noise of its own


def test_what_is_frozen_has_no_gradient_and_no_state():
    """Only `b` is trained; `w` is put beside it."""
    params, batch = problem()
    join = lambda trained, frozen: {**trained, **frozen}  # noqa: E731
    state, _ = run({"b": params["b"]}, batch, frozen={"w": params["w"]}, join=join)
    gradient, _ = plain_gradient(params, batch)
    assert set(state.params) == {"b"}
    np.testing.assert_allclose(
        state.params["b"], params["b"] - RATE * gradient["b"], rtol=1e-5
    )


def test_where_nothing_is_trained_nothing_changes():
    params, (x, weight) = problem()
    state, metrics = run(params, (x, np.zeros_like(weight)))
    chex.assert_trees_all_equal(state.params, params)
    assert float(metrics.loss) == 0


@pytest.mark.parametrize(
    "settings", [{"accumulate": 0}, {"ema_decay": 1.0}, {"dtype": "float16"}]
)
def test_bad_settings_are_named(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        UpdateConfig(**settings)


def test_the_state_is_a_copy():
    """The state that is passed in is donated, and the model's arrays must not be."""
    params = {"w": jnp.ones(3)}
    state = init_state(params, optax.sgd(RATE), 0, ema=True)
    delete = functools.partial(jax.tree.map, lambda leaf: leaf.delete())
    delete((state.params, state.ema))
    np.testing.assert_array_equal(params["w"], np.ones(3))

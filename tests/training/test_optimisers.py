"""Optimisers and schedules against plain statements."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdave.models.param_shapes import param_shapes
from jaxdave.models.presets import preset
from jaxdave.training.optimisers import (
    OptimiserConfig,
    is_matrix,
    make_optimiser,
    make_schedule,
)


def plain_rate(config: OptimiserConfig, steps: int, step: int) -> float:
    """The learning rate of a step, in words: rise, stay, fall."""
    decay = config.decay_steps
    decay = steps - config.warmup_steps if decay is None else decay
    decay = 0 if config.decay == "none" else decay
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if step < steps - decay:
        return config.learning_rate
    done = (step - (steps - decay)) / decay
    left = 1 - done if config.decay == "linear" else (1 + np.cos(np.pi * done)) / 2
    share = config.final_share
    return config.learning_rate * (share + (1 - share) * left)


@pytest.mark.parametrize("decay", ["linear", "cosine", "none"])
@pytest.mark.parametrize("warmup, decay_steps", [(0, None), (3, None), (3, 4), (0, 0)])
def test_the_learning_rate_rises_stays_and_falls(decay, warmup, decay_steps):
    config = OptimiserConfig(
        learning_rate=2.0,
        warmup_steps=warmup,
        decay=decay,
        decay_steps=decay_steps,
        final_share=0.25,
    )
    rate = make_schedule(config, 12)
    np.testing.assert_allclose(
        np.stack([rate(step) for step in range(12)]),
        [plain_rate(config, 12, step) for step in range(12)],
        rtol=1e-6,
    )


def test_a_longer_run_begins_as_the_shorter_one():
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=2, decay_steps=3)
    short, long = make_schedule(config, 10), make_schedule(config, 20)
    assert [short(i) for i in range(7)] == [long(i) for i in range(7)]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_moves_and_only_matrices_decay(name):
    shapes = param_shapes(preset("dream-1m", num_layers=2))
    params = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    still = jax.tree.map(jnp.zeros_like, params)
    decay = OptimiserConfig(
        name=name, learning_rate=0.1, weight_decay=0.5, decay="none"
    )
    moved = _one_update(decay, params, still)
    matrices = is_matrix(params)
    assert not matrices["blocks"]["attn"]["q"]["bias"]
    assert not matrices["norm"]["scale"]
    assert matrices["embedding"] and matrices["blocks"]["mlp"]["up"]["kernel"]
    if name == "adamw":  # optax's Muon has one weight decay for all
        expected = jax.tree.map(lambda m: -0.05 if m else 0.0, matrices)
        jax.tree.map(
            lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-5), moved, expected
        )
    rng = np.random.default_rng(0)
    grads = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes
    )
    plain = OptimiserConfig(name=name, learning_rate=0.1, decay="none")
    for leaf in jax.tree.leaves(_one_update(plain, params, grads)):
        assert 0 < float(jnp.max(jnp.abs(leaf))) < 1


def test_gradients_are_clipped_before_all_else():
    params = {"kernel": jnp.zeros((2, 2))}
    config = OptimiserConfig(
        learning_rate=1.0, max_grad_norm=1e-3, decay="none", b1=0.0
    )
    grads = {"kernel": jnp.full((2, 2), 1e6)}
    state = make_optimiser(config, 10).init(params)
    _, state = make_optimiser(config, 10).update(grads, state, params)
    (adam,) = (s for s in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(s))
    np.testing.assert_allclose(optax.tree.norm(adam.mu), 1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    "field, value",
    [
        ("name", "sgd"),
        ("decay", "step"),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("b1", 1.0),
        ("final_share", 2.0),
        ("max_grad_norm", -1.0),
        ("warmup_steps", -1),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        OptimiserConfig(**{field: value})


def test_a_schedule_longer_than_the_run_is_refused():
    with pytest.raises(
        ValueError, match="warmup_steps=5 and decay_steps=6 .* steps=10"
    ):
        make_schedule(OptimiserConfig(warmup_steps=5, decay_steps=6), 10)


def _one_update(config, params, grads):
    optimiser = make_optimiser(config, 10)
    return optimiser.update(grads, optimiser.init(params), params)[0]


def _is_adam(leaf) -> bool:
    return isinstance(leaf, optax.ScaleByAdamState)

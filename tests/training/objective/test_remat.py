"""Rematerialisation saves memory and changes nothing."""

import chex
import jax
import numpy as np
import pytest

from jaxdave.models import transformer
from jaxdave.models.presets import preset
from jaxdave.training.data.token_batch import pack_samples
from jaxdave.training.objective.objective_loss import make_objective_loss
from jaxdave.training.objective.objectives import OBJECTIVES


def problem(layers: int = 2, length: int = 32):
    config = preset("sdar-1m", num_layers=layers)
    rng = np.random.default_rng(0)
    draw = lambda count: rng.integers(10, 300, count).tolist()  # noqa: E731
    rows = [[(draw(6), draw(length - 6))] for _ in range(2)]
    batch = pack_samples(rows, length=length, pad_id=0)
    return config, transformer.init(config, 0), batch


def gradient(config, remat: bool, columns_at_once=None):
    loss = make_objective_loss(
        config, OBJECTIVES["sdar"](block_length=4), columns_at_once, remat=remat
    )
    return jax.jit(
        jax.value_and_grad(lambda *args: loss(*args).total), static_argnums=()
    )


@pytest.mark.parametrize("columns_at_once", [None, 8])
def test_the_gradient_is_the_same(columns_at_once):
    config, params, batch = problem()
    key = jax.random.key(1)
    plain = gradient(config, False)(params, batch, key)
    saved = gradient(config, True, columns_at_once)(params, batch, key)
    chex.assert_trees_all_close(saved, plain, rtol=2e-4, atol=2e-5)


@pytest.mark.as_shipped
def test_it_needs_less_memory():
    config, params, batch = problem(layers=6, length=128)
    temporaries = []
    for remat in (False, True):
        lowered = gradient(config, remat).lower(params, batch, jax.random.key(0))
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        temporaries.append(analysis.temp_size_in_bytes)
    assert temporaries[1] < 0.6 * temporaries[0]

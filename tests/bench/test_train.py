"""The products of a training step, and that its benchmark runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from bench import train
from bench.harness import training_products
from bench.harness.models import random_config


def test_products_are_six_operations_per_weight_and_token_and_attention():
    config = random_config("30M")
    c, rows, positions, columns = config, 2, 128, 64
    products = training_products.step_products(config, rows, positions, columns)
    q_size, kv_size = c.heads * c.head_dim, c.kv_heads * c.head_dim
    weights = c.hidden * (2 * q_size + 2 * kv_size + 3 * c.inter) * c.num_layers
    # Scores and values, each with the gradients of two factors.
    attention = 12 * rows * positions**2 * q_size * c.num_layers
    head = 6 * rows * columns * c.hidden * c.vocab_rows
    expected = 6 * rows * positions * weights + attention + head
    assert sum(product.flops for product in products) == expected


@pytest.mark.parametrize("batch", [0, 3])
def test_every_orientation_is_the_same_product(batch):
    product = training_products.Product(batch, rows=2, inner=5, columns=4)
    found = {
        one: training_products.products_alone([product], {product: one}, jnp.float32)()
        for one in training_products.ORIENTATIONS
    }
    lead = (batch,) if batch else ()
    for results in found.values():
        (result,) = results.values()
        # Five times 0.5 by 0.5.
        assert result.tolist() == jnp.full((*lead, 2, 4), 1.25).tolist()


def test_a_quick_run_has_a_row_for_each_loss_and_setting(tmp_path, monkeypatch):
    # Set by the command, for XLA that has not started.
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(
        train, "SETTINGS", {"remat": dataclasses.replace(train.Setting(), remat=True)}
    )
    # optax mixes dtypes and ranks.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        train.main(["--quick", "--rounds", "1", "--out", str(tmp_path / "out.json")])
    products, settings = json.loads((tmp_path / "out.json").read_text())[
        "tables"
    ].values()
    assert [row["loss"] for row in products] == ["masked diffusion", "block diffusion"]
    assert [row["setting"] for row in settings] == ["remat"]

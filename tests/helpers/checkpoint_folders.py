"""Tiny random SDAR folders with the demo's tokenizer, for tests."""

import functools
import importlib.resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import param_path
from jaxdave.io import checkpoint
from jaxdave.models.param_shapes import param_shapes
from jaxdave.numerics.weight_layout import to_stacked

TOKENIZER = Path(str(importlib.resources.files("jaxdave") / "demo" / "sdar-1m"))
CONFIG = ModelConfig(
    name="tiny",
    family="sdar",
    num_layers=2,
    hidden=16,
    inter=24,
    heads=4,
    kv_heads=2,
    head_dim=8,
    rotary_dim=8,
    vocab_rows=784,
    vocab_size=776,
    qk_norm=True,
    mask_id=775,
    pad_id=772,
    stop_ids=(774, 772),
    block_length=4,
    max_positions=512,
)


def make(folder: Path, config: ModelConfig = CONFIG, dtype: str = "float32"):
    """Saves random parameters to a folder and returns them."""
    params = random(config)
    checkpoint.save(folder, config, params, dtype=dtype, tokenizer=TOKENIZER)
    return params


@functools.cache
def random(config: ModelConfig = CONFIG, seed: int = 0):
    """Random parameters, drawn on the host: compiling `transformer.init` takes long."""
    draw = np.random.default_rng(seed).normal

    def random_leaf(key_path, leaf):
        path = param_path(key_path)
        mean = float("scale" in path)
        # Tests expect the numbers of a head [E, V], but its layout is [V, E].
        is_head = "head" in path
        noise = draw(size=leaf.shape[::-1]).T if is_head else draw(size=leaf.shape)
        return jnp.asarray(mean + 0.25 * noise, leaf.dtype)

    return jax.tree_util.tree_map_with_path(random_leaf, param_shapes(config))


def assert_equal(a, b) -> None:
    """Asserts same structure, dtypes and bits, whatever the device layout of either."""
    a, b = to_stacked(a), to_stacked(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

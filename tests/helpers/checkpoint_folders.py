"""Tiny random SDAR folders with the demo's tokenizer, for tests."""

import functools
import importlib.resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.config import ModelConfig
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
    """Save random parameters to a folder and return them."""
    params = random(config)
    checkpoint.save(folder, config, params, dtype=dtype, tokenizer=TOKENIZER)
    return params


@functools.cache
def random(config: ModelConfig = CONFIG, seed: int = 0):
    """Random parameters, drawn on the host: `denoiser.init` takes long to compile."""
    draw = np.random.default_rng(seed).normal

    def leaf(path, like):
        middle = float("scale" in jax.tree_util.keystr(path))
        # The head lies by ids, and was drawn when it did not.
        is_head = "head" in jax.tree_util.keystr(path)
        drawn = draw(size=like.shape[::-1]).T if is_head else draw(size=like.shape)
        return jnp.asarray(middle + 0.25 * drawn, like.dtype)

    return jax.tree_util.tree_map_with_path(leaf, param_shapes(config))


def assert_equal(a, b) -> None:
    """Same structure, dtypes and bits, however a machine reads either."""
    a, b = to_stacked(a), to_stacked(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))

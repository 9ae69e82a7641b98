"""Training of adapters: the same network, frozen parameters, exact merging."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoint_folders import CONFIG, TOKENIZER, assert_equal, make, random

from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io import checkpoint
from jaxdave.io.peft_io import save_adapters
from jaxdave.models.forward import forward
from jaxdave.models.lora import TARGET_PATHS, LoraConfig
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.training.lora import (
    add_lora,
    init_adapters,
    join_lora,
    merge_into_checkpoint,
    merge_lora,
    split_lora,
)

LORA = LoraConfig(rank=4, alpha=8.0)


def trained(adapters, size: float = 0.05, seed: int = 0):
    """Adapters with a B that is not zero."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        return jnp.float32(leaf + size * rng.normal(size=leaf.shape))

    return jax.tree.map(fill, adapters)


@functools.cache
def demo(name: str, dtype: str):
    """A demo model's config and stacked parameters."""
    model = checkpoint.load(name, dtype=dtype)
    return model.config, to_stacked(model.params)


@pytest.mark.as_shipped
@pytest.mark.parametrize("name", ["sdar-1m", "llada-1m", "dream-1m"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_apart_is_the_network_merged(name, dtype):
    """New adapters change no bit; trained ones are the merged network, to rounding.

    Products are within derived bounds (`tests/numerics/test_low_rank.py`). What their
    rounding makes of logits is compared with what the same rounding of the kernels
    makes of them: each weight moved by half a unit in its last place, up or down.
    Logits of a network differ by the sum of many such small parts, so that the two
    root mean squares are alike; 4 times leaves room for products and sums, which are
    rounded besides the weights.
    """
    config, params = demo(name, dtype)
    tokens = np.random.default_rng(0).integers(0, 770, (2, 64)).astype(np.int32)
    logits = jax.jit(forward(config))
    plain = logits(params, tokens)
    new = add_lora(params, config, LORA)
    np.testing.assert_array_equal(logits(new, tokens), plain)
    assert_equal(merge_lora(new), params)

    joined = join_lora(trained(init_adapters(config, LORA)), params, LORA)
    merged = merge_lora(joined)
    apart, together = logits(joined, tokens), logits(merged, tokens)
    rng = np.random.default_rng(1)
    half = 2.0**-24 if dtype == "float32" else 2.0**-8

    def shake(leaf):
        sign = rng.choice([-1, 1], leaf.shape)
        return jnp.float32(np.asarray(leaf, np.float64) * (1 + sign * half))

    as_float32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), merged)
    shaken = jax.tree.map(jnp.asarray, as_float32)
    for path in TARGET_PATHS.values():
        _, module, name = path.split("/")
        part = shaken["blocks"][module][name]
        part["kernel"] = shake(part["kernel"])
    yardstick = rms(logits(shaken, tokens) - logits(as_float32, tokens))
    assert rms(apart - together) <= 4 * yardstick
    assert rms(apart - plain) > 20 * yardstick


def rms(array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))


def test_adapters_and_base_come_apart_and_together():
    params = random()
    lora = LoraConfig(rank=2, targets=("q", "down"))
    joined = add_lora(params, CONFIG, lora)
    adapters, base = split_lora(joined)
    assert_equal(base, params)
    assert sorted(leaves_by_path(adapters)) == [
        "blocks/attn/q/lora_a",
        "blocks/attn/q/lora_b",
        "blocks/mlp/down/lora_a",
        "blocks/mlp/down/lora_b",
    ]
    assert_equal(adapters, init_adapters(CONFIG, lora))
    again = join_lora(adapters, base, lora)
    assert jax.tree.structure(again) == jax.tree.structure(joined)
    # The scale is part of the tree, so that a program is compiled for it.
    other = join_lora(adapters, base, dataclasses.replace(lora, alpha=1.0))
    assert jax.tree.structure(other) != jax.tree.structure(joined)


def test_a_is_drawn_alike_whatever_else_is_adapted():
    few = init_adapters(CONFIG, LoraConfig(rank=4, targets=("up",)))
    every = init_adapters(CONFIG, LORA)
    assert_equal(few["blocks"]["mlp"]["up"], every["blocks"]["mlp"]["up"])
    gate, up = (every["blocks"]["mlp"][name]["lora_a"] for name in ("gate", "up"))
    assert gate.shape == up.shape and not np.array_equal(gate, up)
    assert not np.array_equal(up[0], up[1])
    bound = CONFIG.hidden**-0.5
    assert 0.8 * bound < np.abs(up).max() < bound
    assert not every["blocks"]["mlp"]["up"]["lora_b"].any()
    seeded = init_adapters(CONFIG, dataclasses.replace(LORA, seed=1))
    assert not np.array_equal(seeded["blocks"]["mlp"]["up"]["lora_a"], up)


def test_adapters_are_merged_into_a_checkpoint(tmp_path):
    params = make(tmp_path / "base", dtype="bfloat16")
    adapters = trained(init_adapters(CONFIG, LORA))
    save_adapters(tmp_path / "adapters", CONFIG, adapters, LORA)
    merge_into_checkpoint(
        tmp_path / "base", tmp_path / "adapters", tmp_path / "merged", dtype="float32"
    )
    model = checkpoint.load(tmp_path / "merged")
    stored = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), params
    )
    assert_equal(model.params, merge_lora(join_lora(adapters, stored, LORA)))
    assert dataclasses.replace(model.config, name=CONFIG.name) == CONFIG
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (
        TOKENIZER / "tokenizer.json"
    ).read_bytes()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "rank=0 must be a whole number"),
        ({"rank": 2.0}, "rank=2.0 must be a whole number"),
        ({"alpha": 0}, "alpha=0 must be above 0"),
        ({"alpha": float("nan")}, "alpha=nan must be above 0"),
        ({"targets": ("q", "qkv")}, r"\('q', 'qkv'\) must be some of q, k, v, o, gate"),
        ({"targets": ()}, r"targets=\(\) must be some of"),
        ({"targets": ("q", "q")}, "each once"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        LoraConfig(**settings)
    assert "\n" not in str(caught.value)


def test_adapters_of_another_model_are_refused():
    with pytest.raises(ValueError, match="rank=17 is larger .*blocks/attn/q/kernel, "):
        init_adapters(CONFIG, LoraConfig(rank=17))
    wider = dataclasses.replace(CONFIG, hidden=32)
    with pytest.raises(ValueError, match=r"blocks/attn/k/kernel \(2, 16, 16\)"):
        join_lora(init_adapters(wider, LORA), random(), LORA)
    model = checkpoint.load("sdar-1m")
    with pytest.raises(ValueError, match="no matrix .*kernel to adapt"):
        add_lora({"blocks": {"norm": {}}}, CONFIG, LORA)
    with pytest.raises(ValueError, match="blocks/attn/k/kernel .*to_stacked"):
        add_lora(model.params, model.config, LORA)

"""One compilation per bucket, and settings refused when a decoder is built."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave import policies
from jaxdave.core.config import ModelConfig
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.models import transformer
from jaxdave.models.param_shapes import param_shapes
from jaxdave.models.presets import PRESETS, preset
from jaxdave.runtime import compilation

CONFIG = ModelConfig(
    name="t", family="sdar", num_layers=1, hidden=16, inter=16, heads=2, kv_heads=1,
    head_dim=8, rotary_dim=8, vocab_rows=20, vocab_size=18, mask_id=17, pad_id=16,
    stop_ids=(15,), qk_norm=True, max_positions=200,
)  # fmt: skip
PARAMS = transformer.init(CONFIG, 0)


@pytest.mark.parametrize(
    "numerics", ["exact", pytest.param("fast", marks=pytest.mark.slow), "guarded"]
)
def test_a_bucket_is_compiled_once(numerics):
    decoder = decoders.freedave(
        CONFIG, draft_steps=4, max_new_tokens=8, numerics=numerics
    )
    assert generate(decoder, PARAMS, [[1, 2, 3]]).compile_seconds > 0
    assert generate(decoder, PARAMS, [[4] * 9], seed=3).compile_seconds == 0
    twin = decoders.static(CONFIG, draft_steps=4, max_new_tokens=8, numerics=numerics)
    assert generate(twin, PARAMS, [[5, 6]]).compile_seconds == 0
    assert generate(decoder, PARAMS, [[4] * 70]).compile_seconds > 0


@pytest.mark.as_shipped
def test_one_row_never_copies_its_cache():
    """Temporaries of the loop grow by less than one layer's keys."""
    config = dataclasses.replace(CONFIG, max_positions=2048, num_layers=2)
    decoder = decoders.freedave(config, draft_steps=4, max_new_tokens=8)
    params = transformer.init(config, 0)
    short, long = (_temporaries(decoder, params, size) for size in (100, 1000))
    layer = 4 * config.kv_heads * config.head_dim
    assert long - short < (1000 - 100) * layer / 2


def _temporaries(decoder, params, size: int) -> int:
    generate(decoder, params, [[1] * size])
    return compilation.memory_analysis(decoder.spec, "run").temp_size_in_bytes


def test_numpy_parameters_decode_too():
    decoder = decoders.static(CONFIG, max_new_tokens=4)

    rows = [
        generate(decoder, params, [[1, 2]]).completions
        for params in (PARAMS, jax.tree.map(np.asarray, PARAMS))
    ]
    assert rows[0] == rows[1]


def test_bfloat16_keeps_its_cache_in_bfloat16():

    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
    settings = {"max_new_tokens": 12, "numerics": "exact"}
    decoder = decoders.freedave(CONFIG, draft_steps=4, **settings)
    twin = decoders.static(CONFIG, draft_steps=4, **settings)
    prompts = [[1, 2, 3], [9] * 6]
    assert [r.token_ids for r in generate(decoder, half, prompts).completions] == [
        r.token_ids for r in generate(twin, half, prompts).completions
    ]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"draft_steps": 0}, "draft_steps=0"),
        ({"draft_steps": 33}, "draft_steps=33"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"block_length": 3}, "block_length=3"),
        ({"block_length": 128}, "block_length=128"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"top_k": -2}, "top_k=-2"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"numerics": "quick"}, "quick"),
    ],
)
def test_bad_settings_are_refused_when_built(settings, named):
    with pytest.raises(ValueError, match=named) as caught:
        decoders.freedave(CONFIG, **settings)
    assert "\n" not in str(caught.value)


def test_full_attention_takes_blocks_of_any_length():
    config = preset("llada-1m", block_length=24)
    assert decoders.static(config, max_new_tokens=48).spec.layout.block_length == 24
    with pytest.raises(ValueError, match="block_length=0"):
        preset("llada-1m", block_length=0)
    with pytest.raises(ValueError, match="block_length=24"):
        preset("sdar-1m", block_length=24)


@pytest.mark.parametrize("tau", [-0.1, 1.1])
def test_thresholds_outside_zero_to_one_are_refused(tau):
    with pytest.raises(ValueError, match=str(tau)):
        policies.threshold(tau)


@pytest.mark.parametrize(
    ("prompts", "named"), [([], "no prompt"), ([[]], "empty"), ([[1] * 199], "199")]
)
def test_bad_prompts_are_refused(prompts, named):
    decoder = decoders.static(CONFIG, max_new_tokens=8)
    with pytest.raises(ValueError, match=named):
        generate(decoder, PARAMS, prompts)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_seeds_outside_32_bits_are_refused(seed):
    decoder = decoders.static(CONFIG, max_new_tokens=8)
    with pytest.raises(ValueError, match=str(seed)):
        generate(decoder, PARAMS, [[1]], seed=seed)


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("sdar-1m", None),
        ("fast-dllm-v2-7b", None),
        ("dream-7b", "dual"),
        ("llada-8b", "prefix"),
        ("llada-8b", "none"),
    ],
)
def test_every_family_has_a_decoder(name, cache):
    decoder = decoders.freedave(preset(name), cache=cache, max_new_tokens=64)
    alone = decoder.spec.policy.name.startswith("first_alone")
    assert alone == (name in ("dream-7b", "fast-dllm-v2-7b"))


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("sdar-1m", {"cache": "dual"}, "cache='dual'"),
        ("llada-1m", {"cache": "delayed"}, "cache='delayed'"),
        ("llada-1m", {"block_length": 24}, "block_length=24"),
        ("llada-1m", {"block_length": 0}, "block_length=0"),
        ("dream-1m", {"max_new_tokens": 40}, "block_length=32"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(name, settings, named):
    with pytest.raises(ValueError, match=named) as caught:
        decoders.static(preset(name), **{"max_new_tokens": 64, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dream-7b", 7_615_616_512),
        ("llada-8b", 8_015_581_184),
        ("sdar-1.7b", 2_031_739_904),
        ("sdar-4b", 4_411_424_256),
        ("sdar-8b", 8_190_735_360),
        ("fast-dllm-v2-1.5b", 1_543_714_304),
    ],
)
def test_presets_have_the_published_number_of_parameters(name, parameters):

    shapes = jax.tree.leaves(param_shapes(preset(name)))
    assert sum(int(np.prod(leaf.shape)) for leaf in shapes) == parameters


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_shapes_of_parameters_are_those_of_the_module(name):
    config = preset(name)
    shapes = jax.eval_shape(lambda: transformer.init(config, 0, jnp.bfloat16))
    assert param_shapes(config, jnp.bfloat16) == shapes


def test_loading_and_building_leave_flax_alone():
    code = (
        "import sys, jaxdave\n"
        "model = jaxdave.load('sdar-1m')\n"
        "jaxdave.freedave(model.config, max_new_tokens=8)\n"
        "assert 'flax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

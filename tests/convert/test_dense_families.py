"""Nemotron, Tiny-A2D and iLLaDA: files as they were, the command line, bad configs."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from helpers.checkpoint_folders import assert_equal
from helpers.conversion_sources import (
    assert_same_files,
    change_json,
    refused,
    run,
)
from helpers.family_cases import CASES, CONFIGS, YARN

import jaxdave
from jaxdave.core.config import ModelConfig, YarnScaling
from jaxdave.io import families
from jaxdave.io.rope_config import resolve_rope
from jaxdave.models.presets import preset
from jaxdave.models.rope import rope_table

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from helpers import torch_families  # noqa: E402

NAMES = ["nemotron", "a2d-mdlm", "a2d-bd3lm", "illada"]
BY_NAME = {case.name: case for case in CASES}
EVERY = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(source, converted folder) of a case, made once."""

    @functools.cache
    def make(name: str):
        home, case = tmp_path_factory.mktemp(name), BY_NAME[name]
        module = torch_families.build(case)
        source = torch_families.save(case, module, home / "source")
        assert run(source, home / "ours", "--verify", "1000", *case.options) == 0
        return source, home / "ours"

    return make


@EVERY
def test_files_come_back_byte_for_byte(converted, name, tmp_path):
    source, folder = converted(name)
    assert run("--export", folder, tmp_path / "back") == 0
    assert_same_files(source, tmp_path / "back")


@EVERY
def test_a_saved_folder_loads_as_it_was(converted, name, tmp_path):
    _, folder = converted(name)
    model = jaxdave.load(folder)
    jaxdave.save(
        tmp_path / "saved",
        model.config,
        model.params,
        dtype="float32",
        tokenizer=folder,
    )
    again = jaxdave.load(tmp_path / "saved")
    assert again.config == dataclasses.replace(model.config, name="saved")
    assert_equal(again.params, model.params)


@EVERY
def test_the_command_line_decodes_it(converted, name, capfd):
    from jaxdave.cli import main

    with pytest.raises(SystemExit) as end:
        arguments = ["generate", "--model", str(converted(name)[1])]
        main.main([*arguments, "--max-new-tokens", "32", "How many pens?"])
    assert end.value.code == 0
    assert capfd.readouterr().out


def nemotron(**rope) -> dict:
    """Nemotron's config.json with changed rope parameters; ... drops one."""
    raw = CONFIGS["nemotron"](BY_NAME["nemotron"])
    changed = {**raw["rope_parameters"], **rope}
    raw["rope_parameters"] = {k: v for k, v in changed.items() if v is not ...}
    return raw


@pytest.mark.parametrize(
    ("factor", "positions", "theta", "fast", "slow", "one", "other"),
    [
        (16.0, 16384, 1e6, 32.0, 1.0, 1.0, 1.0),
        (16.0, 16384, 1e9, 32.0, 1.0, 1.0, 1.0),
        (4.0, 32, 1e4, 4.0, 0.25, 1.0, 0.8),
        (40.0, 4096, 1e4, 32.0, 1.0, 0.707, 1.0),
        (2.0, 64, 1e4, 1.001, 1.0, 1.0, 1.0),
    ],
)
def test_yarn_is_that_of_transformers(factor, positions, theta, fast, slow, one, other):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "yarn", "rope_theta": theta, "factor": factor,
        "original_max_position_embeddings": positions, "beta_fast": fast,
        "beta_slow": slow, "mscale": one, "mscale_all_dim": other,
        "llama_4_scaling_beta": 0.1,
    }  # fmt: skip
    theirs = transformers.Ministral3Config(
        head_dim=128, max_position_embeddings=int(factor * positions),
        rope_parameters=dict(rope),
    )  # fmt: skip
    frequency, magnitude = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    _, scaling, problems = resolve_rope({"rope_parameters": rope}, ("yarn",))
    assert not problems and isinstance(scaling, YarnScaling)
    assert scaling.magnitude == pytest.approx(magnitude, rel=1e-12)
    config = ModelConfig(
        name="t", family="nemotron", num_layers=1, hidden=8, inter=8, heads=1,
        kv_heads=1, head_dim=128, rotary_dim=128, vocab_rows=8, vocab_size=8,
        mask_id=7, pad_id=6, stop_ids=(6,), rope_theta=theta, rope_scaling=scaling,
    )  # fmt: skip
    cos, sin, scale = rope_table(config, 2)
    angles = np.arctan2(sin[1], cos[1])
    np.testing.assert_allclose(angles, frequency.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(scale, 1.0)


def test_queries_are_scaled_beyond_the_first_training():
    _, scaling, _ = resolve_rope({"rope_parameters": YARN}, ("yarn",))
    config = dataclasses.replace(
        ModelConfig(
            name="t", family="nemotron", num_layers=1, hidden=8, inter=8, heads=1,
            kv_heads=1, head_dim=8, rotary_dim=8, vocab_rows=8, vocab_size=8,
            mask_id=7, pad_id=6, stop_ids=(6,),
        ),
        rope_scaling=scaling,
    )  # fmt: skip
    scale = rope_table(config, 100)[2][:, 0]
    expected = [1 + 0.1 * np.log1p(np.floor(p / 32)) for p in range(100)]
    np.testing.assert_allclose(scale, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"factor": ...}, "factor=None of rope_parameters must be of type float"),
        ({"beta_fast": ...}, "beta_fast=None of rope_parameters must be of type"),
        ({"mscale": ...}, "mscale=None of rope_parameters must be of type float"),
        (
            {"original_max_position_embeddings": 2.5},
            "original_max_position_embeddings=2.5 of rope_parameters must be of type",
        ),
        ({"beta_slow": 64.0}, "beta_slow=64.0 must be above 0 and below beta_fast"),
        ({"factor": 0.5}, "factor=0.5 must be at least 1"),
        ({"llama_4_scaling_beta": -1.0}, "llama_4_scaling_beta=-1.0 must be 0 or"),
        ({"truncate": False}, "truncate=False of rope_parameters is not known"),
        ({"rope_type": "default"}, "must have rope_type 'yarn' and its numbers"),
        ({"rope_type": "linear"}, "must be None"),
    ],
    ids=str,
)
def test_a_wrong_rope_is_one_line(rope, words, tmp_path, capsys):
    case = BY_NAME["nemotron"]
    module = torch_families.build(case)
    source = torch_families.save(case, module, tmp_path / "source")
    (source / "config.json").write_text(json.dumps(nemotron(**rope)))
    assert words in refused(tmp_path, capsys, source)


def test_the_published_config_is_read():
    """The 14B's, as a public engine pins it in its tests, is the preset's."""
    raw = {
        **nemotron(
            rope_theta=1e9, original_max_position_embeddings=16384, beta_fast=32.0,
            beta_slow=1.0, mscale_all_dim=1.0,
        ),
        "num_hidden_layers": 40, "hidden_size": 5120, "intermediate_size": 16384,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 131072, "max_position_embeddings": 262144,
    }  # fmt: skip
    family = families.detect(raw, ["encoder.layers.0.self_attn.q_proj.weight"])
    config = preset("nemotron-14b")
    fields = families.config_fields(family, raw)
    assert fields == {name: getattr(config, name) for name in fields}


def test_a_method_that_is_not_named_is_one_line(tmp_path, capsys):
    case = BY_NAME["a2d-mdlm"]
    module = torch_families.build(case)
    source = torch_families.save(case, module, tmp_path / "source")
    capsys.readouterr()  # transformers shows its progress
    line = refused(tmp_path, capsys, source)
    assert "a2d_method=None must be 'mdlm' or 'bd3lm'" in line
    assert "--family" in line
    with pytest.raises(ValueError, match="a2d_method=None must be 'mdlm' or"):
        jaxdave.load(source)
    change_json(source / "config.json", a2d_method="bd3lm")
    config = jaxdave.load(source).config
    assert (config.attention, config.block_length) == ("block_causal", 32)
    assert config.family == "tiny-a2d-bd3lm"


def test_illada_s_mask_is_its_tokenizer_s_or_the_caller_s(tmp_path):
    case = BY_NAME["illada"]
    source = torch_families.save(case, torch_families.build(case), tmp_path / "s")
    change_json(source / "tokenizer_config.json", mask_token=...)
    change_json(source / "special_tokens_map.json", mask_token=...)
    with pytest.raises(ValueError, match="give it with --mask-id"):
        jaxdave.load(source)
    assert jaxdave.load(source, mask_id=5).config.mask_id == 5


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            {"model_type": "qwen3", "architectures": ["EfficientDLM"]},
            "the names of its tensors and its rule are not known here",
        ),
        ({"model_type": "nemotron_labs_diffusion_vlm"}, "it sees images"),
    ],
)
def test_what_does_not_load_is_told_why(raw, words):
    with pytest.raises(ValueError, match=words) as caught:
        families.detect(raw, None)
    assert "\n" not in str(caught.value)


def test_scales_of_an_eight_bit_cache_are_left_out(tmp_path):
    from safetensors.torch import load_file, save_file

    case = dataclasses.replace(BY_NAME["nemotron"], shard="5GB")
    source = torch_families.save(case, torch_families.build(case), tmp_path / "s")
    plain = jaxdave.load(source)
    tensors = load_file(source / "model.safetensors")
    for name in ("k_scale", "v_scale"):
        tensors[f"encoder.layers.0.self_attn.{name}"] = torch.ones(())
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    assert_equal(jaxdave.load(source).params, plain.params)
    assert run(source, tmp_path / "ours") == 0
    assert_equal(jaxdave.load(tmp_path / "ours").params, plain.params)

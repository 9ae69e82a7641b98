"""What is not supported for mixtures of experts is refused in one line, before work."""

import dataclasses

import jax
import pytest
from helpers import checkpoint_folders
from helpers.plain_experts import KINDS

from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import make_decoder
from jaxdave.io import checkpoint, families, hf_config, orbax_io
from jaxdave.io.device_memory import check_fits
from jaxdave.io.sharding import put_on_mesh
from jaxdave.models.lora import LoraConfig, adapter_shapes

CONFIG = dataclasses.replace(
    checkpoint_folders.CONFIG, family="sdar-moe", experts=KINDS["qwen"]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("mixture")
    checkpoint_folders.make(home / "tiny", CONFIG)
    return home / "tiny"


def refused(function, *arguments, **options) -> str:
    with pytest.raises(ValueError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_meshes_and_eight_bits(folder):
    assert "mesh is not supported" in refused(checkpoint.load, folder, mesh="data=1")
    message = refused(checkpoint.load, folder, quantize="int8")
    assert "quantize='int8' is not supported" in message and "8 experts" in message
    mesh = jax.make_mesh((1,), ("model",))
    params = checkpoint_folders.random(CONFIG)
    assert "on one device" in refused(put_on_mesh, params, CONFIG, mesh)


def test_neither_is_proposed_where_memory_is_short():
    message = refused(check_fits, CONFIG, "float32", None, 1, 1000)
    assert "a smaller model" in message


def test_adapters():
    assert "lora is not" in refused(adapter_shapes, CONFIG, LoraConfig(rank=2))


def test_a_loaded_mixture_decodes_exactly_without_being_asked(folder):
    config = checkpoint.describe(folder).config
    assert config == dataclasses.replace(CONFIG, name=config.name)
    assert make_decoder(config, DecodeConfig()).numerics == "exact"


def test_what_a_family_s_files_cannot_say_is_not_written():
    sigmoid = dataclasses.replace(KINDS["qwen"], score="sigmoid")
    odd = dataclasses.replace(CONFIG, experts=sigmoid)
    assert "score='sigmoid'" in refused(hf_config.to_json, odd, "float32")
    dense = dataclasses.replace(CONFIG, experts=None)
    assert "experts=None" in refused(hf_config.to_json, dense, "float32")
    as_sdar = dataclasses.replace(CONFIG, family="sdar")
    assert "experts=" in refused(hf_config.to_json, as_sdar, "float32")


def test_a_converted_config_keeps_its_experts(tmp_path):
    raw = orbax_io.to_json(CONFIG, "float32")
    assert orbax_io.read_config(raw, tmp_path) == CONFIG
    raw["model"]["experts"] |= {"score": "tanh"}
    assert "score='tanh'" in refused(orbax_io.read_config, raw, tmp_path)
    raw["model"]["experts"] = 3
    assert "experts='3'" in refused(orbax_io.read_config, raw, tmp_path)
    assert ExpertsConfig(count=4, per_token=1, inter=2).groups == 1


def test_published_sizes():
    """LLaDA2-mini's numbers, and SDAR-30B-A3B's, tensor by tensor."""
    mini = dataclasses.replace(
        CONFIG, family="llada2", num_layers=20, hidden=2048, inter=5120, heads=16,
        kv_heads=4, head_dim=128, rotary_dim=64, vocab_rows=157184, vocab_size=157184,
        experts=ExpertsConfig(
            count=256, per_token=8, inter=512, shared_inter=512, score="sigmoid",
            bias="choice", groups=8, kept_groups=4, renormalize=True, scale=2.5,
            dense_layers=1,
        ),
    )  # fmt: skip
    tensors = families.checkpoint_tensors(families.LLADA2, mini)
    assert tensors["model.layers.0.mlp.up_proj.weight"].shape == (5120, 2048)
    fused = tensors["model.layers.19.attention.query_key_value.weight"]
    assert fused.shape == (3072, 2048)
    rows = [(part.path[-8:-7], part.index, part.shape[0]) for part in fused.parts]
    assert rows == [("q", (18,), 2048), ("k", (18,), 512), ("v", (18,), 512)]
    last = tensors["model.layers.19.mlp.experts.255.down_proj.weight"]
    assert (last.shape, last.parts[0].index) == ((2048, 512), (18, 255))
    assert len(tensors) == 14_813
    sdar = dataclasses.replace(
        CONFIG, num_layers=48, hidden=2048, inter=6144, heads=32, kv_heads=4,
        head_dim=128, rotary_dim=128, vocab_rows=151936, vocab_size=151670,
        experts=ExpertsConfig(count=128, per_token=8, inter=768, renormalize=True),
    )  # fmt: skip
    assert len(families.checkpoint_tensors(families.SDAR_MOE, sdar)) == 18_867

"""Starting points: scratch, diffusion models, and opened autoregressive models."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import checkpoint_folders
from helpers.checkpoint_folders import TOKENIZER, assert_equal
from safetensors.numpy import load_file, save_file

from jaxdave.io import checkpoint
from jaxdave.io.autoregressive import Opening
from jaxdave.models.forward import forward
from jaxdave.models.presets import preset
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.training.starting_point import from_model, from_scratch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CAUSAL = Opening(attention="block_causal", block_length=1, shift=False)
TOKENS = np.random.default_rng(0).integers(0, 770, (2, 48)).astype(np.int32)
KINDS = {
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig),
}


def build(kind: str, rows: int = 784, **changes: Any) -> Any:
    """A small random module of transformers, biases and norms too."""
    torch.manual_seed(0)
    module_class, config_class = KINDS[kind]
    sizes = dict(
        vocab_size=rows,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        attn_implementation="eager",
        eos_token_id=772,
        pad_token_id=772,
        bos_token_id=None,
    )
    if kind == "qwen3":
        sizes["head_dim"] = 16
    module = module_class(config_class(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            mean, scale = (1.0, 0.3) if "norm" in name else (0.0, 0.15)
            weight.copy_(torch.randn_like(weight) * scale + mean)
    return module


def save(module: Any, folder: Path, *, mask: bool = False, **options: Any) -> Path:
    """The folder that transformers saves, with a tokenizer that has a mask or none."""
    module.save_pretrained(folder, **options)
    for path in TOKENIZER.iterdir():
        if path.name.startswith(("tokenizer", "special")):
            shutil.copy(path, folder)
    if not mask:
        remove_mask(folder)
    return folder


def remove_mask(folder: Path) -> None:
    """Takes the mask token, the last one, out of the tokenizer files."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        raw = json.loads((folder / name).read_text())
        raw.pop("mask_token", None)
        raw.get("added_tokens_decoder", {}).pop("775", None)
        (folder / name).write_text(json.dumps(raw))
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["id"] != 775]
    raw["model"]["vocab"] = {
        token: n for token, n in raw["model"]["vocab"].items() if n != 775
    }
    (folder / "tokenizer.json").write_text(json.dumps(raw))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_causal_logits_are_those_of_transformers(tmp_path, kind, tied):
    module = build(kind, tie_word_embeddings=tied)
    save(module, tmp_path / "source", max_shard_size="40KB")
    assert (tmp_path / "source" / "model.safetensors.index.json").exists()
    start = from_model(tmp_path / "source", opening=CAUSAL)
    with torch.no_grad():
        expected = module(torch.tensor(TOKENS).long()).logits.numpy()
    ours = np.asarray(jax.jit(forward(start.config))(start.params, TOKENS))
    assert start.config.tie_embeddings == tied
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


FAMILIES = {
    ("qwen2", "full", True): "dream",
    ("qwen2", "block_causal", True): "fast-dllm-v2",
    ("qwen2", "full", False): "a2d",
    ("qwen2", "block_causal", False): "a2d",
    ("qwen3", "block_causal", False): "sdar",
    ("qwen3", "full", True): "a2d",
    ("llama", "full", False): "llada",
    ("llama", "block_causal", True): "a2d",
}


@pytest.mark.parametrize(("kind", "attention", "shift"), FAMILIES)
def test_an_opened_model_is_saved_and_loaded(tmp_path, kind, attention, shift):
    """Whatever its family, the checkpoint holds the same model; its mask has a row."""
    save(build(kind), tmp_path / "source")
    opening = Opening(attention=attention, block_length=4, shift=shift)
    start = from_model(tmp_path / "source", opening=opening)
    config = start.config
    assert config.family == FAMILIES[kind, attention, shift]
    assert (config.attention, config.block_length) == (attention, 4)
    wanted = {"full": "full", "block_causal": "block"}[attention] if shift else "none"
    assert config.logits_shift == wanted
    assert (config.mask_id, config.vocab_size, config.vocab_rows) == (775, 776, 784)
    assert config.pad_id == 772 and 772 in config.stop_ids
    start.save(tmp_path / "saved", dtype="float32")
    model = checkpoint.load(tmp_path / "saved", block_length=4)
    assert dataclasses.replace(model.config, name=config.name) == config
    assert_equal(model.params, start.params)
    codec = model.codec
    assert codec.mask_id == 775 and codec.size == 776
    assert codec.decode([775]) == "" and codec.decode(codec.encode_text("a b")) == "a b"
    plain = checkpoint.describe("sdar-1m").codec
    assert codec.encode_text("How many?") == plain.encode_text("How many?")


def test_an_opened_model_decodes(tmp_path, quick_compiles):
    from jaxdave.engine.decode_config import DecodeConfig
    from jaxdave.engine.decoders import make_decoder
    from jaxdave.engine.generation import generate

    save(build("qwen3"), tmp_path / "source")
    opening = Opening(attention="block_causal", block_length=4)
    from_model(tmp_path / "source", opening=opening).save(
        tmp_path / "saved", dtype="float32"
    )
    model = checkpoint.load(tmp_path / "saved")
    prompt = model.codec.encode_text("How many?")
    decoder = make_decoder(model.config, DecodeConfig(max_new_tokens=8))
    (completion,) = generate(decoder, model.params, [prompt])
    assert 0 < len(completion.tokens) <= 8
    assert all(0 <= token < 775 for token in completion.tokens)

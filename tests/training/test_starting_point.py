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
from helpers.checkpoint_folders import TOKENIZER, assert_equal
from safetensors.numpy import load_file, save_file

from jaxdave.io import checkpoint, orbax_io
from jaxdave.io.autoregressive import Opening
from jaxdave.models.forward import forward
from jaxdave.models.presets import preset
from jaxdave.models.rope import rope_table
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
    error = np.abs(ours - expected)
    # The row of the new mask token is another, with or without a head of its own.
    assert error[..., 775].max() > 0.1
    error[..., 775] = 0
    assert error.max() < 1e-5 * np.abs(expected).max()


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_scaled_frequencies_are_those_of_transformers(tmp_path, kind):
    """Of the eight, some are kept, some divided by the factor and some in between."""
    module = build(kind, head_dim=16, rope_parameters=LLAMA3)
    save(module, tmp_path / "source")
    start = from_model(tmp_path / "source", opening=CAUSAL)
    theirs = module.model.rotary_emb.inv_freq.numpy()
    plain = 1e4 ** (-np.arange(0, 16, 2) / 16)
    parts = theirs / plain
    assert parts.max() == pytest.approx(1) and parts.min() == pytest.approx(1 / 8)
    assert ((parts > 0.13) & (parts < 0.99)).any()
    angles = np.arange(40, dtype=np.float32)[:, None] * theirs
    for ours, expected in zip(
        rope_table(start.config, 40), (np.cos(angles), np.sin(angles)), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    with torch.no_grad():
        expected = module(torch.tensor(TOKENS).long()).logits.numpy()[..., :775]
    logits = jax.jit(forward(start.config))
    ours = np.asarray(logits(start.params, TOKENS))[..., :775]
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()
    # Without the scaling it is another model.
    config = dataclasses.replace(start.config, rope_scaling=None)
    other = np.asarray(forward(config)(start.params, TOKENS))[..., :775]
    assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max()
    # Only our own layout can say so; LLaDA's cannot.
    assert start.config.family == "a2d"
    full = from_model(tmp_path / "source", opening=Opening(attention="full"))
    assert full.config.family == "a2d"
    full.save(tmp_path / "saved", dtype="float32")
    again = checkpoint.describe(tmp_path / "saved").config
    assert dataclasses.replace(again, name=full.config.name) == full.config
    stored = orbax_io.to_json(full.config, "float32")
    read = orbax_io.read_config(json.loads(json.dumps(stored)), tmp_path)
    assert read == full.config


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


def test_an_opened_model_decodes(tmp_path):
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
    (completion,) = generate(decoder, model.params, [prompt]).completions
    assert completion.decoded_tokens == 8
    assert all(0 <= token < 775 for token in completion.token_ids)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", [775, 784])
def test_a_new_mask_token_has_the_mean_of_all_rows(tmp_path, rows, tied):
    module = build("qwen3", rows=rows, tie_word_embeddings=tied)
    save(module, tmp_path / "source")
    opening = Opening(attention="full", mask_token="[hidden]")
    start = from_model(tmp_path / "source", opening=opening, dtype="bfloat16")
    config, params = start.config, start.params
    assert config.vocab_rows == max(rows, 776) and config.vocab_size == 776
    assert start.open_codec().decode([775]) == "" and config.mask_id == 775
    assert json.loads(start.tokenizer_files["special_tokens_map.json"])[
        "mask_token"
    ] == ("[hidden]")
    tables = {"embedding": module.model.embed_tokens} | (
        {} if tied else {"head": module.lm_head}
    )
    assert ("head" in params) != tied
    for name, table in tables.items():
        stored = jnp.asarray(table.weight.detach().numpy(), jnp.bfloat16)
        ours = np.asarray(params[name])
        np.testing.assert_array_equal(ours[:775], stored[:775])
        np.testing.assert_array_equal(ours[776:], stored[776:])
        mean = np.asarray(stored[:775], np.float64).mean(axis=0)
        np.testing.assert_allclose(ours[775].astype(float), mean, rtol=2**-8)


@pytest.mark.parametrize(
    ("named", "token", "token_id"),
    [(None, "<|MASK|>", 775), ("<|im_start|>", "<|im_start|>", 773)],
)
def test_a_token_that_is_there_keeps_its_row(tmp_path, named, token, token_id):
    module = build("qwen2")
    save(module, tmp_path / "source", mask=named is None)
    opening = Opening(attention="full", mask_token=named)
    start = from_model(tmp_path / "source", opening=opening)
    assert start.config.mask_id == token_id
    assert start.open_codec().mask_id == token_id
    settings = json.loads(start.tokenizer_files["tokenizer_config.json"])
    assert settings["mask_token"] == token
    np.testing.assert_array_equal(
        start.params["embedding"], module.model.embed_tokens.weight.detach().numpy()
    )
    start.save(tmp_path / "saved", dtype="float32")
    assert checkpoint.describe(tmp_path / "saved").config.mask_id == token_id


def test_a_tokenizer_of_transformers_knows_the_new_token(tmp_path):
    """Qwen2's own class is more than tokenizer.json says, so transformers reads it."""
    save(build("qwen2"), tmp_path / "source")
    model = json.loads((tmp_path / "source" / "tokenizer.json").read_text())["model"]
    merges = [tuple(m.split()) if isinstance(m, str) else m for m in model["merges"]]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(m) for m in merges]
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    )
    tokenizer.save_pretrained(tmp_path / "source")
    settings = json.loads((tmp_path / "source/tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "Qwen2Tokenizer"
    start = from_model(tmp_path / "source", opening=Opening(attention="full"))
    size = len(tokenizer)
    assert start.config.mask_id == size and start.config.vocab_size == size + 1
    start.save(tmp_path / "saved", dtype="float32")
    codec = checkpoint.load(tmp_path / "saved").codec
    assert codec.size == size + 1
    ids = codec.encode_text("How many pens are there?")
    assert ids == tokenizer("How many pens are there?")["input_ids"]
    # As one token, which prompts must not hold.
    with pytest.raises(ValueError, match=f"mask token .id {size}"):
        codec.encode_text("How <|mask|> pens?")


def test_stop_tokens_are_those_of_generation(tmp_path):
    save(build("qwen2"), tmp_path / "source")
    path = tmp_path / "source" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [771, 772], "pad_token_id": 772}))
    start = from_model(tmp_path / "source", opening=Opening(attention="full"))
    # <|im_end|> ends a turn, whatever the file says.
    assert start.config.stop_ids == (771, 772, 774) and start.config.pad_id == 772


def test_scratch_and_diffusion_models(tmp_path):
    config = preset("sdar-1m", num_layers=1, hidden=32, inter=32)
    start = from_scratch(config, tokenizer="sdar-1m", seed=3, dtype="bfloat16")
    assert start.params["norm"]["scale"].dtype == jnp.bfloat16
    other = from_scratch(config, tokenizer="sdar-1m", seed=4, dtype="bfloat16")
    assert not np.array_equal(start.params["embedding"], other.params["embedding"])
    start.save(tmp_path / "saved", dtype="bfloat16")
    again = from_model(tmp_path / "saved", dtype="bfloat16")
    assert_equal(again.params, start.params)
    assert again.tokenizer_files == start.tokenizer_files
    # Other parameters of the same start.
    start.save(tmp_path / "saved", other.params, dtype="bfloat16")
    assert_equal(
        to_stacked(checkpoint.load(tmp_path / "saved", dtype="bfloat16").params),
        other.params,
    )
    with pytest.raises(ValueError, match="has 776 ids, more than the vocab_rows=700"):
        small = dataclasses.replace(
            config, vocab_rows=700, vocab_size=700, mask_id=1, pad_id=2
        )
        from_scratch(small, tokenizer="sdar-1m")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "causal"}, "attention='causal' must be 'full' or"),
        ({"attention": "block_causal"}, "needs a block_length, such as 4"),
        (
            {"attention": "block_causal", "block_length": 5},
            "block_length=5 must divide",
        ),
        ({"attention": "full", "mask_token": ""}, "mask_token='' must be the text"),
    ],
)
def test_openings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        Opening(**settings)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def llama_once(tmp_path_factory):
    return save(build("llama"), tmp_path_factory.mktemp("llama") / "source")


@pytest.fixture
def llama(tmp_path, llama_once):
    return Path(shutil.copytree(llama_once, tmp_path / "llama"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt2"},
            "model_type='gpt2' .*must be one of qwen2, qwen3, llama",
        ),
        ({"mlp_bias": True}, "mlp_bias=True must be False"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' must be 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling=.*None"),
        (
            {"rope_scaling": {**LLAMA3, "factor": "8"}},
            "factor='8' of rope_scaling must",
        ),
        (
            {"rope_scaling": {**LLAMA3, "low_freq_factor": 9}},
            "low_freq_factor=9.*below",
        ),
        ({"intermediate_size": 48}, r"gate_proj.weight has shape \(40, 32\), not \(48"),
        ({"num_hidden_layers": 3}, "missing tensor model.layers.2.input_layernorm"),
        ({"num_hidden_layers": 1}, "extra tensor model.layers.1.input_layernorm"),
    ],
)
def test_folders_of_other_models_are_refused(llama, changes, message):
    raw = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**raw, **changes}))
    refuse(llama, message)


def test_tensors_that_are_missing_are_named(llama):
    tensors = load_file(llama / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, llama / "model.safetensors")
    refuse(llama, "missing tensor model.norm.weight")
    (llama / "model.safetensors").unlink()
    refuse(llama, "model.safetensors: missing file")


def test_tokenizers_that_no_token_can_be_added_to(llama):
    refuse(llama, "'<|endoftext|>' pads or ends .* .id 772", mask_token="<|endoftext|>")
    (llama / "tokenizer.json").rename(llama / "vocab.json")
    vocab = json.loads((llama / "vocab.json").read_text())["model"]["vocab"]
    (llama / "vocab.json").write_text(json.dumps(vocab | {"<|endoftext|>": 772}))
    refuse(llama, "no tokenizer.json to add '<|mask|>' to")


def refuse(folder, message, **settings) -> None:
    opening = Opening(attention="full", **settings)
    with pytest.raises(ValueError, match=message.replace("|", "[|]")) as caught:
        from_model(folder, opening=opening)
    assert "\n" not in str(caught.value)


def test_the_two_kinds_are_not_mixed_up(llama):
    with pytest.raises(ValueError, match="attention has to be opened"):
        from_model(llama)
    with pytest.raises(ValueError, match="attention has to be opened"):
        from_model(llama, opening=CAUSAL, mask_id=3)
    with pytest.raises(ValueError, match="model_type='sdar' .*leave the opening out"):
        from_model("sdar-1m", opening=CAUSAL)
    # What has not been trained is not decoded.
    with pytest.raises(ValueError, match="unknown architecture, model_type='llama'"):
        checkpoint.load(llama)

"""Real config, tokenizer, template and index of an SDAR folder around tiny weights."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.family_cases import Case
from jaxdave_convert import conversion

import jaxdave
from jaxdave.io.tokenizer import load_codec
from jaxdave.models.forward import forward
from jaxdave.models.presets import preset

pytest.importorskip("torch")
from helpers import torch_families as pytorch  # noqa: E402

REAL = Path(__file__).parents[3] / "shared" / "data" / "sdar-4b-chat"
TINY = Case(
    "real", "sdar", layers=1, hidden=8, heads=2, kv_heads=1, rows=151936, block=4
)
TURNS = [
    {"role": "user", "content": "1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 🙂?"},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """PyTorch's module and our model, converted without any option.

    Of config.json only sizes change: the vocabulary and all ids are the real ones.
    """
    if not REAL.exists():
        pytest.skip(f"needs the SDAR-4B-Chat folder in {REAL.parent}")
    home = tmp_path_factory.mktemp("real")
    module = pytorch.build(TINY)
    module.save_pretrained(home / "source")
    for path in REAL.iterdir():
        if path.name != "model.safetensors.index.json":
            shutil.copy(path, home / "source")
    config = json.loads((REAL / "config.json").read_text())
    config |= dict(
        num_hidden_layers=1,
        hidden_size=8,
        intermediate_size=40,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    (home / "source" / "config.json").write_text(json.dumps(config))
    conversion.convert(home / "source", home / "ours")
    return module, jaxdave.load(home / "ours")


def test_config_is_the_preset_s(pair):
    """Only what was made small differs from the preset of the real model."""
    ours = dataclasses.asdict(pair[1].config)
    theirs = dataclasses.asdict(preset("sdar-4b"))
    sizes = {"num_layers", "hidden", "inter", "heads", "kv_heads", "head_dim"}
    different = {key for key in theirs if ours[key] != theirs[key]}
    assert different == sizes | {"name", "rotary_dim"}


def test_codec_is_the_source_s(pair):
    codec, real = pair[1].codec, load_codec(REAL)
    ids = codec.encode_messages(TURNS)
    assert ids == real.encode_messages(TURNS) and codec.decode(ids) == real.decode(ids)
    assert (codec.mask_id, codec.stop_ids) == (151669, real.stop_ids)


def test_tensors_are_named_as_in_the_real_index(pair):
    index = json.loads((REAL / "model.safetensors.index.json").read_text())
    layer = {name for name in index["weight_map"] if ".layers.0." in name}
    top = {name for name in index["weight_map"] if ".layers." not in name}
    saved = {name for name, _ in pair[0].named_parameters()}
    assert saved == layer | top and len(saved) == 14


def test_logits_of_real_ids(pair):
    module, model = pair
    row = np.array([*model.codec.encode_messages(TURNS), *[151669] * 6], np.int32)
    ours = np.asarray(jax.jit(forward(model.config))(model.params, row[None]))[0]
    theirs, _ = pytorch.run(module, row, block=4)
    assert ours.shape == (len(row), 151936)
    assert np.abs(ours - theirs).max() <= 2e-5
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()

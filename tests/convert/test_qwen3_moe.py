"""SDAR's mixture and RND1 against Qwen3-MoE's own module, of transformers.

Their networks are Qwen3-MoE's under another attention mask, which is handed in: a
reference that shares nothing with the port of `helpers.torch_mixtures`.
"""

import json

import jax
import numpy as np
import pytest

import jaxdave
from jaxdave.models.forward import forward

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from helpers import torch_mixtures  # noqa: E402
from transformers import Qwen3MoeForCausalLM  # noqa: E402

NUM_TOKENS = 30


def additive_mask(is_causal: bool):
    """0 where a token sees another and the lowest float elsewhere, [1, 1, T, T]."""
    block = torch.arange(NUM_TOKENS) // (torch_mixtures.BLOCK if is_causal else 1000)
    visible = block[None, :] <= block[:, None]
    hidden = torch.finfo(torch.float32).min
    return torch.where(visible, 0.0, hidden)[None, None]


@pytest.fixture(params=["sdar-moe", "rnd1"])
def case(request, tmp_path):
    """(family, folder as published, transformers' model of the same weights)."""
    family = request.param
    state = torch_mixtures.build(family)
    source = torch_mixtures.save(family, state, tmp_path / "model")
    theirs = torch_mixtures.save(family, state, tmp_path / "theirs")
    raw = json.loads((theirs / "config.json").read_text())
    raw |= {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}
    raw |= {"rope_scaling": None, "sliding_window": None, "torch_dtype": "float32"}
    (theirs / "config.json").write_text(json.dumps(raw))
    module = Qwen3MoeForCausalLM.from_pretrained(
        theirs, dtype=torch.float32, attn_implementation="eager"
    )
    return family, source, module.eval()


def test_logits_are_those_of_transformers_module(case):
    family, source, module = case
    tokens = np.random.default_rng(1).integers(0, 777, NUM_TOKENS).astype(np.int32)
    with torch.no_grad():
        logits = module(
            input_ids=torch.tensor(tokens)[None].long(),
            attention_mask=additive_mask(family == "sdar-moe"),
            use_cache=False,
        ).logits[0]
    logits = logits.numpy()
    model = jaxdave.load(source)
    ours = np.asarray(jax.jit(forward(model.config))(model.params, tokens[None]))[0]
    if model.config.logits_shift == "full":
        logits = np.concatenate([logits[:1], logits[:-1]])
    assert np.abs(ours - logits).max() <= 2e-5
    assert (ours.argmax(-1) == logits.argmax(-1)).all()
    # The mask matters: under another the module itself has other logits.
    with torch.no_grad():
        causal = module(input_ids=torch.tensor(tokens)[None].long()).logits[0]
    assert np.abs(causal.numpy() - logits).max() > 1e-2

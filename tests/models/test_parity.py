"""Our SDAR module against transformers' PyTorch Qwen3 under a block-causal mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import KVCache
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.forward import forward
from jaxdave.models.param_shapes import param_shapes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ZERO = jnp.int32(0)
CASES = [
    # block, heads, kv heads, head size, hidden, tied
    (1, 4, 4, 8, 32, False),
    (4, 4, 2, 16, 32, False),
    (8, 6, 1, 8, 48, True),
    (32, 2, 2, 32, 32, False),
]


def twins(block, heads, kv_heads, head_dim, hidden, tied, seed=0):
    """A random Qwen3 and our parameters with its weights."""
    torch.manual_seed(seed)
    reference = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=50, hidden_size=hidden, intermediate_size=40,
            num_hidden_layers=3, num_attention_heads=heads,
            num_key_value_heads=kv_heads, head_dim=head_dim, rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            tie_word_embeddings=tied, attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            scale = 0.3 if "norm" in name else 0.15
            weight.copy_(torch.randn_like(weight) * scale + float("norm" in name))
    config = ModelConfig(
        name="t", family="sdar", num_layers=3, hidden=hidden, inter=40, heads=heads,
        kv_heads=kv_heads, head_dim=head_dim, rotary_dim=head_dim, vocab_rows=50,
        vocab_size=50, mask_id=49, pad_id=48, stop_ids=(47,), qk_norm=True,
        rope_theta=1e4, tie_embeddings=tied, block_length=block, max_positions=512,
    )  # fmt: skip
    return reference, config, renamed(reference.state_dict(), config)


def renamed(weights, config):
    """Our parameter tree filled from PyTorch names, stated apart from checkpoint.py."""
    w = {name: value.numpy() for name, value in weights.items()}
    layer = {
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj",
        "attn.q_norm": "self_attn.q_norm",
        "attn.k_norm": "self_attn.k_norm",
        "mlp.gate": "mlp.gate_proj",
        "mlp.up": "mlp.up_proj",
        "mlp.down": "mlp.down_proj",
    }

    def leaf(path, like):
        keys = [str(getattr(k, "key", getattr(k, "name", k))) for k in path]
        if keys[0] == "blocks":
            source = layer[".".join(keys[1:-1])]
            stack = [
                w[f"model.layers.{n}.{source}.weight"] for n in range(config.num_layers)
            ]
            array = np.stack([a.T if a.ndim == 2 else a for a in stack])
        elif keys[0] == "embedding":
            array = w["model.embed_tokens.weight"]
        elif keys[0] == "norm":
            array = w["model.norm.weight"]
        else:
            array = w["lm_head.weight"]
        assert array.shape == like.shape, keys
        return jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(leaf, param_shapes(config))


def block_causal(size, block):
    place = np.arange(size) // block
    return place[None, :] <= place[:, None]


def reference_logits(reference, tokens, block):
    """Logits and every layer's hidden states under an additive 4-D mask."""
    see = torch.tensor(block_causal(tokens.shape[1], block))[None, None]
    mask = torch.where(see, 0.0, float("-inf"))
    with torch.no_grad():
        out = reference(
            torch.tensor(tokens), attention_mask=mask, output_hidden_states=True
        )
    return out.logits.numpy()


@pytest.mark.parametrize("case", CASES)
def test_whole_logits_match_pytorch(case):
    reference, config, params = twins(*case)
    tokens = np.random.default_rng(0).integers(0, 50, (2, 64)).astype(np.int32)
    expected = reference_logits(reference, tokens.astype(np.int64), config.block_length)
    ours = np.asarray(jax.jit(forward(config))(params, tokens))
    assert np.abs(ours - expected).max() <= 2e-5
    assert (ours.argmax(-1) == expected.argmax(-1)).all()


def empty(config, capacity) -> KVCache:
    """A cache of one row with nothing in it."""
    shape = (config.num_layers, capacity, config.kv_heads, config.head_dim)
    return KVCache(jnp.zeros(shape), jnp.zeros(shape))


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("case", CASES)
def test_cached_windows_match_pytorch(case, numerics):
    """Prefill, cache and a window of two blocks give what no cache gives."""
    reference, config, params = twins(*case)
    block = config.block_length
    net = block_causal_model(config, numerics=numerics)
    tokens = np.random.default_rng(1).integers(0, 50, (1, 128)).astype(np.int32)
    cache = empty(config, 128)
    _, new = net.forward(
        params, jnp.asarray(tokens[:, :64]), jnp.int32(0), jnp.int32(0), cache
    )
    cache = jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_slice(a, b[:, 0], (0, 0, 0, 0)), cache, new
    )
    window = tokens[:, 64 : 64 + 2 * block]
    both = np.concatenate([window, (window + 1) % 50])
    hidden, _ = net.forward(
        params, jnp.asarray(both), jnp.int32(64), jnp.int32(0), cache
    )
    for draft, seen in enumerate(both):
        whole = np.concatenate([tokens[0, :64], seen])[None].astype(np.int64)
        expected = reference_logits(reference, whole, block)[0, 64:]
        ours = np.asarray(net.logits(params, hidden[draft], jnp.int32(0)))
        assert np.abs(ours - expected).max() <= 2e-5
        assert (ours.argmax(-1) == expected.argmax(-1)).all()


def test_bfloat16_is_close():
    reference, config, params = twins(*CASES[1])
    tokens = np.random.default_rng(2).integers(0, 50, (1, 64)).astype(np.int32)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    net = block_causal_model(config)
    cache = empty(config, 64)
    hidden, _ = net.forward(
        half, jnp.asarray(tokens), jnp.int32(0), jnp.int32(0), cache
    )
    ours = np.asarray(net.logits(half, hidden[0], jnp.int32(0)))
    expected = reference_logits(reference, tokens.astype(np.int64), config.block_length)
    error = np.linalg.norm(ours - expected[0]) / np.linalg.norm(expected)
    assert ours.dtype == np.float32 and error <= 2e-2

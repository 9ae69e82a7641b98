"""Mixture-of-experts models in plain PyTorch, and tiny random folders of them.

Written from the published modules' facts: tensors by their published names, the config
by its published keys. Nothing of jaxdave is used.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import checkpoint_folders
from safetensors.torch import save_file
from torch.nn import functional as F

torch.set_num_threads(1)
MASK, ROWS, BLOCK = 775, 784, 4
IDS = {"bos_token_id": 772, "eos_token_id": 772, "pad_token_id": 772}
_COMMON = {
    **IDS, "hidden_act": "silu", "hidden_size": 32, "intermediate_size": 80,
    "num_attention_heads": 4, "num_key_value_heads": 1, "num_hidden_layers": 3,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "vocab_size": ROWS, "mask_token_id": MASK,
}  # fmt: skip
_QWEN = {
    **_COMMON, "attention_bias": False, "head_dim": 16, "num_experts": 16,
    "num_experts_per_tok": 4, "moe_intermediate_size": 12, "norm_topk_prob": True,
    "decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "sdar-moe": {
        **_QWEN, "model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"],
        "block_size": BLOCK,
    },
    "rnd1": {
        **_QWEN, "model_type": "rnd1", "architectures": ["RND1LM"],
        "rope_scaling": False, "sliding_window": False,
    },
    "llada-moe": {
        **{k: v for k, v in _COMMON.items() if k != "intermediate_size"},
        "model_type": "llada", "architectures": ["LLaDAMoEModelLM"],
        "num_key_value_heads": 4, "dense_intermediate_size": 128,
        "expert_intermediate_size": 16, "shared_expert_intermediate_size": 20,
        "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": None,
        "qk_layernorm": True, "attention_bias": False, "clip_qkv": None,
        "moe_layer_freq": [1, 1, 1], "moe_router_enable_expert_bias": True,
        "moe_router_score_function": "softmax", "partial_rotary_factor": 1.0,
        "rms_norm_eps": 1e-5, "rope_theta": 50000,
    },
    "llada2": {
        **_COMMON, "model_type": "llada2_moe", "head_dim": 8,
        "architectures": ["LLaDA2MoeModelLM"], "first_k_dense_replace": 1,
        "moe_intermediate_size": 8, "num_experts": 16, "num_experts_per_tok": 4,
        "num_shared_experts": 1, "n_group": 4, "topk_group": 2,
        "score_function": "sigmoid", "moe_router_enable_expert_bias": True,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "router_dtype": "fp32",
        "partial_rotary_factor": 0.5, "rotary_dim": 4, "rope_theta": 600000,
        "use_bias": False, "use_qkv_bias": False, "use_qk_norm": True,
        "norm_head": False, "norm_softmax": False, "use_sliding_window": False,
        "sliding_window": 4096,
    },
}  # fmt: skip
"""Family -> config.json, whose keys are the published ones."""


def head_dim(raw: dict[str, Any]) -> int:
    return raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]


def is_dense(raw: dict[str, Any], layer: int) -> bool:
    return layer < raw.get("first_k_dense_replace", 0)


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape."""
    raw, own = CONFIGS[family], family == "llada2"
    hidden, size = raw["hidden_size"], head_dim(raw)
    q, kv = raw["num_attention_heads"] * size, raw["num_key_value_heads"] * size
    embedding = "word_embeddings" if own else "embed_tokens"
    inter = raw.get("moe_intermediate_size") or raw["expert_intermediate_size"]
    result = {
        f"model.{embedding}.weight": (ROWS, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (ROWS, hidden),
    }

    def mlp(prefix: str, width: int):
        return {
            f"{prefix}.gate_proj.weight": (width, hidden),
            f"{prefix}.up_proj.weight": (width, hidden),
            f"{prefix}.down_proj.weight": (hidden, width),
        }

    for layer in range(raw["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        result |= {
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
        if own:
            result |= {
                f"{at}.attention.query_key_value.weight": (q + 2 * kv, hidden),
                f"{at}.attention.dense.weight": (hidden, q),
                f"{at}.attention.query_layernorm.weight": (size,),
                f"{at}.attention.key_layernorm.weight": (size,),
            }
        else:
            result |= {
                f"{at}.self_attn.q_proj.weight": (q, hidden),
                f"{at}.self_attn.k_proj.weight": (kv, hidden),
                f"{at}.self_attn.v_proj.weight": (kv, hidden),
                f"{at}.self_attn.o_proj.weight": (hidden, q),
                f"{at}.self_attn.q_norm.weight": (size,),
                f"{at}.self_attn.k_norm.weight": (size,),
            }
        if is_dense(raw, layer):
            result |= mlp(f"{at}.mlp", raw["intermediate_size"])
            continue
        result[f"{at}.mlp.gate.weight"] = (raw["num_experts"], hidden)
        for expert in range(raw["num_experts"]):
            result |= mlp(f"{at}.mlp.experts.{expert}", inter)
        if own:
            result[f"{at}.mlp.gate.expert_bias"] = (raw["num_experts"],)
            result |= mlp(f"{at}.mlp.shared_experts", inter)
        if family == "llada-moe":
            result[f"{at}.mlp.expert_bias"] = (raw["num_experts"],)
            width = raw["shared_expert_intermediate_size"]
            result |= mlp(f"{at}.shared_expert", width)
    return result


def build(family: str) -> dict[str, torch.Tensor]:
    """Random tensors, of numbers that bfloat16 has."""
    draw = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes(family).items():
        value = torch.randn(shape, generator=draw)
        is_norm = "norm" in name
        scale = 0.3 if is_norm else 0.05 if "bias" in name else 0.15
        # Routers decide clearly, so that no choice hangs on a rounding error.
        scale = 0.5 if name.endswith("mlp.gate.weight") else scale
        state[name] = (float(is_norm) + scale * value).bfloat16().float()
    return state


def save(family: str, state: dict[str, torch.Tensor], folder: Path, parts: int = 2):
    """Writes a folder as the Hub has it, in so many weight files."""
    folder.mkdir()
    names = list(state)
    files = {n: f"model-{i % parts + 1:05d}.safetensors" for i, n in enumerate(names)}
    for file in set(files.values()):
        own = {n: state[n].contiguous() for n in names if files[n] == file}
        save_file(own, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIGS[family]))
    (folder / "generation_config.json").write_text(json.dumps(IDS))
    for path in checkpoint_folders.TOKENIZER.iterdir():
        if path.name.startswith(("tokenizer", "special")):
            shutil.copy(path, folder)
    return folder


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x_THD: torch.Tensor, theta: float, size: int) -> torch.Tensor:
    """Rotates the first `size` features of each head, in two halves."""
    inverse = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    angle = torch.arange(len(x_THD)).float()[:, None] * inverse[None]
    cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
    part, rest = x_THD[..., :size], x_THD[..., size:]
    turned = torch.cat([-part[..., size // 2 :], part[..., : size // 2]], -1)
    return torch.cat([part * cos + turned * sin, rest], -1)


def route(family: str, raw: dict, logits: torch.Tensor, bias):
    """(experts, weights) as the published router of the family computes them."""
    count = raw["num_experts_per_tok"]
    if family == "llada2":
        score = torch.sigmoid(logits)
        ranked = score + bias
        grouped = ranked.view(len(logits), raw["n_group"], -1)
        value = grouped.topk(2, dim=-1)[0].sum(-1)
        kept = torch.zeros_like(value).scatter_(
            1, value.topk(raw["topk_group"], dim=-1)[1], 1.0
        )
        masked = grouped.masked_fill(kept[..., None] == 0, -torch.inf)
        chosen = masked.view_as(score).topk(count, dim=-1)[1]
        weight = score.gather(1, chosen)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        return chosen, weight * raw["routed_scaling_factor"]
    score = torch.softmax(logits, -1)
    if family == "llada-moe":
        weight, chosen = (score + bias).topk(count, dim=-1)
        return chosen, weight
    weight, chosen = score.topk(count, dim=-1)
    return chosen, weight / weight.sum(-1, keepdim=True)


def run(family: str, state: dict[str, torch.Tensor], tokens_T: np.ndarray):
    """(logits [T, V], of every router: layer, its input [T, E], its choice [T, C])."""
    raw, own = CONFIGS[family], family == "llada2"
    size, eps = head_dim(raw), raw["rms_norm_eps"]
    heads, kv_heads = raw["num_attention_heads"], raw["num_key_value_heads"]
    rotated = int(size * raw.get("partial_rotary_factor", 1.0))
    position = torch.arange(len(tokens_T))
    is_causal = family in ("sdar-moe", "llada2")
    block = position // (BLOCK if is_causal else len(tokens_T))
    visible = block[None, :] <= block[:, None]
    embedding = "word_embeddings" if own else "embed_tokens"
    x, seen = state[f"model.{embedding}.weight"][torch.tensor(tokens_T).long()], []

    def mlp(prefix: str, x):
        gate, up, down = (
            state[f"{prefix}.{part}_proj.weight"] for part in ("gate", "up", "down")
        )
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    for layer in range(raw["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        normed = norm(x, state[f"{at}.input_layernorm.weight"], eps)
        attn = f"{at}.attention" if own else f"{at}.self_attn"
        if own:
            fused = normed @ state[f"{attn}.query_key_value.weight"].T
            cuts = [heads * size, kv_heads * size, kv_heads * size]
            q, k, v = fused.split(cuts, -1)
            norms, out = ("query_layernorm", "key_layernorm"), "dense"
        else:
            q, k, v = (normed @ state[f"{attn}.{n}_proj.weight"].T for n in "qkv")
            norms, out = ("q_norm", "k_norm"), "o_proj"
        q, k, v = (part.view(len(x), -1, size) for part in (q, k, v))
        q, k = (
            rotate(
                norm(part, state[f"{attn}.{n}.weight"], eps), raw["rope_theta"], rotated
            )
            for part, n in zip((q, k), norms, strict=True)
        )
        k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, v))
        score = torch.einsum("qhd,khd->hqk", q, k) / size**0.5
        score = torch.softmax(score.masked_fill(~visible, -torch.inf), -1)
        context = torch.einsum("hqk,khd->qhd", score, v).reshape(len(x), -1)
        x = x + context @ state[f"{attn}.{out}.weight"].T
        normed = norm(x, state[f"{at}.post_attention_layernorm.weight"], eps)
        if is_dense(raw, layer):
            x = x + mlp(f"{at}.mlp", normed)
            continue
        logits = normed.float() @ state[f"{at}.mlp.gate.weight"].float().T
        bias = state.get(f"{at}.mlp.{'gate.' * own}expert_bias")
        chosen, weight = route(family, raw, logits, bias)
        seen.append((layer, normed.numpy(), chosen.numpy()))
        output = torch.zeros_like(x)
        for t in range(len(x)):
            for expert, factor in zip(chosen[t].tolist(), weight[t], strict=True):
                output[t] += factor * mlp(f"{at}.mlp.experts.{expert}", normed[t])
        if own:
            output = output + mlp(f"{at}.mlp.shared_experts", normed)
        if family == "llada-moe":
            output = output + mlp(f"{at}.shared_expert", normed)
        x = x + output
    x = norm(x, state["model.norm.weight"], eps)
    return (x @ state["lm_head.weight"].T).numpy(), seen

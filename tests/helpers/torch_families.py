"""Tiny random checkpoints made, saved and evaluated by PyTorch's own libraries.

The modules are transformers' Qwen2, Qwen3, Llama and Ministral 3. Nothing of the
converter is used.
"""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import transformers
from helpers import checkpoint_folders
from helpers.family_cases import CONFIGS, IDS, MASK, YARN, Case

# Modules this small are only slowed down by more threads.
torch.set_num_threads(1)


def build(case: Case, scale: float = 0.15) -> Any:
    """Builds the family's PyTorch module with random weights, norms and biases too.

    The weights are numbers that bfloat16 has, so that both dtypes are the same model.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=case.rows,
        hidden_size=case.hidden,
        intermediate_size=40,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        head_dim=case.head_dim,
        rms_norm_eps=case.eps,
        tie_word_embeddings=case.tied,
        rope_parameters={"rope_type": "default", "rope_theta": case.theta},
        attn_implementation="eager",
    )
    classes: Any
    if case.family == "sdar" or case.family.startswith("tiny-a2d"):
        classes = transformers.Qwen3ForCausalLM, transformers.Qwen3Config
        sizes["attention_bias"] = case.bias
    elif case.family in ("llada", "illada"):
        classes = transformers.LlamaForCausalLM, transformers.LlamaConfig
        sizes["attention_bias"] = case.bias
    elif case.family == "nemotron":
        classes = transformers.Ministral3ForCausalLM, transformers.Ministral3Config
        sizes["rope_parameters"] = {**YARN, "rope_theta": case.theta}
        sizes["sliding_window"] = None
    else:
        classes = transformers.Qwen2ForCausalLM, transformers.Qwen2Config
    module_class, config_class = classes
    module = module_class(config_class(**sizes)).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            is_norm = "norm" in name
            value = torch.randn_like(weight) * (0.3 if is_norm else scale)
            weight.copy_((value + float(is_norm)).bfloat16())
    return module


def save(case: Case, module: Any, folder: Path) -> Path:
    """Writes the module as the family's folder on the Hub looks."""
    folder.mkdir()
    if case.family in ("llada", "nemotron"):
        rename = llada_name if case.family == "llada" else nemotron_name
        state = {rename(k): v for k, v in module.state_dict().items()}
        huggingface_hub.save_torch_state_dict(state, folder, max_shard_size=case.shard)
    else:
        module.save_pretrained(folder, max_shard_size=case.shard)
    config = CONFIGS[case.family](case)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(IDS))
    for path in checkpoint_folders.TOKENIZER.iterdir():
        if path.name.startswith(("tokenizer", "special")):
            shutil.copy(path, folder)
    return folder


def llada_name(name: str) -> str:
    """Translates a tensor name of Llama's module to LLaDA's."""
    layer = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ff_norm",
        "self_attn.q_proj": "q_proj",
        "self_attn.k_proj": "k_proj",
        "self_attn.v_proj": "v_proj",
        "self_attn.o_proj": "attn_out",
        "mlp.gate_proj": "ff_proj",
        "mlp.up_proj": "up_proj",
        "mlp.down_proj": "ff_out",
    }
    top = {"model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out"}
    stem = name.removesuffix(".weight")
    if match := re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem):
        return f"model.transformer.blocks.{match[1]}.{layer[match[2]]}.weight"
    return f"model.transformer.{top[stem]}.weight"


def nemotron_name(name: str) -> str:
    """Translates a tensor name of Ministral's module to Nemotron's."""
    if name == "lm_head.weight":
        return "diffusion_head.weight"
    return name.replace("model.", "encoder.", 1)


def run(module: Any, tokens_T: np.ndarray, block: int | None):
    """Logits [T, V] of one row, and the hidden states of every layer [N + 1, T, E].

    They are the module's own: its dtype, nothing shifted. `block` is the block length;
    None: attention is full. Nemotron's blocks are causal unless they hold masks.
    """
    position = np.arange(len(tokens_T))
    block_of = position // (block or len(tokens_T))
    mask = block_of[None, :] <= block_of[:, None]
    if isinstance(module, transformers.Ministral3ForCausalLM):
        is_open = np.isin(block_of, block_of[tokens_T == MASK])
        mask &= is_open[:, None] | (position[None, :] <= position[:, None])
    return run_masked(module, tokens_T[None], mask[None], position[None])


def run_masked(module: Any, tokens_1T, mask_1TT, position_1T):
    """The same for an attention mask (query, key) and positions of the caller's."""
    lowest = torch.finfo(module.dtype).min
    bias = torch.where(torch.tensor(mask_1TT)[:, None], 0.0, lowest).to(module.dtype)
    with torch.no_grad():
        output = module(
            torch.tensor(tokens_1T).long(),
            attention_mask=bias,
            position_ids=torch.tensor(position_1T).long(),
            output_hidden_states=True,
        )
    states = torch.cat(output.hidden_states)
    return output.logits[0].float().numpy(), states.float().numpy()


def to_bfloat16(module: Any) -> Any:
    """Copies the module with its weights in bfloat16."""
    return copy.deepcopy(module).bfloat16()

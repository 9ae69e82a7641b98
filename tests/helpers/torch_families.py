"""Tiny random checkpoints made and saved by PyTorch's own libraries, and what they say.

The modules are transformers' Qwen2, Qwen3 and Llama. Nothing of the converter is used.
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
from helpers.family_cases import CONFIGS, IDS, Case

# Modules this small only lose by having their work divided.
torch.set_num_threads(1)


def build(case: Case, scale: float = 0.15) -> Any:
    """The family's PyTorch module with random weights, norms and biases included.

    The weights are numbers that bfloat16 has, so that both dtypes hold the same model.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=case.rows, hidden_size=case.hidden, intermediate_size=40,
        num_hidden_layers=case.layers, num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads, head_dim=case.head_dim,
        rms_norm_eps=case.eps, tie_word_embeddings=case.tied,
        rope_parameters={"rope_type": "default", "rope_theta": case.theta},
        attn_implementation="eager",
    )  # fmt: skip
    kind: Any
    if case.family == "sdar":
        kind = transformers.Qwen3ForCausalLM, transformers.Qwen3Config
    elif case.family == "llada":
        kind = transformers.LlamaForCausalLM, transformers.LlamaConfig
    else:
        kind = transformers.Qwen2ForCausalLM, transformers.Qwen2Config
    module = kind[0](kind[1](**sizes)).eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            is_norm = "norm" in name
            value = torch.randn_like(weight) * (0.3 if is_norm else scale)
            weight.copy_((value + float(is_norm)).bfloat16())
    return module


def save(case: Case, module: Any, folder: Path) -> Path:
    """Write the module as the family's folder on the Hub looks like."""
    folder.mkdir()
    if case.family == "llada":
        state = {llada_name(k): v for k, v in module.state_dict().items()}
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
    """What LLaDA's module calls a tensor of Llama's."""
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
    if found := re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem):
        return f"model.transformer.blocks.{found[1]}.{layer[found[2]]}.weight"
    return f"model.transformer.{top[stem]}.weight"


def run(module: Any, tokens_T: np.ndarray, block: int | None):
    """Logits [T, V] of one row, and the states of every layer [N + 1, T, E].

    They are the module's own: its dtype, nothing shifted.
    """
    place = np.arange(len(tokens_T)) // (block or len(tokens_T))
    see = place[None, :] <= place[:, None]
    return run_masked(module, tokens_T[None], see[None], np.arange(len(tokens_T))[None])


def run_masked(module: Any, tokens_1T, see_1TT, place_1T):
    """The same for a mask and positions of the caller's choice."""
    lowest = torch.finfo(module.dtype).min
    mask = torch.where(torch.tensor(see_1TT)[:, None], 0.0, lowest).to(module.dtype)
    with torch.no_grad():
        out = module(
            torch.tensor(tokens_1T).long(), attention_mask=mask,
            position_ids=torch.tensor(place_1T).long(), output_hidden_states=True,
        )  # fmt: skip
    states = torch.cat(out.hidden_states)
    return out.logits[0].float().numpy(), states.float().numpy()


def halved(module: Any) -> Any:
    """A copy of the module in bfloat16."""
    return copy.deepcopy(module).bfloat16()

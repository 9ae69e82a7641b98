"""Tiny random SDAR folders with the demo's tokenizer, for tests."""

import importlib.resources
from pathlib import Path

from jaxdave import checkpoint
from jaxdave.config import ModelConfig
from jaxdave.model import denoiser

TOKENIZER = Path(str(importlib.resources.files("jaxdave") / "demo" / "sdar-1m"))
CONFIG = ModelConfig(
    name="tiny",
    family="sdar",
    num_layers=2,
    hidden=16,
    inter=24,
    heads=4,
    kv_heads=2,
    head_dim=8,
    rotary_dim=8,
    vocab_rows=784,
    vocab_size=776,
    qk_norm=True,
    mask_id=775,
    pad_id=772,
    stop_ids=(774, 772),
    block_length=4,
    max_positions=256,
)


def make(folder: Path, config: ModelConfig = CONFIG, dtype: str = "float32"):
    """Save random parameters to a folder and return them."""
    params = denoiser.init(config, 0)
    checkpoint.save(folder, config, params, dtype=dtype, tokenizer=TOKENIZER)
    return params

"""The size of small random models of any family."""

SMALL = {
    "num_layers": 2,
    "hidden": 32,
    "inter": 64,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 16,
    "rotary_dim": 16,
    "vocab_rows": 64,
    "vocab_size": 60,
    "mask_id": 59,
    "pad_id": 57,
    "stop_ids": (58, 57),
    "block_length": 4,
}
"""Fields of `ModelConfig` for `models.presets.preset`."""

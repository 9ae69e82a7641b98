"""Every registered family: a folder loads as it was saved, and decodes losslessly.

A family that is added to `families.FAMILIES` is asked here without being listed. That
its network computes what PyTorch's does is tests/convert/test_parity.py's concern.
"""

import dataclasses

import pytest
from helpers import checkpoint_folders
from helpers.plain_experts import KINDS

from jaxdave.core.config import YarnScaling
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.sampler import Sampler
from jaxdave.io import checkpoint
from jaxdave.io.families import FAMILIES, FULL_ATTENTION_BLOCK

EXPERTS = {
    "sdar-moe": KINDS["qwen"],
    "rnd1": KINDS["qwen"],
    "llada-moe": KINDS["llada"],
    "llada2": KINDS["llada2"],
}

YARN = YarnScaling(
    factor=4.0,
    positions=24,
    beta_fast=4.0,
    beta_slow=0.25,
    mscale=1.0,
    mscale_all_dim=0.8,
    query_beta=0.1,
)


def tiny_config(family):
    """A tiny model of a family: its own switches, everything else as usual."""
    is_full = family.config_values.get("attention") == "full"
    switches = {"qk_norm": False, **family.config_values}
    if "rope_fp32" in family.config_keys:
        switches["rope_fp32"] = True
    if family.experts is not None:
        switches["experts"] = EXPERTS[family.name]
    if family.is_rope_scaled:
        switches["rope_scaling"] = YARN
    if family.is_partly_rotated:
        switches["rotary_dim"] = checkpoint_folders.CONFIG.head_dim // 2
    return dataclasses.replace(
        checkpoint_folders.CONFIG,
        family=family.name,
        block_length=FULL_ATTENTION_BLOCK if is_full else 4,
        **switches,
    )


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_folder_loads_as_it_was_saved_and_decodes_losslessly(family, tmp_path):
    config = tiny_config(family)
    params = checkpoint_folders.make(tmp_path / "tiny", config)
    model = checkpoint.load(tmp_path / "tiny")
    assert model.config == config
    checkpoint_folders.assert_equal(model.params, params)
    settings = DecodeConfig(max_new_tokens=32, draft_steps=4, numerics="exact")
    drafted = Sampler(model, settings)("How many pens?")
    plain = Sampler(model, settings).undrafted()("How many pens?")
    assert drafted == plain and drafted.nfe.total <= plain.nfe.total

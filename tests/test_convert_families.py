"""What the families' tables say, against the published counts."""

import math

import pytest
from jaxdave_convert import families

from jaxdave.config import PRESETS, preset

# Tensors and parameters of the published checkpoints: index files, or layer counts.
TOTALS = {
    "dream-7b": (339, 7_615_616_512),
    "dream-coder-7b": (339, 7_615_616_512),
    "diffucoder-7b": (339, 7_615_616_512),
    "llada-8b": (291, 8_015_581_184),
    "llada-1.5": (291, 8_015_581_184),
    "sdar-1.7b": (311, 2_031_739_904),
    "sdar-4b": (399, 4_411_424_256),
    "sdar-8b": (399, 8_190_735_360),
    "trado-4b": (399, 4_411_424_256),
    "trado-8b": (399, 8_190_735_360),
    "fast-dllm-v2-1.5b": (338, 1_543_714_304),
    "fast-dllm-v2-7b": (339, 7_615_616_512),
}


@pytest.mark.parametrize("name", PRESETS)
def test_totals(name):
    config = preset(name)
    found = families.targets(families.FAMILIES[config.family], config)
    sizes = sum(math.prod(target.shape) for target in found.values())
    assert (len(found), sizes) == TOTALS[name]


def test_llada_calls_two_tensors_ff_out():
    found = families.targets(families.LLADA, preset("llada-8b"))
    head = found["model.transformer.ff_out.weight"]
    down = found["model.transformer.blocks.3.ff_out.weight"]
    gate = found["model.transformer.blocks.3.ff_proj.weight"]
    assert (head.slot.path, head.shape) == ("head/kernel", (126464, 4096))
    assert (down.slot.path, down.slot.layer) == ("blocks/mlp/down/kernel", 3)
    assert (gate.slot.path, gate.shape) == ("blocks/mlp/gate/kernel", (12288, 4096))

"""What the decode compiled for TPUs does, on one chip and on a mesh of four."""

import pytest
from helpers.compiled_reports import compiled_report, needs_tpu_compiler

pytestmark = needs_tpu_compiler

# Half of them are compiled too. Stacks of two layers fit into the chip's fast memory,
# so that there the compiler fetches both in every turn.
V5E = ("--target", "v5e:2x2", "--model", "sdar-4b", "--layers", "8")
MIB = 2**20


def test_one_chip_copies_no_weights():
    report = compiled_report(*V5E)
    assert report["round"]["weights_copied"] == 0
    assert report["once"]["weights_copied"] == 0
    assert not report["collectives"]


def test_one_chip_reads_the_weights_of_its_layers_once():
    report = compiled_report(*V5E)
    assert report["layer"]["weights_read"] == pytest.approx(LAYER_BYTES, rel=1e-3)


# q and o, k and v, gate and up and down, in bfloat16.
LAYER_BYTES = 2 * 2560 * (2 * 4096 + 2 * 1024 + 3 * 9728)


@pytest.mark.parametrize("quantize", [(), ("--quantize", "int8")])
def test_over_model_a_layer_has_two_all_reduces(quantize):
    report = compiled_report(*V5E, "--mesh", "model=4", *quantize)
    kinds = {one["kind"] for one in report["collectives"]}
    assert kinds == {"all-reduce"}
    assert report["layer"]["collectives"] == 2
    # The embedding, and what the shards of the head exchange.
    assert report["outside"]["collectives"] <= 4
    assert max(one["largest"] for one in report["collectives"]) <= MIB
    assert report["round"]["weights_copied"] == 0


def test_over_model_the_work_is_split_and_not_repeated():
    one, four = compiled_report(*V5E), compiled_report(*V5E, "--mesh", "model=4")
    assert four["weight_bytes"] < 0.26 * one["weight_bytes"]
    assert four["temporary_bytes"] < 1.5 * one["temporary_bytes"] / 4
    assert four["compile_cpu_seconds"] < 2 * one["compile_cpu_seconds"]


def test_over_data_nothing_is_exchanged():
    report = compiled_report(*V5E, "--mesh", "data=4", "--batch", "8")
    assert not report["collectives"]

"""What the decode compiled for an H100 does: copies, memory, launches, bytes.

The aims are those of a decode near the memory's rate: weights are read once, where they
lie, and kernels are few. The shapes are SDAR-4B's, in bfloat16, under guarded numerics.
"""

import pytest
from helpers.compiled_reports import (
    compiled_report,
    needs_gpu_compiler,
    read_in_all,
)

pytestmark = needs_gpu_compiler

H100 = ("--target", "h100", "--model", "sdar-4b")
# The loop of 8 drafts in its depth, whose memory is of interest; the others in two
# small depths, which tell a layer from the rest just as well.
PROGRAMS = {
    "8 drafts": ("--draft-steps", "8"),
    "1 draft": ("--draft-steps", "1", "--layers", "4"),
    "guard": ("--program", "guard", "--layers", "4"),
    "int8": ("--quantize", "int8", "--layers", "4"),
}
MAX_TEMPORARIES = 100e6
MAX_LAUNCHES_PER_LAYER, MAX_LAUNCHES_OUTSIDE = 16, 60
MAX_READ = 1.15
MAX_HOST_LAUNCHES = 12


@pytest.fixture(params=PROGRAMS)
def report(request: pytest.FixtureRequest):
    return compiled_report(*H100, *PROGRAMS[request.param])


def test_no_weights_are_copied(report):
    assert report["round"]["weights_copied"] == 0
    assert report["once"]["weights_copied"] == 0


def test_temporaries_are_activations_only(report):
    assert report["temporary_bytes"] <= MAX_TEMPORARIES


def test_a_layer_is_few_launches(report):
    assert report["layer"]["launches"] <= MAX_LAUNCHES_PER_LAYER


def test_a_round_is_few_launches_outside_the_layers(report):
    assert report["outside"]["launches"] <= MAX_LAUNCHES_OUTSIDE


def test_weights_and_cache_are_read_once(report):
    needed = report["weight_bytes"] + report["cache_bytes"]
    assert read_in_all(report) <= MAX_READ * needed


def test_launches_are_those_that_xla_lists(report):
    """Two ways to count: instructions by hand, and XLA's own list of what it runs."""
    counts = report["round"]
    listed = counts["host_launches"] - counts["buffers"] + counts["buffered"]
    assert counts["launches"] == listed


def test_the_host_launches_a_round_in_a_few_command_buffers(report):
    assert report["layer"]["host_launches"] < 1
    assert report["round"]["host_launches"] <= MAX_HOST_LAUNCHES


def test_no_weights_are_copied_on_a_mesh():
    mesh = ("--mesh", "data=1,model=4", "--draft-steps", "8", "--layers", "4")
    report = compiled_report(*H100, *mesh)
    assert report["round"]["weights_copied"] == 0


def test_int8_weights_are_half_of_the_bytes():
    half = compiled_report(*H100, *PROGRAMS["int8"])["weight_bytes"]
    whole = compiled_report(*H100, *PROGRAMS["1 draft"])["weight_bytes"]
    assert half <= 0.51 * whole

"""`python -m bench.compiled`: what is wrong with a command line is said in one line."""

import functools
import importlib.util
import json

import pytest
from helpers.compiled_reports import run_python

GPU, TPU = "jax_cuda12_plugin", "libtpu"

WRONG = {
    "--target v9:2x2": "target 'v9:2x2' is unknown; use h100, h200 or one of v4",
    "--target a100": "target 'a100' is unknown",
    "--target v5e:2x2 --mesh model=3": "has 4 devices, but the mesh has 3",
    "--target h100 --mesh model": "must be axes and their sizes; write data=1,model=4",
    "--target h100 --mesh model=0": "must be axes and their sizes",
    "--target h100 --model sdar-5b": "preset 'sdar-5b' is unknown",
    "--target h100 --layers 0": "num_layers=0 must be in 1..4096",
    "--target h100 --xla fast": "--xla 'fast' has no value; write NAME=VALUE",
    "--target h100 --json nowhere/report.json": "its folder is not there; make it",
}
NEED_A_COMPILER = {
    "--target h100 --bucket 100": (GPU, "bucket 100 is no power of two"),
    "--target h100 --bucket 0": (GPU, "bucket 0 leaves no room for a prompt"),
    "--target h100 --layers 1": (GPU, "1 layer is too few to tell a layer"),
    "--target h100 --numerics none": (GPU, "numerics='none' is unknown"),
    "--target h100 --dtype int4": (GPU, "dtype 'int4' is unknown"),
    "--target h100 --batch 0": (GPU, "batch=0 must be at least 1"),
    "--target h100 --layers 2 --xla no_such=1": (GPU, "No such compile option"),
    "--target v5e:3x7": (TPU, "target 'v5e:3x7' is no topology of v5e"),
}
NOT_INSTALLED = {
    "--target h100": (GPU, 'not installed; pip install "jax[cuda12]"'),
    "--target v5e:2x2": (TPU, 'not installed; pip install "jax[tpu]"'),
}


# Several command lines in one process, which has to import JAX once only.
RUN = """
import contextlib, io, json, sys
from bench.compiled import main
ends = []
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line.split())
    ends.append((code, out.getvalue(), err.getvalue()))
json.dump(ends, sys.stdout)
"""


def has(compiler: str) -> bool:
    return importlib.util.find_spec(compiler) is not None


@functools.cache
def ends() -> dict[str, tuple[int, str, str]]:
    """Command line -> its exit code, what it has printed and what it has complained."""
    lines = [*WRONG]
    lines += [line for line, (compiler, _) in NEED_A_COMPILER.items() if has(compiler)]
    lines += [
        line for line, (compiler, _) in NOT_INSTALLED.items() if not has(compiler)
    ]
    done = run_python(RUN, json.dumps(lines))
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, map(tuple, json.loads(done.stdout)), strict=True))


def check(line: str, expected: str):
    code, printed, complained = ends()[line]
    assert code == 2
    assert expected in complained
    assert complained.count("\n") == 1 and not printed


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_is_one_line(line: str):
    check(line, WRONG[line])


@pytest.mark.parametrize("line", NEED_A_COMPILER)
def test_what_does_not_fit_is_one_line(line: str):
    compiler, expected = NEED_A_COMPILER[line]
    if not has(compiler):
        pytest.skip(f"{compiler} is not installed, so that nothing compiles")
    check(line, expected)


@pytest.mark.parametrize("line", NOT_INSTALLED)
def test_a_compiler_that_is_not_there_is_named(line: str):
    compiler, expected = NOT_INSTALLED[line]
    if has(compiler):
        pytest.skip(f"{compiler} is installed")
    check(line, expected)

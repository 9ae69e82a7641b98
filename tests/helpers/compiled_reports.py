"""Reports of `bench.compiled`, each made once, in a process of its own.

The process of the tests has set up JAX's backends already; compilers for other devices
want to be there before.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

needs_gpu_compiler = pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda12_plugin"),
    reason="jax[cuda12] is not installed, so that nothing compiles for a GPU here",
)
needs_tpu_compiler = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"),
    reason="jax[tpu] is not installed, so that nothing compiles for a TPU here",
)


@functools.cache
def compiled_report(*arguments: str) -> dict[str, Any]:
    """Run `python -m bench.compiled` and read its report.

    Args:
        *arguments: Its arguments, without --json.

    Returns:
        The report, as JSON has it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        line = [*arguments, "--json", str(path)]
        done = run_python(f"from bench.compiled import main; exit(main({line}))")
        assert done.returncode == 0, done.stderr
        return json.loads(path.read_text())


def run_python(code: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own.

    Args:
        code: The code.
        given: Its standard input.

    Returns:
        The ended process, with what it has printed.
    """
    # What the tests ask of their own process is not asked of the compilers.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XLA_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        input=given,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )


def read_in_all(report: dict[str, Any]) -> float:
    """Bytes that a round reads.

    Args:
        report: The report.

    Returns:
        Their number.
    """
    counts = report["round"]
    return sum(counts[f"{part}_read"] for part in ("weights", "cache", "other"))

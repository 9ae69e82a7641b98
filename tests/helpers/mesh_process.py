"""A process of its own with eight virtual CPU devices, for tests of meshes."""

import os
import subprocess
import sys

NUM_DEVICES = 8

_PRELUDE = """
import jax, jax.numpy as jnp, numpy as np
from helpers import compiling
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
quickly = compiling.quickly()
quickly.__enter__()
"""


def run_on_mesh(code: str, *arguments: str, **variables: str) -> str:
    """Run code where JAX has eight devices.

    Args:
        code: Python, after imports of jax, jnp and np; it asserts what it claims.
        *arguments: its `sys.argv[1:]`.
        **variables: more of its environment.

    Returns:
        What it has printed.
    """
    flags = f"--xla_force_host_platform_device_count={NUM_DEVICES}"
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path), "XLA_FLAGS": flags}
    env |= {"JAX_PLATFORMS": "cpu", **variables}
    command = [sys.executable, "-c", _PRELUDE + code, *arguments]
    process = subprocess.run(command, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout

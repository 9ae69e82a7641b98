"""Settings that depend on the kind of machine that programs run on."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

# No kernel is chosen by timing, so that equal programs have equal bits. Plain library
# products read a layer's weights in place; Triton's, and products that were merged,
# would first be given a copy of them, which is twice the memory traffic.
_GPU_OPTIONS = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_disable_hlo_passes": "dot-merger",
}


@contextlib.contextmanager
def in_32_bits() -> Iterator[None]:
    """Trace and run programs in 32 bits, whatever JAX is set to.

    Under JAX_ENABLE_X64 Python numbers would become 64-bit arrays, which do not mix
    with the arrays of a decode; and its results are defined in float32.

    Example:
        >>> with in_32_bits():
        ...     print(jax.numpy.arange(2).dtype)
        int32
    """
    with jax.enable_x64(False):
        yield


def on_cpu() -> bool:
    """Tell if programs are compiled for a CPU.

    Returns:
        True if the CPU is JAX's default backend.
    """
    return jax.default_backend() == "cpu"


def compiler_options() -> dict[str, Any]:
    """The compiler options of the default backend.

    Returns:
        Options for `jax.jit(compiler_options=...)` or `lowered.compile(...)`; empty
        but for GPUs.
    """
    return dict(_GPU_OPTIONS) if jax.default_backend() == "gpu" else {}

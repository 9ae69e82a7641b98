"""Settings that depend on the kind of machine that programs run on."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from jaxdave.runtime.machine import Machine, MachineKind, this_machine

# No kernel is chosen by timing, so that equal programs have equal bits. Plain library
# products read a layer's weights in place; Triton's, and products that were merged,
# would first be given a copy of them, which is twice the memory traffic.
_GPU_OPTIONS = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_disable_hlo_passes": "dot-merger",
}
# Many small loops run faster when LLVM does less to them, and are compiled sooner.
_CPU_OPTIONS = {"xla_backend_optimization_level": 1}


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


def compiler_options(machine: Machine | None = None) -> dict[str, Any]:
    """The compiler options of a machine.

    Args:
        machine: What programs are compiled for; None: JAX's default backend.

    Returns:
        Options for `jax.jit(compiler_options=...)` or `lowered.compile(...)`; empty
        for a TPU.
    """
    options = {MachineKind.CPU: _CPU_OPTIONS, MachineKind.GPU: _GPU_OPTIONS}
    return dict(options.get((machine or this_machine()).kind, {}))

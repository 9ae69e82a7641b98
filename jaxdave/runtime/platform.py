"""What is done otherwise on one kind of machine than on another."""

from typing import Any

import jax

_GPU_OPTIONS = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_disable_hlo_passes": "dot-merger",
}


def on_cpu() -> bool:
    """Whether programs are made for a CPU."""
    return jax.default_backend() == "cpu"


def compiler_options() -> dict[str, Any]:
    """The options of the compiler.

    On a GPU no kernel is chosen by timing, so that equal programs have equal bits.
    Plain library products read a layer's weights where they lie; Triton's, and products
    that were merged, would first be given a copy of them, which is twice the traffic.
    """
    return dict(_GPU_OPTIONS) if jax.default_backend() == "gpu" else {}

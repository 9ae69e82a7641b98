"""The machine that tests of Pallas kernels run on."""

import dataclasses

import jax

from jaxdave.runtime.machine import GPU

# A GPU where there is one: then the very kernels are tested, which elsewhere are
# interpreted.
KERNEL_MACHINE = dataclasses.replace(
    GPU, interpret_kernels=jax.default_backend() != "gpu"
)

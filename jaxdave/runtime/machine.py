"""The machine that programs are compiled for, as a value that is passed in.

Which layout of the weights is read fastest, how a product is written and in how many
chunks the head is read depend on the kind of machine. Nothing asks JAX for it while a
program is traced: a decode can be compiled for a machine that is not there
(`bench.compiled`). Who builds a decoder or puts parameters on a device says which
machine that is; `this_machine` is the default.
"""

import dataclasses
import enum

import jax


class MachineKind(enum.StrEnum):
    """What machines of one kind have in common is how programs for them are written."""

    CPU = "cpu"
    GPU = "gpu"
    TPU = "tpu"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """One device that programs run on.

    Attributes:
        kind: Its kind.
        name: What it is called.
        memory_bytes: Memory of one device, in bytes; 0 where it is not known.
        bytes_per_second: What it reads of its memory in a second; 0: not known.
        operations_per_second: Multiplications and additions in bfloat16, dense; 0: not
            known.
        has_float8: Whether its processors convert float8 numbers: GPUs from compute
            capability 8.9 on do.
        interpret_kernels: Run Pallas kernels as plain JAX, for tests on a machine
            without the device.
    """

    kind: MachineKind
    name: str
    memory_bytes: int = 0
    bytes_per_second: float = 0.0
    operations_per_second: float = 0.0
    has_float8: bool = True
    interpret_kernels: bool = False

    @property
    def is_cpu(self) -> bool:
        """True for a CPU."""
        return self.kind is MachineKind.CPU

    @property
    def is_gpu(self) -> bool:
        """True for a GPU."""
        return self.kind is MachineKind.GPU


CPU = Machine(kind=MachineKind.CPU, name="cpu")
"""A CPU of which nothing more is known."""
GPU = Machine(kind=MachineKind.GPU, name="gpu")
"""A GPU of which nothing more is known."""
TPU = Machine(kind=MachineKind.TPU, name="tpu")
"""A TPU of which nothing more is known."""

H100 = Machine(
    kind=MachineKind.GPU,
    name="h100",
    memory_bytes=84_929_347_584,
    bytes_per_second=3.352e12,
    operations_per_second=989e12,
)
"""NVIDIA H100 SXM, 80 GB. Source: NVIDIA's data sheet; memory as CUDA reports it."""
H200 = Machine(
    kind=MachineKind.GPU,
    name="h200",
    memory_bytes=150_754_820_096,
    bytes_per_second=4.8e12,
    operations_per_second=989e12,
)
"""NVIDIA H200 SXM, 141 GB. Source: as of `H100`."""
V5E = Machine(
    kind=MachineKind.TPU,
    name="v5e",
    memory_bytes=16 * 2**30,
    bytes_per_second=8.19e11,
    operations_per_second=197e12,
)
"""One chip of a TPU v5e. Source: Google Cloud's table of TPU versions, as below."""
V4 = Machine(
    kind=MachineKind.TPU,
    name="v4",
    memory_bytes=32 * 2**30,
    bytes_per_second=1.228e12,
    operations_per_second=275e12,
)
"""One chip of a TPU v4."""
V6E = Machine(
    kind=MachineKind.TPU,
    name="v6e",
    memory_bytes=32 * 2**30,
    bytes_per_second=1.638e12,
    operations_per_second=918e12,
)
"""One chip of a TPU v6e."""


def this_machine() -> Machine:
    """The machine of JAX's default backend.

    Returns:
        One of `CPU`, `GPU` and `TPU`; of a GPU also what it can do.
    """
    kinds = {"cpu": CPU, "gpu": GPU}
    machine = kinds.get(jax.default_backend(), TPU)
    if not machine.is_gpu:
        return machine
    # Such as "9.0"; of AMD's devices it is no number, such as "gfx942".
    capability = getattr(jax.devices()[0], "compute_capability", "9.0")
    is_number = capability.replace(".", "").isdigit()
    return dataclasses.replace(
        machine, has_float8=is_number and float(capability) >= 8.9
    )

"""The shape of a mesh as text, known without JAX.

A mesh has an axis "data", over which the rows of a batch are split, an axis "model",
over which the weights are, and an axis "expert", over which the experts of a mixture
are. Each may be left out.
"""

import dataclasses
import re

DATA_AXIS = "data"
"""The mesh axis that the rows of a batch are split over."""
MODEL_AXIS = "model"
"""The mesh axis that one copy of the weights is split over."""
EXPERT_AXIS = "expert"
"""The mesh axis that the experts of a mixture are split over."""
MESH_AXES = (DATA_AXIS, MODEL_AXIS, EXPERT_AXIS)
"""The axes that mean something here; over others everything is replicated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """How many devices a mesh has along each axis.

    Attributes:
        data: Groups of devices, each with a copy of the weights and rows of its own.
        model: Devices of a group, which share one copy of the weights.
        expert: As many such groups have the same rows, and each a part of the experts.

    Example:
        >>> parse_mesh("data=2,model=4").num_devices
        8
    """

    data: int = 1
    model: int = 1
    expert: int = 1

    @property
    def num_devices(self) -> int:
        """Devices in all."""
        return self.data * self.model * self.expert

    def __str__(self) -> str:
        """As `parse_mesh` reads it."""
        text = f"data={self.data},model={self.model}"
        return text if self.expert == 1 else f"{text},expert={self.expert}"


def parse_mesh(text: str) -> MeshShape:
    """The shape that a text stands for.

    Args:
        text: "data=2,model=4", in any order; an axis that is left out has one device.
            Where commas part arguments, ";" does as well.

    Returns:
        The shape.

    Raises:
        ValueError: It is no such text.
    """
    sizes: dict[str, int] = {}
    for word in re.split("[,;]", text):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", word)
        is_axis = found is not None and found[1] in MESH_AXES and int(found[2]) > 0
        if found is None or not is_axis or found[1] in sizes:
            raise ValueError(
                f"mesh={text!r} must name some of the axes data, model and expert, "
                "each once and with at least 1 device, such as data=2,model=4"
            )
        sizes[found[1]] = int(found[2])
    return MeshShape(**sizes)

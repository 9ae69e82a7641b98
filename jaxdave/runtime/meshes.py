"""Meshes of devices, and programs that run on all of them.

A program for a mesh is one
function that every device runs on its own parts (`jax.shard_map` with all axes manual):
what is exchanged is what the function says, and nothing is derived.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdave.runtime.mesh_shape import MESH_AXES, MeshShape


def make_mesh(shape: MeshShape, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a shape.

    Args:
        shape: Devices along each axis.
        devices: What it is made of, of which the first ones are taken; None: the
            devices of this process where they are enough, else all devices of all
            processes.

    Returns:
        A mesh with the axes "data" and "model", and with "expert" where the shape has
        more than one device along it.

    Raises:
        ValueError: There are too few devices.
    """
    if devices is None:
        devices = jax.local_devices()
        devices = jax.devices() if shape.num_devices > len(devices) else devices
    if shape.num_devices > len(devices):
        raise ValueError(
            f"mesh={str(shape)!r} needs {shape.num_devices} devices, and there are "
            f"{len(devices)} ({devices[0].platform}); ask for fewer, or on a CPU set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N"
        )
    sizes = (shape.data, shape.model, shape.expert)
    sizes = sizes if shape.expert > 1 else sizes[:2]
    grid = np.asarray(devices[: shape.num_devices]).reshape(sizes)
    return auto_mesh(Mesh(grid, MESH_AXES[: len(sizes)]))


def check_mesh(mesh: Mesh) -> None:
    """Refuse a mesh on which nothing would be split.

    Args:
        mesh: The devices.

    Raises:
        ValueError: It has none of our axes.
    """
    if not set(MESH_AXES) & set(mesh.axis_names):
        raise ValueError(
            f"mesh axes {tuple(mesh.axis_names)} must include 'model' (weights are "
            "split over it), 'data' (rows are) or 'expert' (experts are); name the "
            "axes so"
        )


def check_processes(mesh: Mesh) -> None:
    """Refuse a mesh that leaves some of its processes without a part in it.

    Args:
        mesh: The devices.

    Raises:
        ValueError: It has devices of other processes, but not of all of them.
    """
    owners = {device.process_index for device in mesh.devices.flat}
    if owners not in ({jax.process_index()}, set(range(jax.process_count()))):
        raise ValueError(
            f"the mesh has devices of processes {sorted(owners)}, and this is process "
            f"{jax.process_index()} of {jax.process_count()}; give each process a mesh "
            "of its own devices, jax.local_devices(), or all of them one of all "
            "devices, jax.devices()"
        )


def spans_processes(mesh: Mesh | None) -> bool:
    """Tell if several processes run the programs of a mesh together.

    Args:
        mesh: The devices; None: there is one.

    Returns:
        True if it has devices of other processes.
    """
    return mesh is not None and bool(mesh.is_multi_process)


def put_array(array: Any, sharding: NamedSharding) -> jax.Array:
    """Put an array on a mesh, where every device is sent its own part alone.

    Args:
        array: On the host, or on devices; the same in all processes of the mesh.
        sharding: Where it goes.

    Returns:
        The array on the mesh.
    """
    is_global = isinstance(array, jax.Array) and not array.is_fully_addressable
    if sharding.is_fully_addressable or is_global:
        return jax.device_put(array, sharding)
    # `jax.device_put` would have the processes compare all of it first.
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])


def auto_mesh(mesh: Mesh) -> Mesh:
    """The mesh with axes of type Auto.

    `jax.make_mesh` makes Explicit axes, under which the type of an array says how it is
    split; programs here say so themselves.

    Args:
        mesh: A mesh with axes of any type.

    Returns:
        The same devices and names.
    """
    types = (AxisType.Auto,) * len(mesh.axis_names)
    if mesh.axis_types == types:
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


@dataclasses.dataclass(frozen=True, eq=False)
class MeshProgram:
    """A function that every device of a mesh runs on its own parts.

    Attributes:
        function: The function of one device's parts.
        mesh: The devices.
        in_specs: For every argument how its arrays are split, as `jax.shard_map` takes
            it.
        out_specs: The same of the results.
    """

    function: Callable[..., Any]
    mesh: Mesh
    in_specs: tuple[Any, ...]
    out_specs: Any

    def __call__(self, *args: Any) -> Any:
        """Call the function with whole arrays.

        Args:
            *args: As the function's, but of all devices together.

        Returns:
            The results of all devices.
        """
        mapped = jax.shard_map(
            self.function,
            mesh=self.mesh,
            in_specs=self.in_specs,
            out_specs=self.out_specs,
            # What is replicated is so by what is computed (`core.shards`); JAX would
            # have to be told so, value by value.
            check_vma=False,
        )
        return mapped(*args)

    @property
    def devices(self) -> tuple[Any, ...]:
        """The devices, in the order of the mesh."""
        return tuple(self.mesh.devices.flat)

    def describe(self) -> str:
        """What tells this program's mesh and its splits from others, in any process."""
        ids = [(d.id, d.process_index, d.device_kind) for d in self.devices]
        return repr((dict(self.mesh.shape), ids, self.in_specs, self.out_specs))


def split_specs(tree: Any) -> Any:
    """How the arrays of a tree are split.

    Args:
        tree: Arrays or `jax.ShapeDtypeStruct`s on a mesh.

    Returns:
        The same tree of `PartitionSpec`s; of arrays that are on no mesh, of none.
    """

    def spec_of(leaf: Any) -> PartitionSpec:
        sharding = getattr(leaf, "sharding", None)
        is_on_mesh = isinstance(sharding, NamedSharding)
        return sharding.spec if is_on_mesh else PartitionSpec()

    return jax.tree.map(spec_of, tree)

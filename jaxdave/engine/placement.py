"""Where a decode runs: on one device, or on a mesh that its parameters are on.

Parameters say where they are, and everything else follows: programs run on their mesh,
every group of devices along the axis "data" decodes rows of its own, and the devices of
a group share the model (`core.shards`). A decode on one device knows nothing of this.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdave.core.draft_api import DraftedParams
from jaxdave.core.host_arrays import host_array
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import DecodeState, PromptBatch, RuntimeParams
from jaxdave.decoding import loop as decode_loop
from jaxdave.runtime.mesh_shape import DATA_AXIS, MODEL_AXIS
from jaxdave.runtime.meshes import (
    MeshProgram,
    check_mesh,
    put_array,
    spans_processes,
    split_specs,
)

_LOGGER = logging.getLogger("jaxdave")
_REPLICATED = PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a decode.

    Attributes:
        mesh: The mesh; None: one device.

    Example:
        >>> Placement().num_groups
        1
    """

    mesh: Mesh | None = None

    @property
    def num_groups(self) -> int:
        """Groups of devices, each with rows of its own."""
        return self._size(DATA_AXIS)

    @property
    def num_parts(self) -> int:
        """Devices of a group, which share one copy of the model."""
        return self._size(MODEL_AXIS)

    @property
    def spans_processes(self) -> bool:
        """True where several processes decode together, each on devices of its own."""
        return spans_processes(self.mesh)

    def check_one_process(self, what: str) -> None:
        """Refuse what processes cannot do together.

        Args:
            what: What it is, for the message.

        Raises:
            ValueError: The mesh has devices of several processes.
        """
        if self.spans_processes:
            raise ValueError(
                f"{what} on a mesh of several processes is not supported; load the "
                "model on a mesh of this process's devices, jax.local_devices()"
            )

    @property
    def rows_spec(self) -> PartitionSpec:
        """How an array [B, ...] of rows is split."""
        return PartitionSpec(DATA_AXIS) if self.num_groups > 1 else _REPLICATED

    def spec_of(self, spec: DecodeSpec) -> DecodeSpec:
        """A decode as the devices of a group share it.

        Args:
            spec: Of the whole model.

        Returns:
            The spec; its functions are those of one device's part.

        Raises:
            ValueError: The model is split, and this spec cannot be.
        """
        if self.num_parts == 1:
            return spec
        if spec.on_parts is None:
            raise ValueError(
                f"the parameters are split over {self.num_parts} devices, which a "
                "decoder made by hand cannot use; make it with make_decoder or freedave"
            )
        return spec.on_parts(num_parts=self.num_parts)

    def state_specs(self, spec: DecodeSpec, is_single: bool) -> DecodeState:
        """How rows and caches are split.

        Args:
            spec: As `spec_of` returns it.
            is_single: There is one row, without a batch axis.

        Returns:
            A state of `PartitionSpec`s, prefixes of the trees.
        """
        rows: Any = _REPLICATED if is_single else self.rows_spec
        # Caches are [N, B, T, ...] or, of a single row, [N, T, ...].
        dims: list[str | None] = [None] if is_single else [None, *rows]
        axis = spec.model.cache_axis
        if axis is not None:
            full = axis if is_single else axis + 1
            dims += [None] * (full - len(dims)) + [MODEL_AXIS]
        return DecodeState(rows, PartitionSpec(*dims))

    def program(
        self, function: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any
    ) -> Callable[..., Any]:
        """A function of one device's parts as one of whole arrays.

        Args:
            function: The function.
            in_specs: How each argument is split; a prefix of its tree.
            out_specs: How the results are split.

        Returns:
            What is compiled; on one device the function itself.
        """
        if self.mesh is None:
            return function
        return MeshProgram(function, self.mesh, in_specs, out_specs)

    def structs(self, tree: Any, specs: Any) -> Any:
        """Shapes of arrays with the place where they will be.

        Args:
            tree: Arrays, or `jax.ShapeDtypeStruct`s, of all devices together.
            specs: How they are split; a prefix of the tree.

        Returns:
            The tree of `jax.ShapeDtypeStruct`s.
        """
        if self.mesh is None:
            return tree

        def place(spec: PartitionSpec, part: Any) -> Any:
            sharding = NamedSharding(self.mesh, spec)  # pyright: ignore
            return jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
                part,
            )

        is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731
        return jax.tree.map(place, specs, tree, is_leaf=is_spec)

    def put(self, tree: Any, spec: PartitionSpec) -> Any:
        """Arrays of the host as programs of this placement take them.

        Args:
            tree: A pytree of numpy arrays, the same in all processes.
            spec: How each is split.

        Returns:
            The tree. Programs of one process fetch arrays of the host themselves, so
            it is as it was; of several processes each has its part on its devices.
        """
        if not self.spans_processes:
            return tree
        sharding = NamedSharding(self.mesh, spec)  # pyright: ignore
        return jax.tree.map(lambda array: put_array(array, sharding), tree)

    def prefill_program(
        self,
        spec: DecodeSpec,
        params: Any,
        num_rows: int,
        length: int,
        group_size: int = 1,
    ) -> Callable[..., DecodeState]:
        """The prefill of so many rows: (params, runtime, prompts) -> state.

        Args:
            spec: As `spec_of` returns it.
            params: The parameters.
            num_rows: Rows of all groups.
            length: What the prefill covers.
            group_size: So many rows in a row have the same prompt.

        Returns:
            What is compiled.
        """
        prefill = functools.partial(
            _prefill, spec, length, self.num_groups > 1, group_size
        )
        if self.mesh is None:
            return prefill
        return self.program(
            prefill,
            (split_specs(params), _REPLICATED, self.rows_spec),
            self.state_specs(spec, num_rows == 1),
        )

    def loop_program(
        self, spec: DecodeSpec, params: Any, is_single: bool
    ) -> Callable[..., DecodeState]:
        """The decode loop: (params, runtime, state) -> state.

        Args:
            spec: As `spec_of` returns it.
            params: The parameters.
            is_single: The state is one row without a batch axis.

        Returns:
            What is compiled.
        """
        run = functools.partial(decode_loop.run, spec)
        if self.mesh is None:
            return run
        states = self.state_specs(spec, is_single)
        return self.program(run, (split_specs(params), _REPLICATED, states), states)

    def take_program(self, spec: DecodeSpec, count: int) -> Callable[..., DecodeState]:
        """Moves rows to a smaller loop: (state, indices in their groups) -> state.

        Args:
            spec: As `spec_of` returns it.
            count: Rows of a group that are taken.

        Returns:
            What is compiled.
        """
        return self.program(
            DecodeState.take if self.num_groups == 1 else _take_rows,
            (self.state_specs(spec, False), self.rows_spec),
            self.state_specs(spec, self.num_groups == 1 and count == 1),
        )

    def pad_rows(self, prompts: PromptBatch) -> PromptBatch:
        """Prompts with spare rows, so that every group has equally many.

        Args:
            prompts: Packed prompts, [B, T].

        Returns:
            The prompts; spare rows repeat the first one and have ended from the start.
        """
        count = len(prompts.begin_B)
        missing = -count % self.num_groups
        if not missing:
            return prompts
        _say_spare(count, self.num_groups)
        padded = jax.tree.map(
            lambda a: np.concatenate([a, np.repeat(a[:1], missing, axis=0)]), prompts
        )
        is_spare_B = np.arange(count + missing) >= count
        return padded._replace(is_spare_B=host_array(is_spare_B))

    def _size(self, axis: str) -> int:
        return 1 if self.mesh is None else self.mesh.shape.get(axis, 1)


ONE_DEVICE = Placement()
"""A decode without a mesh."""


def placement_of(params: Any) -> Placement:
    """Where a decode with some parameters runs.

    Args:
        params: A model's parameters, or `DraftedParams`.

    Returns:
        The mesh that `jaxdave.load(mesh=...)` has put them on, or one device.

    Raises:
        ValueError: They are on a mesh that has neither axis.
    """
    model = params.model if isinstance(params, DraftedParams) else params
    for leaf in jax.tree.leaves(model):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            check_mesh(sharding.mesh)
            return Placement(sharding.mesh)
    return ONE_DEVICE


def replicate_beside(tree: Any, params: Any) -> Any:
    """Put arrays on all devices of the mesh that parameters are on.

    Args:
        tree: Arrays, such as the parameters of a draft model.
        params: The model's parameters.

    Returns:
        The arrays; as they are where there is no mesh.
    """
    mesh = placement_of(params).mesh
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, _REPLICATED)
    return jax.tree.map(lambda array: put_array(array, sharding), tree)


@functools.cache
def _say_spare(count: int, groups: int) -> None:
    """Log, once, that some devices have less to do than others."""
    _LOGGER.warning(
        "%d rows do not divide into %d groups of devices: %d spare rows were added; "
        "decode a multiple of %d together",
        count,
        groups,
        -count % groups,
        groups,
    )


def _prefill(
    spec: DecodeSpec,
    length: int,
    keep_axis: bool,
    group_size: int,
    params: Any,
    runtime: RuntimeParams,
    prompts: PromptBatch,
) -> DecodeState:
    """The prefill of the rows of one device."""
    state = decode_loop.prefill(spec, params, runtime, prompts, length, group_size)
    # One row of a device is one of several in all.
    return state.with_batch_axis() if keep_axis else state


def _take_rows(state: DecodeState, index_R: jax.Array) -> DecodeState:
    """Some rows of one device, always with a batch axis."""
    return state.take(index_R).with_batch_axis()

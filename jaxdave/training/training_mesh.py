"""Training on a mesh: rows of a batch over "data", matrices over "model".

Arrays are placed, and XLA derives what is exchanged: gradients are summed over "data",
partial products over "model", as in Megatron-LM (arXiv 1909.08053). The state has the
shapes that it has on one device, so that a run may go on with another mesh.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdave.core.config import ModelConfig, check_dense
from jaxdave.io.sharding import storage_shardings
from jaxdave.runtime.mesh_shape import DATA_AXIS
from jaxdave.runtime.meshes import auto_mesh, put_array
from jaxdave.training.update import TrainState


@dataclasses.dataclass(frozen=True)
class TrainingMesh:
    """Where training runs.

    Attributes:
        mesh: The devices, with the axes "data" and "model"; None: the default one.
        config: The model that is split over "model"; None: nothing is split.
    """

    mesh: Mesh | None = None
    config: ModelConfig | None = None

    def __post_init__(self) -> None:
        if self.mesh is not None and self.config is not None:
            check_dense(self.config, "training on a mesh", "train it on one device")

    def param_shardings(self, params: Any) -> Any:
        """Say where parameters lie.

        Args:
            params: Parameters, or their shapes; those of the model where they have its
                paths, others (adapters) are on every device.

        Returns:
            A tree of shardings; None without a mesh.
        """
        if self.mesh is None:
            return None
        if self.config is None:
            return jax.tree.map(lambda _: self._sharding(), params)
        return storage_shardings(params, self.config, auto_mesh(self.mesh))

    def put_params(self, params: Any) -> Any:
        """Put parameters where they belong.

        Args:
            params: Parameters, on the host or on devices.

        Returns:
            The parameters on the mesh; as they are without one.
        """
        if self.mesh is None:
            return params
        return jax.tree.map(put_array, params, self.param_shardings(params))

    def put_state(self, state: TrainState) -> TrainState:
        """Put a state where it belongs.

        What the optimiser keeps of a parameter has its path behind that of its own
        state, and lies beside it; all else is on every device.

        Args:
            state: The state.

        Returns:
            The state on the mesh; as it is without one.
        """
        if self.mesh is None:
            return state
        tree = self.param_shardings(state.params)
        by_path = dict(jax.tree_util.tree_leaves_with_path(tree))
        shapes = {
            path: leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        }

        def put(path, leaf) -> jax.Array:
            ends = (path[start:] for start in range(len(path)))
            own = next((end for end in ends if shapes.get(end) == leaf.shape), None)
            return put_array(leaf, self._sharding() if own is None else by_path[own])

        return jax.tree_util.tree_map_with_path(put, state)

    def put_batch(self, batch: Any) -> Any:
        """Put the rows of a batch over the data axis.

        Args:
            batch: A pytree of host arrays [B, ...], the same in all processes.

        Returns:
            The batch on the mesh; as it is without one.
        """
        if self.mesh is None:
            return batch
        rows = self._sharding(DATA_AXIS)
        return jax.tree.map(lambda leaf: put_array(np.asarray(leaf), rows), batch)

    def check_batch(self, batch_size: int, accumulate: int) -> None:
        """Check that the rows of a batch can be dealt out.

        Args:
            batch_size: Rows of a batch.
            accumulate: Parts that it is evaluated in.

        Raises:
            ValueError: They do not divide.
        """
        devices = 1 if self.mesh is None else self.mesh.shape[DATA_AXIS]
        if batch_size % (devices * accumulate):
            raise ValueError(
                f"batch_size={batch_size} must be a multiple of accumulate="
                f"{accumulate} times {devices} devices along 'data'; use "
                f"{-(-batch_size // (devices * accumulate)) * devices * accumulate}"
            )

    def compile_update(
        self, update: Callable[..., Any], state: TrainState
    ) -> Callable[..., Any]:
        """Compile an update whose state stays where it is.

        Args:
            update: (state, ...) -> (state, metrics); the state is donated.
            state: A state where it belongs.

        Returns:
            The compiled function.
        """
        if self.mesh is None:
            return jax.jit(update, donate_argnums=0)
        # Otherwise the compiler may put it elsewhere, and compile once more for that.
        where = jax.tree.map(lambda leaf: leaf.sharding, state)
        return jax.jit(update, donate_argnums=0, out_shardings=(where, None))

    def _sharding(self, *axes: str) -> NamedSharding:
        assert self.mesh is not None
        return NamedSharding(auto_mesh(self.mesh), PartitionSpec(*axes))

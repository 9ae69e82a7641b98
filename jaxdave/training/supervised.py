"""Steps of supervised training: a batch from a stream, a compiled update of it."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
import optax

from jaxdave.training.data.token_batch import PADDING, TokenBatch
from jaxdave.training.training_mesh import TrainingMesh
from jaxdave.training.update import (
    JoinFn,
    LossFn,
    TrainState,
    UpdateConfig,
    make_update,
)


class BatchStream(Protocol):
    """Batches without an end, from a place that can be returned to."""

    def __next__(self) -> Any:
        """The next batch, a pytree of host arrays."""
        ...

    def get_state(self) -> Any:
        """Where it stands, a JSON value: the next batch is the same from there."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to where it stood.

        Args:
            state: What `get_state` has returned.
        """
        ...


class StepBatches:
    """Batches that are a function of the step; the next one is made ahead.

    Args:
        make: Step, from 0 -> batch.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1)
        self._step = 0
        self._next: Future[Any] | None = None

    def __next__(self) -> Any:
        future = self._next or self._pool.submit(self._make, self._step)
        batch = future.result()
        self._step += 1
        self._next = self._pool.submit(self._make, self._step)
        return batch

    def get_state(self) -> int:
        return self._step

    def set_state(self, state: int) -> None:
        self._step, self._next = state, None


class SupervisedSteps:
    """The steps of a supervised run.

    Args:
        loss: What is minimised.
        optimiser: How parameters follow the gradient.
        config: Accumulation, moving average and dtype.
        batches: What is trained on.
        schedule: The learning rate of a step, for the report.
        mesh: The devices; None: one.
        join: Puts `frozen` beside what is trained (`make_update`).
        frozen: Parameters that are not trained.
        validation: Batches whose loss is reported, with one key for all time.
    """

    def __init__(
        self,
        loss: LossFn,
        optimiser: optax.GradientTransformation,
        config: UpdateConfig,
        batches: BatchStream,
        *,
        schedule: optax.Schedule | None = None,
        mesh: TrainingMesh | None = None,
        join: JoinFn | None = None,
        frozen: Any = None,
        validation: Sequence[Any] = (),
    ) -> None:
        self._batches = batches
        self._schedule = schedule
        self._mesh = mesh or TrainingMesh()
        self._frozen = frozen
        self._validation = validation
        self._step = 0
        self._update = make_update(loss, optimiser, config, join)
        self._compiled: Any = None

        def held_out(params, frozen, batch):
            joined = params if join is None else join(params, frozen)
            return loss(joined, batch, jax.random.key(0))

        self._held_out = jax.jit(held_out)

    def __call__(self, state: TrainState) -> tuple[TrainState, Mapping[str, Any]]:
        if self._compiled is None:
            self._step = int(state.step)
            self._compiled = self._mesh.compile_update(self._update, state)
        batch = next(self._batches)
        rows = self._mesh.put_batch(batch)
        state, metrics = self._compiled(state, rows, self._frozen)
        record: dict[str, Any] = metrics._asdict()
        if tokens := count_tokens(batch):
            record["tokens"] = tokens
        if self._schedule is not None:
            record["learning_rate"] = np.asarray(self._schedule(self._step)).item()
        self._step += 1
        return state, record

    def position(self) -> Any:
        return self._batches.get_state()

    def move_to(self, position: Any) -> None:
        self._batches.set_state(position)

    def validate(self, state: TrainState) -> Mapping[str, Any]:
        if not self._validation:
            return {}
        params = state.params if state.ema is None else state.ema
        sums = [
            self._held_out(params, self._frozen, self._mesh.put_batch(batch))
            for batch in self._validation
        ]
        total = sum(float(one.total) for one in sums)
        return {"validation_loss": total / max(sum(float(s.divisor) for s in sums), 1)}


def count_tokens(batch: Any) -> int:
    """Count the tokens of a batch that are not padding.

    Args:
        batch: Any pytree with `TokenBatch`es in it.

    Returns:
        Their number; 0 where there is none.
    """
    parts = jax.tree.leaves(batch, is_leaf=lambda leaf: isinstance(leaf, TokenBatch))
    return sum(
        int(np.sum(np.asarray(part.sample_BT) != PADDING))
        for part in parts
        if isinstance(part, TokenBatch)
    )

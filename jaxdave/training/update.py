"""One update of the parameters: a pure function, compiled as a whole.

Parameters are kept in float32 (`TrainState.params`) and cast for the network, so that
small updates are not lost in bfloat16. A batch may come in parts that are evaluated one
after another (gradient accumulation); their sums are divided together, so that the
gradient is that of the whole batch, however it is cut.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdave.training.objective.objective_loss import LossSums

LossFn = Callable[[Any, Any, jax.Array], LossSums]
"""(parameters, batch, key) -> a loss before its division. The key draws its noise."""

JoinFn = Callable[[Any, Any], Any]
"""(parameters that are trained, others that are not) -> what the loss is given."""


class TrainState(NamedTuple):
    """What a training run changes from step to step, and its checkpoints hold.

    Attributes:
        step: Updates so far, int32 scalar.
        params: Parameters that are trained, float32.
        opt: State of the optimiser.
        ema: Exponential moving average of the parameters; None: there is none.
        key: Bits of the key that all noise of the run is drawn from, uint32 [2].
    """

    step: jax.Array
    params: Any
    opt: Any
    ema: Any
    key: jax.Array


class UpdateMetrics(NamedTuple):
    """What is reported of an update, float32 scalars.

    Attributes:
        loss: Of the batch, before the update.
        grad_norm: Global norm of its gradient, before clipping.
        trained: What the loss was divided by: tokens or samples, as the objective says.
    """

    loss: jax.Array
    grad_norm: jax.Array
    trained: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """How a batch becomes an update.

    Attributes:
        accumulate: Parts that a batch is evaluated in, one after another; 1: at once.
        ema_decay: Decay of the moving average of parameters, in [0, 1); None: there is
            none.
        dtype: What the network computes with: "float32", or "bfloat16". With `join`
            that is the dtype of the frozen parameters instead.

    Raises:
        ValueError: A value is out of its range.
    """

    accumulate: int = 1
    ema_decay: float | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate={self.accumulate} must be at least 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"ema_decay={self.ema_decay} must be in [0, 1), e.g. 0.999; leave it "
                "out for none"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"dtype={self.dtype!r} must be 'float32' or 'bfloat16'; parameters "
                "are kept in float32 either way"
            )


def init_state(
    params: Any, optimiser: optax.GradientTransformation, seed: int, *, ema: bool
) -> TrainState:
    """Make the state before the first update.

    Args:
        params: Parameters, of any float dtype.
        optimiser: What `make_update` gets.
        seed: Of the noise of the whole run.
        ema: Whether a moving average is kept.

    Returns:
        The state; its arrays are copies.
    """
    params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt=optimiser.init(params),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        key=jax.random.key_data(jax.random.key(seed)),
    )


def make_update(
    loss: LossFn,
    optimiser: optax.GradientTransformation,
    config: UpdateConfig,
    join: JoinFn | None = None,
) -> Callable[..., tuple[TrainState, UpdateMetrics]]:
    """Make the function of one update.

    Args:
        loss: What is minimised: `LossSums.mean` over the whole batch.
        optimiser: How parameters follow the gradient.
        config: Accumulation, moving average and dtype.
        join: Puts parameters that are not trained beside those that are: an adapter
            onto its base, or a student beside its teacher. None: all are trained.

    Returns:
        A pure function (state, batch, frozen) -> (state, metrics), to be compiled by
        `jax.jit(..., donate_argnums=0)`; frozen: what `join` is given, in the dtype
        that it has; None without `join`. With `accumulate` above 1 the leaves of a
        batch have their rows in the first axis, in a multiple of it. A loss or a
        gradient that is not finite leaves parameters as they are, and shows in the
        metrics.

    Example:
        >>> from jaxdave.training.optimisers import OptimiserConfig, make_optimiser
        >>> loss = lambda params, batch, key: LossSums(
        ...     jnp.sum((params - batch) ** 2), jnp.float32(batch.size)
        ... )
        >>> optimiser = make_optimiser(OptimiserConfig(learning_rate=0.1), steps=100)
        >>> update = jax.jit(make_update(loss, optimiser, UpdateConfig()))
        >>> state = init_state(jnp.zeros(()), optimiser, seed=0, ema=False)
        >>> state, metrics = update(state, jnp.ones(4), None)
        >>> float(metrics.loss), float(state.params) > 0
        (1.0, True)
    """
    dtype = jnp.dtype(config.dtype)

    def evaluate(params, frozen, batch, key):
        def total(params):
            if join is None:
                joined = cast_floats(params, dtype)
            else:
                # What is frozen has the network's dtype; adapters keep their bits.
                joined = join(params, frozen)
            sums = loss(joined, batch, key)
            return sums.total.astype(jnp.float32), sums.divisor.astype(jnp.float32)

        (value, divisor), grads = jax.value_and_grad(total, has_aux=True)(params)
        return value, divisor, grads

    def split(leaf):
        """Rows [B, ...] as parts [A, B / A, ...], each from all over the batch.

        On a mesh every device then has rows of every part.
        """
        rows = leaf.reshape(-1, config.accumulate, *leaf.shape[1:])
        return jnp.moveaxis(rows, 1, 0)

    def evaluate_in_parts(params, frozen, batch, key):
        parts = jax.tree.map(split, batch)

        def add(sums, part):
            index, rows = part
            own = evaluate(params, frozen, rows, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, sums, own), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        begin = (jnp.zeros(()), jnp.zeros(()), zeros)
        indices = jnp.arange(config.accumulate, dtype=jnp.int32)
        return jax.lax.scan(add, begin, (indices, parts))[0]

    def update(
        state: TrainState, batch: Any, frozen: Any
    ) -> tuple[TrainState, UpdateMetrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        sum_parts = evaluate if config.accumulate == 1 else evaluate_in_parts
        value, divisor, grads = sum_parts(state.params, frozen, batch, key)
        # Where nothing is trained the sums are 0, and so is the gradient.
        scale = 1 / jnp.maximum(divisor, 1e-30)
        grads = jax.tree.map(lambda leaf: leaf * scale, grads)
        metrics = UpdateMetrics(
            loss=value * scale, grad_norm=optax.tree.norm(grads), trained=divisor
        )
        updates, opt = optimiser.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            decay = config.ema_decay or 0.0
            ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, ema, params)
        is_finite = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
        new = state._replace(params=params, opt=opt, ema=ema)
        kept = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, state)
        return kept._replace(step=state.step + 1), metrics

    return update


def cast_floats(params: Any, dtype: Any) -> Any:
    """Cast parameters for the network.

    Args:
        params: Parameters; those that are no floats (8 bits) stay as they are.
        dtype: A float dtype.

    Returns:
        The parameters in it.
    """
    return jax.tree.map(
        lambda leaf: (
            leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        ),
        params,
    )

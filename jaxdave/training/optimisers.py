"""Optimisers and learning-rate schedules, as settings; optax has the algorithms."""

import dataclasses
from typing import Any, Literal

import jax
import optax

_CHOICES = {
    "name": ("adamw", "muon"),
    "decay": ("linear", "cosine", "none"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """How parameters follow gradients.

    The learning rate rises linearly from 0, stays, and falls to `final_share` of itself
    over the last steps. With `decay_steps` a run can be lengthened, before it falls,
    without changing what came before.

    Attributes:
        name: "adamw", or "muon": Muon on the matrices of the layers, AdamW on all else.
        learning_rate: Its value between warm-up and decay.
        warmup_steps: First steps, over which it rises.
        decay: How it falls: "linear", "cosine", or "none".
        decay_steps: Last steps, over which it falls; None: all after the warm-up.
        final_share: What is left of it after the last step, in [0, 1].
        weight_decay: Of matrices; biases and the gains of norms have none.
        b1: Decay of the mean of gradients.
        b2: Decay of the mean of their squares.
        eps: Added to the root of that.
        max_grad_norm: Gradients are scaled down to this global norm.

    Raises:
        ValueError: A value is out of its range.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 0
    decay: Literal["linear", "cosine", "none"] = "linear"
    decay_steps: int | None = None
    final_share: float = 0.0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if (value := getattr(self, field)) not in choices:
                names = ", ".join(map(repr, choices))
                raise ValueError(f"{field}={value!r} must be one of {names}")
        for field in ("learning_rate", "eps", "max_grad_norm"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field}={getattr(self, field)} must be above 0")
        for field in ("warmup_steps", "decay_steps", "weight_decay"):
            value = getattr(self, field)
            if value is not None and not value >= 0:
                raise ValueError(f"{field}={value} must be at least 0")
        for field in ("b1", "b2"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be in [0, 1)")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"final_share={self.final_share} must be in [0, 1]")


def make_schedule(config: OptimiserConfig, steps: int) -> optax.Schedule:
    """Make the learning rate a function of the step.

    Args:
        config: The settings.
        steps: Steps of the whole run.

    Returns:
        A function from the step's index, from 0, to the learning rate.

    Raises:
        ValueError: Warm-up and decay do not fit into the run.

    Example:
        >>> config = OptimiserConfig(learning_rate=1.0, warmup_steps=2, decay_steps=2)
        >>> rate = make_schedule(config, steps=6)
        >>> [float(rate(step)) for step in range(6)]
        [0.0, 0.5, 1.0, 1.0, 1.0, 0.5]
    """
    rate, warmup = config.learning_rate, config.warmup_steps
    decay_steps = config.decay_steps
    if decay_steps is None:
        decay_steps = max(0, steps - warmup)
    if config.decay == "none":
        decay_steps = 0
    if warmup + decay_steps > steps:
        raise ValueError(
            f"warmup_steps={warmup} and decay_steps={decay_steps} are more than "
            f"steps={steps}; lower them, or train longer"
        )
    phases = [
        optax.linear_schedule(0.0, rate, warmup),
        optax.constant_schedule(rate),
    ]
    if decay_steps and config.decay == "linear":
        phases.append(
            optax.linear_schedule(rate, rate * config.final_share, decay_steps)
        )
    elif decay_steps:
        phases.append(
            optax.cosine_decay_schedule(rate, decay_steps, config.final_share)
        )
    joined = optax.join_schedules(phases, [warmup, steps - decay_steps][: len(phases)])

    def schedule(step):
        with jax.numpy_dtype_promotion("standard"):
            return joined(step)

    return schedule


def make_optimiser(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """Make an optimiser.

    Args:
        config: The settings.
        steps: Steps of the whole run.

    Returns:
        The gradient transformation, with its schedule.

    Raises:
        ValueError: The schedule does not fit into the run.
    """
    schedule = make_schedule(config, steps)
    if config.name == "adamw":
        update = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=is_matrix,
        )
    else:
        update = optax.contrib.muon(
            schedule,
            adam_b1=config.b1,
            adam_b2=config.b2,
            weight_decay=config.weight_decay,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=_muon_dimension_numbers,
            # Muon's updates get the size of Adam's, so that one rate suits both.
            consistent_rms=0.2,
        )
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return with_own_rules(optax.chain(clip, update))


def with_own_rules(
    optimiser: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """Let optax mix types and ranks, also where JAX is told to refuse that.

    Args:
        optimiser: Any gradient transformation.

    Returns:
        The same, under JAX's own rules of promotion.
    """

    def under_rules(function):
        def call(*args, **kwargs):
            with jax.numpy_dtype_promotion("standard"):
                with jax.numpy_rank_promotion("allow"):
                    return function(*args, **kwargs)

        return call

    return optax.GradientTransformation(
        under_rules(optimiser.init), under_rules(optimiser.update)
    )


def is_matrix(params: Any) -> Any:
    """Tell matrices from biases and gains, which weight decay leaves alone.

    Args:
        params: Parameters; those of layers are stacked, [N, ...].

    Returns:
        A tree of bools: True for kernels, tables and the factors of adapters.
    """

    def matrix(key_path, leaf) -> bool:
        names = {str(getattr(key, "key", key)) for key in key_path}
        return leaf.ndim > 1 and not names & {"bias", "scale"}

    return jax.tree_util.tree_map_with_path(matrix, params)


def _muon_dimension_numbers(params: Any) -> Any:
    """Muon's axes for [layer, in, out] kernels, and those of experts; None (Adam) for
    all other leaves.
    """

    def axes(leaf):
        if leaf.ndim not in (3, 4):
            return None
        return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)

    return jax.tree.map(axes, params)

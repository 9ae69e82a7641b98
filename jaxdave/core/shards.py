"""How a model is split over the devices of a mesh, as a value that is passed in.

A program for a mesh runs on every device alike, on that device's own part of the
weights (tensor parallelism, Megatron-LM, arXiv 1909.08053): its own query heads with
the key/value heads that they read, its own features of the feed-forward layer, its own
rows of the vocabulary. `ModelShards` says which part that is and holds the collectives
that put partial results together; on one device they do nothing. Rows of a batch are
split over another axis, and never exchanged.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelShards:
    """The parts of one copy of a model, seen from inside a program on each of them.

    Attributes:
        count: Devices along the model axis; 1: the model is in one piece.
        axis: The name of that axis.
        splits_attention: Each device has query heads of its own. Otherwise they do not
            divide, and every device computes all of attention.
        splits_mlp: Each device has features of the feed-forward layer of its own;
            otherwise every device computes all of them.
        ordered: Sum in the order of the devices, by gathering the parts. The order of
            an all-reduce may depend on where a number stands in the array, which exact
            numerics do not allow; it moves fewer bytes.

    Example:
        >>> from jaxdave.models.presets import preset
        >>> model_shards(preset("sdar-4b"), 4, "model").splits_attention
        True
    """

    count: int = 1
    axis: str = ""
    splits_attention: bool = False
    splits_mlp: bool = False
    ordered: bool = False

    @property
    def is_whole(self) -> bool:
        """True where there is nothing to put together."""
        return self.count == 1

    def in_order(self, ordered: bool) -> "ModelShards":
        """The same parts, summed in a fixed order or in any.

        Args:
            ordered: See the attribute.

        Returns:
            The shards.
        """
        return dataclasses.replace(self, ordered=ordered)

    def sum_attention(self, partial: jax.Array) -> jax.Array:
        """The output projection of all heads.

        Args:
            partial: What this device's heads give, [..., E].

        Returns:
            The sum over the devices, the same bits on all of them.
        """
        return self.sum(partial) if self.splits_attention else partial

    def sum_mlp(self, partial: jax.Array) -> jax.Array:
        """The feed-forward layer's output of all features.

        Args:
            partial: What this device's features give, [..., E].

        Returns:
            The sum over the devices, the same bits on all of them.
        """
        return self.sum(partial) if self.splits_mlp else partial

    def sum(self, partial: jax.Array) -> jax.Array:
        """The sum of an array over the devices: one collective.

        Args:
            partial: This device's part, of any shape.

        Returns:
            The sum, the same bits on all devices.
        """
        if self.is_whole:
            return partial
        if not self.ordered:
            return jax.lax.psum(partial, self.axis)
        parts = jax.lax.all_gather(partial, self.axis).astype(jnp.float32)
        total = functools.reduce(jnp.add, [parts[i] for i in range(self.count)])
        return total.astype(partial.dtype)

    def merge(self, part: Any, merge: Callable[[Any, Any], Any]) -> Any:
        """Put the parts of all devices together, in their order: one collective.

        Args:
            part: This device's arrays, a pytree of float32 and int32 with one shape
                but for their last axes.
            merge: (lower ids, higher ids) -> both together.

        Returns:
            The whole, the same bits on all devices.
        """
        if self.is_whole:
            return part
        leaves, tree = jax.tree.flatten(part)
        # Sent as whole numbers: bits of a number that stands for an id could be those
        # of a float that hardware rewrites.
        flat = [_as_bits(leaf).reshape(-1) for leaf in leaves]
        gathered = jax.lax.all_gather(jnp.concatenate(flat), self.axis)
        sizes = [leaf.size for leaf in leaves]
        cuts = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]

        def part_of(device: int) -> Any:
            pieces = jnp.split(gathered[device], cuts)
            return tree.unflatten(
                _from_bits(bits.reshape(leaf.shape), leaf.dtype)
                for bits, leaf in zip(pieces, leaves, strict=True)
            )

        return functools.reduce(merge, map(part_of, range(self.count)))

    def vocab_rows(self, rows: int) -> int:
        """Rows of the embedding and of the head that each device has.

        Args:
            rows: Rows of the whole.

        Returns:
            A part of them, rounded up: the last device may have rows of no id.
        """
        return -(-rows // self.count)

    def first_id(self, rows: int) -> jax.Array | int:
        """The first id that this device has the row of.

        Args:
            rows: Rows of the whole vocabulary.

        Returns:
            int32 scalar; a Python 0 where the model is whole.
        """
        if self.is_whole:
            return 0
        index = jax.lax.axis_index(self.axis).astype(jnp.int32)
        return index * self.vocab_rows(rows)


WHOLE_MODEL = ModelShards()
"""A model in one piece."""


def model_shards(config: ModelConfig, count: int, axis: str) -> ModelShards:
    """How a model is split over so many devices.

    Args:
        config: The whole model.
        count: Devices along the model axis.
        axis: The name of that axis.

    Returns:
        The shards. What does not divide is replicated: attention if the query heads do
        not, the feed-forward layer if its features do not.
    """
    return ModelShards(
        count=count,
        axis=axis,
        splits_attention=splits_attention(config, count),
        splits_mlp=splits_mlp(config, count),
    )


def splits_attention(config: ModelConfig, count: int) -> bool:
    """Whether each of so many devices has query heads of its own.

    Args:
        config: The whole model.
        count: Devices along the model axis.

    Returns:
        False where the heads do not divide, or there is one device.
    """
    return count > 1 and config.heads % count == 0


def splits_mlp(config: ModelConfig, count: int) -> bool:
    """Whether each of so many devices has features of the feed-forward layer.

    Args:
        config: The whole model.
        count: Devices along the model axis.

    Returns:
        False where the features do not divide, or there is one device.
    """
    return count > 1 and config.inter % count == 0


def mesh_kv_heads(config: ModelConfig, count: int) -> int:
    """Key/value heads of all devices together, copies included.

    Args:
        config: The whole model.
        count: Devices along the model axis.

    Returns:
        The model's own number where that divides. Otherwise there are copies: each
        device then has its own of all heads that its queries read.

    Example:
        >>> from jaxdave.models.presets import preset
        >>> mesh_kv_heads(preset("sdar-4b"), 16)  # of 8, for 32 query heads
        16
    """
    if not splits_attention(config, count):
        return config.kv_heads
    # Groups of query heads that share keys, cut so that no group lies on two devices.
    group = math.gcd(config.heads // count, config.heads // config.kv_heads)
    return config.heads // group


def local_config(config: ModelConfig, count: int) -> ModelConfig:
    """The model as one device sees it: its own heads and features.

    Args:
        config: The whole model.
        count: Devices along the model axis.

    Returns:
        A config of fewer heads and features; `vocab_rows` is still that of the whole.
    """
    changes: dict[str, int] = {}
    if splits_attention(config, count):
        changes["heads"] = config.heads // count
        changes["kv_heads"] = mesh_kv_heads(config, count) // count
    if splits_mlp(config, count):
        changes["inter"] = config.inter // count
    return dataclasses.replace(config, **changes) if changes else config


def replicated_parts(config: ModelConfig, count: int) -> str:
    """What every device of a mesh holds whole, or copies of, in words.

    Args:
        config: The model.
        count: Devices along the model axis.

    Returns:
        One line; empty where everything large is split.
    """
    parts: list[str] = []
    if count == 1:
        return ""
    if not splits_attention(config, count):
        parts.append(
            f"attention is replicated, as {count} devices do not divide its "
            f"{config.heads} heads"
        )
    elif mesh_kv_heads(config, count) != config.kv_heads:
        parts.append(
            f"{config.kv_heads} key/value heads are kept as "
            f"{mesh_kv_heads(config, count)} with copies"
        )
    if config.experts is not None:
        parts.append("its experts are replicated, which the axis 'expert' splits")
    elif not splits_mlp(config, count):
        parts.append(
            f"the feed-forward layers are replicated, as {count} devices do not "
            f"divide their {config.inter} features"
        )
    return "; ".join(parts)


def _as_bits(array: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(array, jnp.int32)


def _from_bits(bits: jax.Array, dtype) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, dtype)

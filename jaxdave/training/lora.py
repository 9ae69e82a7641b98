"""Training of adapters of low rank (LoRA) beside frozen parameters.

The network needs to know nothing of it: an adapted kernel is an `AdaptedMatrix` in the
kernel's place. `join_lora` puts it there, `split_lora` takes it out again, and
`merge_lora` makes plain parameters of both. What is trained are `Adapters`, plain
nested dicts, so that gradients, states of the optimiser and checkpoints are of them
alone.

    adapters = init_adapters(config, lora)
    join = functools.partial(join_lora, lora=lora)
    update = make_update(loss, optimiser, settings, join)     # params -> adapters
    ...                                   # state, metrics = update(state, batch, base)
    params = merge_lora(join_lora(state.params, base, lora))

Source: LoRA, arXiv 2106.09685. A is drawn as the peft library draws it by default.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.core.param_paths import param_path
from jaxdave.io import checkpoint
from jaxdave.io.peft_io import load_adapters
from jaxdave.models.lora import TARGET_PATHS, Adapters, LoraConfig, adapter_shapes
from jaxdave.numerics.low_rank import AdaptedMatrix
from jaxdave.numerics.weight_layout import to_stacked


def init_adapters(config: ModelConfig, lora: LoraConfig) -> Adapters:
    """Draw adapters that change nothing yet.

    Args:
        config: The model.
        lora: Which projections are adapted, and the seed.

    Returns:
        Adapters, float32: A uniform in (-1, 1) / sqrt(in), B zero.

    Raises:
        ValueError: The rank is larger than a side of a matrix.
    """
    key = jax.random.key(lora.seed)
    order = list(TARGET_PATHS.values())

    def draw(key_path, shape):
        path, name = param_path(key_path).rsplit("/", 1)
        if name == "lora_b":
            return jnp.zeros(shape.shape, shape.dtype)
        # By the projection's place in the list of all, so that the draw of one does
        # not depend on which others are adapted.
        own_key = jax.random.fold_in(key, order.index(path))
        bound = 1 / math.sqrt(shape.shape[1])
        return jax.random.uniform(own_key, shape.shape, shape.dtype, -bound, bound)

    return jax.tree_util.tree_map_with_path(draw, adapter_shapes(config, lora))


def add_lora(params: Params, config: ModelConfig, lora: LoraConfig) -> Params:
    """Put new adapters beside a model's projections.

    Args:
        params: Stacked parameters, float or in 8 bits.
        config: The model.
        lora: Which projections are adapted, and how.

    Returns:
        The parameters with an `AdaptedMatrix` for each adapted kernel. The model's
        output is the same as before.

    Raises:
        ValueError: The rank is larger than a side of a matrix, or the parameters are
            not stacked.

    Example:
        >>> from jaxdave.models import transformer
        >>> from jaxdave.models.presets import preset
        >>> config = preset("sdar-1m", num_layers=1)
        >>> params = add_lora(
        ...     transformer.init(config, 0), config, LoraConfig(targets=("q",))
        ... )
        >>> adapters, base = split_lora(params)
        >>> sorted(adapters["blocks"]["attn"]["q"])
        ['lora_a', 'lora_b']
    """
    return join_lora(init_adapters(config, lora), params, lora)


def join_lora(adapters: Adapters, base: Params, lora: LoraConfig) -> Params:
    """Put adapters beside the projections that they are of.

    Args:
        adapters: The adapters.
        base: Stacked parameters, float or in 8 bits.
        lora: Their settings; only the scale is looked at.

    Returns:
        The parameters with an `AdaptedMatrix` for each adapted kernel.

    Raises:
        ValueError: An adapter's shapes do not fit its kernel.
    """

    def join(adapter: Any, part: Any, path: str) -> Any:
        if "lora_a" not in adapter:
            joined = {
                name: join(adapter[name], part.get(name, {}), f"{path}{name}/")
                for name in adapter
            }
            return {**part, **joined}
        _check_fit(adapter, part.get("kernel"), path)
        kernel = AdaptedMatrix(part["kernel"], scale=lora.scale, **adapter)
        return {**part, "kernel": kernel}

    return join(adapters, base, "")


def split_lora(params: Params) -> tuple[Adapters, Params]:
    """Separate adapters from the parameters that they are beside.

    Args:
        params: What `join_lora` returns.

    Returns:
        The adapters and the base: `join_lora` of them gives the same parameters.
    """

    def split(part: Any) -> tuple[Any, Any]:
        if not isinstance(part, dict):
            return {}, part
        kernel = part.get("kernel")
        if isinstance(kernel, AdaptedMatrix):
            adapter = {"lora_a": kernel.lora_a, "lora_b": kernel.lora_b}
            return adapter, {**part, "kernel": kernel.base}
        pairs = {name: split(value) for name, value in part.items()}
        adapters = {name: own for name, (own, _) in pairs.items() if own}
        return adapters, {name: base for name, (_, base) in pairs.items()}

    return split(params)


def merge_lora(params: Params) -> Params:
    """Add adapters to the kernels that they are beside.

    Args:
        params: What `join_lora` returns.

    Returns:
        Parameters in the form of `param_shapes`. A merged kernel is the sum in float32,
        rounded once to the base's dtype; float32 if that is in 8 bits.

    Raises:
        ValueError: The parameters are in a device's layout.
    """
    is_adapted = functools.partial(_is_instance, AdaptedMatrix)

    def merge(leaf: Any) -> Any:
        return leaf.merge() if is_adapted(leaf) else leaf

    return jax.tree.map(merge, params, is_leaf=is_adapted)


def lora_loss(
    loss: Callable[..., Any], base: Params, lora: LoraConfig
) -> Callable[..., Any]:
    """A loss of adapters, from one of parameters.

    For small models and tests: under `jax.jit` the base becomes a constant of the
    program. `update.make_update` takes it as an argument (`frozen`).

    Args:
        loss: (params, ...) -> whatever it returns.
        base: Parameters that are not trained.
        lora: The adapters' settings.

    Returns:
        (adapters, ...) -> the same.
    """

    def adapted_loss(adapters: Adapters, *args: Any) -> Any:
        return loss(join_lora(adapters, base, lora), *args)

    return adapted_loss


def merge_into_checkpoint(
    source: str | os.PathLike,
    adapters: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    dtype: str,
    block_length: int | None = None,
    mask_id: int | None = None,
) -> None:
    """Write a checkpoint with a folder of adapters merged into it.

    Args:
        source: The base: anything that `jaxdave.load` takes.
        adapters: A folder of `io.peft_io.save_adapters` or of the peft library.
        destination: The folder to make, in the Hugging Face layout of its family.
        dtype: "float32", "bfloat16" or "float16", what the sum is rounded to.
        block_length: As for `jaxdave.load`.
        mask_id: As for `jaxdave.load`.

    Raises:
        ValueError: A folder is no checkpoint, or the adapters are not of this model.
    """
    # Before gigabytes are read, whether the adapters are of this model.
    config = checkpoint.describe(
        source, block_length=block_length, mask_id=mask_id
    ).config
    trained, lora = load_adapters(adapters, config)
    # In float32 whatever the files hold, so that the sum is rounded only once.
    model = checkpoint.load(
        source, dtype="float32", block_length=block_length, mask_id=mask_id
    )
    params = merge_lora(join_lora(trained, to_stacked(model.params), lora))
    checkpoint.save(
        destination,
        model.config,
        params,
        dtype=dtype,
        tokenizer=model.folder,
        max_new_tokens=model.max_new_tokens,
    )


def _check_fit(adapter: Adapters, kernel: Any, path: str) -> None:
    """Raise ValueError unless an adapter's product has the shape of its kernel."""
    leaves = jax.tree.leaves(kernel)
    name = f"{path}kernel"
    if kernel is None or not leaves:
        raise ValueError(
            f"there is no matrix {name} to adapt; use `weight_layout.to_stacked` of "
            "parameters in a device's layout"
        )
    a, b = adapter["lora_a"].shape, adapter["lora_b"].shape
    if (*a[:-1], b[-1]) != leaves[0].shape or (*a[:-2], a[-1]) != b[:-1]:
        raise ValueError(
            f"lora_a {a} and lora_b {b} do not fit {name} {leaves[0].shape}; take "
            "adapters of this model"
        )


def _is_instance(kind: type, leaf: Any) -> bool:
    return isinstance(leaf, kind)

"""The shapes of a model's parameters, and how parameters become a module inside jit.

`param_shapes` repeats the structure of `transformer.Transformer` by hand. That is
deliberate: loading a checkpoint needs the shapes, and must not need Flax, whose import
takes a good part of a start that finds its compiled programs on disk. Change both
together; a test compares them (`tests/runtime/test_traces.py`). Flax is imported when a
`Binder` is first called, i.e. when something is traced.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.core.model_api import Params
from jaxdave.core.shards import WHOLE_MODEL, ModelShards
from jaxdave.runtime.machine import Machine, this_machine

if TYPE_CHECKING:
    from jaxdave.models.transformer import Transformer


def param_shapes(config: ModelConfig, dtype=jnp.float32) -> Params:
    """The shapes and dtypes of a model's parameters, without creating them.

    Args:
        config: The model's shape.
        dtype: Of all parameters.

    Returns:
        Nested dicts of `jax.ShapeDtypeStruct`; those below "blocks" are stacked over
        layers, [N, ...], and so are those below "dense_blocks", the dense first layers
        of a mixture of experts.
    """
    c = config
    q_size, kv_size = c.heads * c.head_dim, c.kv_heads * c.head_dim
    norm = {"scale": (c.hidden,)}

    def linear(fan_in: int, fan_out: int, bias: bool = False):
        return {"kernel": (fan_in, fan_out)} | ({"bias": (fan_out,)} if bias else {})

    attn: dict[str, Any] = {
        "q": linear(c.hidden, q_size, c.qkv_bias),
        "k": linear(c.hidden, kv_size, c.qkv_bias),
        "v": linear(c.hidden, kv_size, c.qkv_bias),
        "o": linear(q_size, c.hidden, c.o_bias),
    }
    if c.qk_norm:
        attn |= {name: {"scale": (c.head_dim,)} for name in ("q_norm", "k_norm")}
    stem: dict[str, Any] = {"norm1": norm, "attn": attn, "norm2": norm}
    top = {"embedding": (c.vocab_rows, c.hidden), "norm": norm}
    if not c.tie_embeddings:
        top |= {"head": (c.vocab_rows, c.hidden)}
    mlp = _mlp_shapes(c.hidden, c.inter)
    blocks = {**stem, "mlp": mlp if c.experts is None else _expert_shapes(c, c.experts)}
    layers = {"blocks": _to_structs(blocks, (c.num_layers - c.dense_layers,), dtype)}
    if c.dense_layers:
        dense = _to_structs({**stem, "mlp": mlp}, (c.dense_layers,), dtype)
        layers |= {"dense_blocks": dense}
    return _to_structs(top, (), dtype) | layers


def _mlp_shapes(hidden: int, inter: int) -> dict[str, Any]:
    """Shapes of an MLP."""
    sizes = {"gate": (hidden, inter), "up": (hidden, inter), "down": (inter, hidden)}
    return {name: {"kernel": shape} for name, shape in sizes.items()}


def _expert_shapes(config: ModelConfig, experts: ExpertsConfig) -> dict[str, Any]:
    """Shapes of a mixture of experts; those of the experts are stacked, [X, ...]."""
    one = _mlp_shapes(config.hidden, experts.inter)
    shapes: dict[str, Any] = {
        "router": {"kernel": (config.hidden, experts.count)},
        "experts": {
            name: {"kernel": (experts.count, *part["kernel"])}
            for name, part in one.items()
        },
    }
    if experts.bias != "none":
        shapes["router"] |= {"bias": (experts.count,)}
    if experts.shared_inter:
        shapes["shared"] = _mlp_shapes(config.hidden, experts.shared_inter)
    return shapes


def _to_structs(tree: dict[str, Any], lead: tuple[int, ...], dtype) -> dict[str, Any]:
    """A tree of shapes as one of structs, with leading axes put before each shape."""
    return {
        name: _to_structs(part, lead, dtype)
        if isinstance(part, dict)
        else jax.ShapeDtypeStruct((*lead, *part), dtype)
        for name, part in tree.items()
    }


@dataclasses.dataclass(frozen=True)
class Binder:
    """A function that puts parameters into a module, for use inside jit.

    Attributes:
        config: The model's shape; on a mesh as one device sees it.
        machine: What its products are compiled for.
        shards: The devices that the model is split over.
        use_kernels: Use kernels of a GPU, which have no gradient.
        traces_router: Layers tell how close their choices of experts were.
    """

    config: ModelConfig
    machine: Machine = dataclasses.field(default_factory=this_machine)
    shards: ModelShards = WHOLE_MODEL
    use_kernels: bool = False
    traces_router: bool = False

    def __call__(self, params: Params) -> "Transformer":
        """Bind parameters.

        Args:
            params: Parameters of the config, in any layout.

        Returns:
            The module, whose methods can be called.
        """
        from jaxdave.models.transformer import bind

        options = self.shards, self.use_kernels, self.traces_router
        return bind(self.config, params, self.machine, *options)

"""Names of tensors in published checkpoints, and the parameters that they fill.

jaxdave stacks the parameters of all layers along a leading axis and stores kernels as
[in, out]. PyTorch checkpoints have one tensor for each layer and store kernels as
[out, in]. Experts are stacked along a second axis, and have a tensor each there. The
tables below say which tensors a parameter is made of.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

_BUFFER = re.compile(
    r"(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)"
    r"|position_ids|masked_bias|self_attn\.[kv]_scale)$"
)


@dataclasses.dataclass(frozen=True)
class TensorPart:
    """Some rows of a checkpoint tensor, and their place in the parameters.

    Attributes:
      path: path of the parameter that the rows fill, wholly or in part.
      index: indices along the parameter's leading axes, of layers and of experts; empty
        where the parameter is not stacked and the rows fill it alone.
      shape: shape of the rows in the checkpoint, [out, in] or [n].
    """

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def is_transposed(self) -> bool:
        """True where PyTorch's Linear [out, in] has to become our kernel [in, out]."""
        return _is_kernel(self.path)


@dataclasses.dataclass(frozen=True)
class TensorTarget:
    """The place of one checkpoint tensor in the parameters.

    Attributes:
      shape: shape of the tensor in the checkpoint, [out, in] or [n].
      parts: runs of its rows, first to last, each of which fills a parameter of its
        own: one part, or those of projections that the checkpoint has in one tensor.
    """

    shape: tuple[int, ...]
    parts: tuple[TensorPart, ...]


def _tensor_names(
    top: Mapping[str, str],
    layer_prefix: str,
    layer: Mapping[str, str],
    experts: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Join the names outside the layers with those of a layer's parts.

    `experts` has those of a mixture of experts, whose first layers may be dense.
    """
    parts = {
        f"blocks/{path}": name for path, name in {**layer, **(experts or {})}.items()
    }
    if experts is not None:
        parts |= {f"dense_blocks/{path}": name for path, name in layer.items()}
    in_layers = {p: f"{layer_prefix}.{{layer}}.{name}" for p, name in parts.items()}
    return {**top, **in_layers}


def _expert_names(router: str, bias: str, shared: str) -> dict[str, str]:
    """Names of the parts of a mixture of experts, which has one tensor per expert."""
    names = {"mlp/router/kernel": router, "mlp/router/bias": bias}
    for part in ("gate", "up", "down"):
        own = f"mlp.experts.{{expert}}.{part}_proj.weight"
        names[f"mlp/experts/{part}/kernel"] = own
        names[f"mlp/shared/{part}/kernel"] = f"{shared}.{part}_proj.weight"
    return names


_QWEN_TOP = {
    "embedding": "model.embed_tokens.weight",
    "norm/scale": "model.norm.weight",
    "head": "lm_head.weight",
}
_QWEN_LAYER = {
    "norm1/scale": "input_layernorm.weight",
    "norm2/scale": "post_attention_layernorm.weight",
    "attn/q/kernel": "self_attn.q_proj.weight",
    "attn/k/kernel": "self_attn.k_proj.weight",
    "attn/v/kernel": "self_attn.v_proj.weight",
    "attn/o/kernel": "self_attn.o_proj.weight",
    "attn/q/bias": "self_attn.q_proj.bias",
    "attn/k/bias": "self_attn.k_proj.bias",
    "attn/v/bias": "self_attn.v_proj.bias",
    "attn/o/bias": "self_attn.o_proj.bias",
    "attn/q_norm/scale": "self_attn.q_norm.weight",
    "attn/k_norm/scale": "self_attn.k_norm.weight",
    "mlp/gate/kernel": "mlp.gate_proj.weight",
    "mlp/up/kernel": "mlp.up_proj.weight",
    "mlp/down/kernel": "mlp.down_proj.weight",
}
QWEN_TENSORS = _tensor_names(_QWEN_TOP, "model.layers", _QWEN_LAYER)
"""Parameter path -> tensor name in the layout of Qwen2 and Qwen3, which Dream, SDAR and
Fast-dLLM v2 have; "{layer}" stands for a layer's index."""

NEMOTRON_TENSORS = _tensor_names(
    {
        "embedding": "encoder.embed_tokens.weight",
        "norm/scale": "encoder.norm.weight",
        "head": "diffusion_head.weight",
    },
    "encoder.layers",
    _QWEN_LAYER,
)
"""The same of Nemotron-Labs-Diffusion."""

QWEN_MOE_TENSORS = _tensor_names(
    _QWEN_TOP,
    "model.layers",
    _QWEN_LAYER,
    _expert_names("mlp.gate.weight", "mlp.expert_bias", "shared_expert"),
)
"""The same of Qwen3-MoE, which SDAR's mixture and RND1 have, with LLaDA-MoE's shared
expert and bias; "{expert}" stands for an expert's index."""

LLADA2_TENSORS = _tensor_names(
    {**_QWEN_TOP, "embedding": "model.word_embeddings.weight"},
    "model.layers",
    {
        **{path: name for path, name in _QWEN_LAYER.items() if "attn/" not in path},
        # One tensor has the rows of all three, in this order.
        **{f"attn/{part}/kernel": "attention.query_key_value.weight" for part in "qkv"},
        "attn/o/kernel": "attention.dense.weight",
        "attn/q_norm/scale": "attention.query_layernorm.weight",
        "attn/k_norm/scale": "attention.key_layernorm.weight",
    },
    _expert_names("mlp.gate.weight", "mlp.gate.expert_bias", "mlp.shared_experts"),
)
"""Parameter path -> tensor name in the layout of LLaDA2."""

LLADA_TENSORS = _tensor_names(
    {
        "embedding": "model.transformer.wte.weight",
        "norm/scale": "model.transformer.ln_f.weight",
        # The output head has the name of each layer's last projection.
        "head": "model.transformer.ff_out.weight",
    },
    "model.transformer.blocks",
    {
        "norm1/scale": "attn_norm.weight",
        "norm2/scale": "ff_norm.weight",
        "attn/q/kernel": "q_proj.weight",
        "attn/k/kernel": "k_proj.weight",
        "attn/v/kernel": "v_proj.weight",
        "attn/o/kernel": "attn_out.weight",
        "attn/q/bias": "q_proj.bias",
        "attn/k/bias": "k_proj.bias",
        "attn/v/bias": "v_proj.bias",
        # silu is applied to ff_proj, so that is the gate; a layer's ff_out projects
        # back to the hidden size.
        "mlp/gate/kernel": "ff_proj.weight",
        "mlp/up/kernel": "up_proj.weight",
        "mlp/down/kernel": "ff_out.weight",
    },
)
"""Parameter path -> tensor name in the layout of LLaDA."""


def is_buffer(name: str) -> bool:
    """Tell tensors that some files store and that no parameter is made of.

    Args:
      name: a tensor's name.

    Returns:
      True for what is computed from the config (rotary tables, position ids and causal
      masks), and for scales of a KV cache in 8 bits.
    """
    return _BUFFER.search(name) is not None


def tensor_targets(
    shapes: Mapping[str, tuple[int, ...]],
    num_layers: int,
    tensor_names: Mapping[str, str],
) -> dict[str, TensorTarget]:
    """List the tensors that make up a set of parameters.

    Args:
      shapes: parameter path -> shape of the parameter, layers stacked in front.
      num_layers: number of layers of the model.
      tensor_names: parameter path -> tensor name, such as `QWEN_TENSORS`.

    Returns:
      Tensor name -> where the tensor goes, in the order of `shapes` and, inside a
      stacked parameter, in the order of the layers.

    Raises:
      KeyError: a parameter has no name in the table.
    """
    parts: dict[str, list[TensorPart]] = {}
    for path, shape in shapes.items():
        name = tensor_names[path]
        num_axes = ("{layer}" in name) + ("{expert}" in name)
        # Leading axes are ours alone; PyTorch's Linear stores [out, in].
        part_shape = shape[num_axes:]
        if _is_kernel(path):
            part_shape = part_shape[::-1]
        # The last stack of layers ends with the model.
        first = num_layers - shape[0] if path.startswith("blocks/") else 0
        for index in np.ndindex(*shape[:num_axes]):
            keys = dict(zip(("layer", "expert"), index, strict=False))
            if keys:
                keys["layer"] += first
            part = TensorPart(path, tuple(index), part_shape)
            parts.setdefault(name.format(**keys), []).append(part)
    # Rows of a tensor of several parameters lie in the order of the table.
    place = {path: number for number, path in enumerate(tensor_names)}
    return {
        name: _join_parts(sorted(own, key=lambda part: place[part.path]))
        for name, own in parts.items()
    }


def _join_parts(parts: Sequence[TensorPart]) -> TensorTarget:
    """The tensor that consists of these rows."""
    rows = sum(part.shape[0] for part in parts)
    return TensorTarget((rows, *parts[0].shape[1:]), tuple(parts))


def _is_kernel(path: str) -> bool:
    return path.endswith("/kernel")

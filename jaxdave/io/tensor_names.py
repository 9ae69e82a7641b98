"""Names of tensors in published checkpoints, and the parameters that they fill.

jaxdave stacks the parameters of all layers along a leading axis and stores kernels as
[in, out]. PyTorch checkpoints have one tensor for each layer and store kernels as
[out, in]. The tables below say which tensors a parameter is made of.
"""

import dataclasses
import re
from collections.abc import Mapping

_BUFFER = re.compile(
    r"(rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)"
    r"|position_ids|masked_bias)$"
)


@dataclasses.dataclass(frozen=True)
class TensorTarget:
    """The place of one checkpoint tensor in the parameters.

    Attributes:
      path: path of the parameter that the tensor fills, wholly or in part.
      layer: index along the parameter's leading layer axis; None where the parameter
        is not stacked and the tensor fills it alone.
      shape: shape of the tensor in the checkpoint, [out, in] or [n].
    """

    path: str
    layer: int | None
    shape: tuple[int, ...]

    @property
    def is_transposed(self) -> bool:
        """True where PyTorch's Linear [out, in] has to become our kernel [in, out]."""
        return _is_kernel(self.path)


def _tensor_names(
    top: Mapping[str, str], layer_prefix: str, layer: Mapping[str, str]
) -> dict[str, str]:
    """Join the names outside the layers with those of a layer's parts."""
    return {
        **top,
        **{
            f"blocks/{path}": f"{layer_prefix}.{{layer}}.{name}"
            for path, name in layer.items()
        },
    }


QWEN_TENSORS = _tensor_names(
    {
        "embedding": "model.embed_tokens.weight",
        "norm/scale": "model.norm.weight",
        "head": "lm_head.weight",
    },
    "model.layers",
    {
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
    },
)
"""Parameter path -> tensor name in the layout of Qwen2 and Qwen3, which Dream, SDAR and
Fast-dLLM v2 have; "{layer}" stands for a layer's index."""

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
    """Tell tensors that are computed from the config, and that some files store.

    Args:
      name: a tensor's name.

    Returns:
      True for rotary tables, position ids and causal masks.
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
    targets = {}
    for path, shape in shapes.items():
        name = tensor_names[path]
        is_stacked = "{layer}" in name
        # The layer axis is ours alone; PyTorch's Linear stores [out, in].
        tensor_shape = shape[1:] if is_stacked else shape
        if _is_kernel(path):
            tensor_shape = tensor_shape[::-1]
        for layer in range(num_layers) if is_stacked else [None]:
            targets[name.format(layer=layer)] = TensorTarget(path, layer, tensor_shape)
    return targets


def _is_kernel(path: str) -> bool:
    return path.endswith("/kernel")

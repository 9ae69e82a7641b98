"""The parts of the transformer: Flax NNX modules that hold parameters and no state.

Every matmul that feeds a decision runs at the highest precision of its dtype; norms,
softmax and scores are float32. Attention itself is passed in as a function (see
`models.attention`), so that training, prefill and decoding share these modules.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdave.core.config import ModelConfig
from jaxdave.core.shards import WHOLE_MODEL, ModelShards
from jaxdave.models.rope import Rope, rotate, scale_queries
from jaxdave.numerics.matmul import FusedKernels, matmul
from jaxdave.runtime.machine import Machine

INIT = nnx.initializers.normal(0.02)
"""What matrices are drawn from."""


class Linear(nnx.Module):
    """A linear layer with an optional bias.

    Attributes:
        kernel: An array [in, out], or a matrix of another layout (`numerics.matmul`).
        machine: What products are compiled for.
        bias: An array [out], or None.
    """

    def __init__(
        self, fan_in, fan_out, *, bias=False, dtype, rngs: nnx.Rngs, machine: Machine
    ):
        """Initialise parameters.

        Args:
            fan_in: Input features.
            fan_out: Output features.
            bias: Whether there is a bias.
            dtype: Of the parameters.
            rngs: Where the kernel is drawn from.
            machine: What products are compiled for.
        """
        self.kernel = nnx.Param(INIT(rngs.params(), (fan_in, fan_out), dtype))
        self.bias = nnx.Param(jnp.zeros((fan_out,), dtype)) if bias else None
        self.machine = machine

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer.

        Args:
            x: [..., in].

        Returns:
            [..., out] in the dtype of `x`.
        """
        return self.add_bias(self.product(x))

    def product(self, x: jax.Array) -> jax.Array:
        """Multiply by the kernel, without the bias.

        Args:
            x: [..., in].

        Returns:
            [..., out] in the dtype of `x`.
        """
        return matmul(x, self.kernel.get_value(), self.machine).astype(x.dtype)

    def add_bias(self, y: jax.Array) -> jax.Array:
        """Add the bias, if there is one.

        Args:
            y: A product with the kernel, [..., out].

        Returns:
            The layer's output.
        """
        if self.bias is None:
            return y
        return y + _expand(self.bias[...].astype(y.dtype), y.ndim)


def apply_linears(x: jax.Array, *linears: Linear) -> list[jax.Array]:
    """Apply several linear layers to the same input.

    Args:
        x: [..., in].
        *linears: The layers. Where their kernels are fused (`FusedKernels`), the first
            one holds all of them, and one product computes all outputs.

    Returns:
        The output of each layer.
    """
    kernel = linears[0].kernel.get_value()
    if not isinstance(kernel, FusedKernels):
        return [linear(x) for linear in linears]
    products = kernel.matmul_each(x, linears[0].machine)
    return [linear.add_bias(y) for linear, y in zip(linears, products, strict=True)]


def join_linears(x: jax.Array, *linears: Linear) -> jax.Array:
    """Apply several linear layers to the same input, side by side.

    Args:
        x: [..., in].
        *linears: The layers, as for `apply_linears`.

    Returns:
        The outputs of all layers, [..., sum of out].
    """
    kernel = linears[0].kernel.get_value()
    if not isinstance(kernel, FusedKernels):
        return jnp.concatenate(apply_linears(x, *linears), axis=-1)
    y = kernel.matmul(x, linears[0].machine)
    if linears[0].bias is None:
        return y
    bias = jnp.concatenate(
        [linear.bias[...] for linear in linears if linear.bias is not None]
    )
    return y + _expand(bias.astype(y.dtype), y.ndim)


class RMSNorm(nnx.Module):
    """Root-mean-square norm: statistics in float32, cast back, then scaled.

    Attributes:
        scale: An array [size].
        eps: Added to the mean square.
    """

    def __init__(self, size, eps, *, dtype):
        """Initialise the scale to 1.

        Args:
            size: Features.
            eps: Added to the mean square.
            dtype: Of the scale.
        """
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the norm.

        Args:
            x: [..., size].

        Returns:
            The normed array, in the shape and dtype of `x`.
        """
        wide = x.astype(jnp.float32)
        mean = jnp.mean(wide * wide, axis=-1, keepdims=True)
        # Cast before scaling, as the published PyTorch modules do: in bfloat16 the
        # other order gives other bits.
        normed = (wide * jax.lax.rsqrt(mean + self.eps)).astype(x.dtype)
        return _expand(self.scale[...].astype(x.dtype), x.ndim) * normed


class Attention(nnx.Module):
    """Projections, per-head norms and rotation around an attention function.

    On a mesh these are the projections of this device's own heads.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype,
        rngs: nnx.Rngs,
        machine: Machine,
        use_kernels: bool = False,
        shards: ModelShards = WHOLE_MODEL,
    ):
        """Initialise parameters.

        Args:
            config: The model's shape.
            dtype: Of the parameters.
            rngs: Where kernels are drawn from.
            machine: What products are compiled for.
            use_kernels: Use kernels of a GPU, which have no gradient.
            shards: The devices that the parameters are split over.
        """
        c, self.shards = config, shards
        options = {"dtype": dtype, "rngs": rngs, "machine": machine}
        q_size, kv_size = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.q = Linear(c.hidden, q_size, bias=c.qkv_bias, **options)
        self.k = Linear(c.hidden, kv_size, bias=c.qkv_bias, **options)
        self.v = Linear(c.hidden, kv_size, bias=c.qkv_bias, **options)
        self.o = Linear(q_size, c.hidden, bias=c.o_bias, **options)
        has_norm = c.qk_norm
        self.q_norm = RMSNorm(c.head_dim, c.rms_eps, dtype=dtype) if has_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.rms_eps, dtype=dtype) if has_norm else None
        self.num_heads = c.heads, c.kv_heads, c.kv_heads
        self.head_dim, self.rotary_dim = c.head_dim, c.rotary_dim
        self.machine, self.use_kernels = machine, use_kernels
        self.rope_fp32 = c.rope_fp32

    def project(self, x: jax.Array, rope: Rope):
        """Project vectors to queries, keys and values, and rotate the first two.

        Args:
            x: Normed vectors [..., L, E].
            rope: Cosines and sines of their positions.

        Returns:
            q [..., L, H, D], k and v [..., L, G, D].
        """
        # Norms and rotation work head by head, so
        # heads are split first: [..., L, H, D].
        if self.use_kernels and len(rope) == 2 and self._fits_kernel(x):
            return self._project_by_kernel(x, rope)
        q, k, v = map(self._split_heads, apply_linears(x, self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (rotate(part, rope, self.rope_fp32) for part in (q, k))
        return scale_queries(q, rope), k, v

    def _fits_kernel(self, x: jax.Array) -> bool:
        # Pallas is imported only where it is used: it takes a second.
        from jaxdave.models.rotary_kernel import fits_kernel

        return fits_kernel(x, self.head_dim, self.rotary_dim)

    def _project_by_kernel(self, x: jax.Array, rope: Rope):
        """`project`, with one kernel after the product."""
        from jaxdave.models.rotary_kernel import norm_and_rotate

        lead, sizes = x.shape[:-1], self.num_heads
        heads = join_linears(x, self.q, self.k, self.v)
        scales, eps = None, 0.0
        if self.q_norm is not None and self.k_norm is not None:
            scales = self.q_norm.scale[...], self.k_norm.scale[...]
            eps = self.q_norm.eps
        # Positions may be shared by all drafts.
        cos, sin = (
            jnp.broadcast_to(part, (*lead, part.shape[-1])).reshape(-1, part.shape[-1])
            for part in rope
        )
        parts = norm_and_rotate(
            heads.reshape(-1, sum(sizes), self.head_dim),
            (cos, sin),
            scales,
            eps,
            sizes,
            self.machine,
        )
        return tuple(part.reshape(*lead, *part.shape[1:]) for part in parts)

    def merge(self, context: jax.Array) -> jax.Array:
        """Merge the heads through the output projection.

        Args:
            context: Weighted values [..., L, H, D].

        Returns:
            [..., L, E].
        """
        heads = context.reshape(*context.shape[:-2], -1)
        # The bias is that of the sum: no device may add it to its part.
        return self.o.add_bias(self.shards.sum_attention(self.o.product(heads)))

    def _split_heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)


class MLP(nnx.Module):
    """The SwiGLU feed-forward layer (arXiv 2002.05202).

    On a mesh it has this device's own features.
    """

    def __init__(
        self,
        hidden: int,
        inter: int,
        *,
        dtype,
        rngs: nnx.Rngs,
        machine: Machine,
        shards: ModelShards = WHOLE_MODEL,
    ):
        """Initialise parameters.

        Args:
            hidden: Width of the residual stream.
            inter: Width inside the layer.
            dtype: Of the parameters.
            rngs: Where kernels are drawn from.
            machine: What products are compiled for.
            shards: The devices that the parameters are split over.
        """
        self.shards = shards
        options = {"dtype": dtype, "rngs": rngs, "machine": machine}
        self.gate = Linear(hidden, inter, **options)
        self.up = Linear(hidden, inter, **options)
        self.down = Linear(inter, hidden, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layer.

        Args:
            x: Normed vectors [..., E].

        Returns:
            [..., E].
        """
        gate, up = apply_linears(x, self.gate, self.up)
        return self.shards.sum_mlp(self.down(jax.nn.silu(gate) * up))


def _expand(vector: jax.Array, ndim: int) -> jax.Array:
    """The vector with leading axes of 1: rank promotion is an error in our tests."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)

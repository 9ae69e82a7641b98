"""The parts of the transformer: Flax NNX modules that hold parameters, and no state.

Every matmul that feeds a decision runs at the highest precision of its dtype, every
norm, softmax and score in float32. Attention itself is passed in (see `attention.py`),
so that training, prefill and decoding share these modules.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdave.core.config import ModelConfig
from jaxdave.models.rope import Rope, rotate
from jaxdave.numerics.matmul import FusedKernels, matmul

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_INIT = nnx.initializers.normal(0.02)


class Linear(nnx.Module):
    """A matmul with an optional bias; the kernel is [in, out], or see `matrices`."""

    def __init__(self, fan_in, fan_out, *, bias=False, dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_INIT(rngs.params(), (fan_in, fan_out), dtype))
        self.bias = nnx.Param(jnp.zeros((fan_out,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.biased(matmul(x, self.kernel.get_value()).astype(x.dtype))

    def biased(self, y: jax.Array) -> jax.Array:
        """The output of a product."""
        if self.bias is None:
            return y
        return y + _row(self.bias[...].astype(y.dtype), y.ndim)


def apply_linears(x: jax.Array, *parts: Linear) -> list[jax.Array]:
    """What several parts make of the same input, in one product if they are joined."""
    joined = parts[0].kernel.get_value()
    if not isinstance(joined, FusedKernels):
        return [part(x) for part in parts]
    made = joined.split(matmul(x, joined.matrix).astype(x.dtype))
    return [part.biased(y) for part, y in zip(parts, made, strict=True)]


class RMSNorm(nnx.Module):
    """Root-mean-square norm: statistics in float32, cast, then scaled."""

    def __init__(self, size, eps, *, dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        mean = jnp.mean(wide * wide, axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(mean + self.eps)).astype(x.dtype)
        return _row(self.scale[...].astype(x.dtype), x.ndim) * normed


class Attention(nnx.Module):
    """Projections, per-head norms and rotation around an attention function."""

    def __init__(self, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        c = config
        sizes = {"dtype": dtype, "rngs": rngs}
        q_size, kv_size = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.q = Linear(c.hidden, q_size, bias=c.qkv_bias, **sizes)
        self.k = Linear(c.hidden, kv_size, bias=c.qkv_bias, **sizes)
        self.v = Linear(c.hidden, kv_size, bias=c.qkv_bias, **sizes)
        self.o = Linear(q_size, c.hidden, **sizes)
        normed = c.qk_norm
        self.q_norm = RMSNorm(c.head_dim, c.rms_eps, dtype=dtype) if normed else None
        self.k_norm = RMSNorm(c.head_dim, c.rms_eps, dtype=dtype) if normed else None
        self.head_dim = c.head_dim
        self.rope_fp32 = c.rope_fp32

    def project(self, x: jax.Array, rope: Rope):
        """Queries, and rotated keys and values, [..., L, heads, D]."""
        q, k, v = map(self._heads, apply_linears(x, self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (rotate(part, rope, self.rope_fp32) for part in (q, k))
        return q, k, v

    def merge(self, context: jax.Array) -> jax.Array:
        """The layer's output of attended values [..., L, H, D]."""
        return self.o(context.reshape(*context.shape[:-2], -1))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], -1, self.head_dim)


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        sizes = {"dtype": dtype, "rngs": rngs}
        self.gate = Linear(config.hidden, config.inter, **sizes)
        self.up = Linear(config.hidden, config.inter, **sizes)
        self.down = Linear(config.inter, config.hidden, **sizes)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = apply_linears(x, self.gate, self.up)
        return self.down(jax.nn.silu(gate) * up)


class Block(nnx.Module):
    """One pre-norm layer; returns its output and its rotated keys and values."""

    def __init__(self, config: ModelConfig, *, dtype, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.hidden, config.rms_eps, dtype=dtype)
        self.attn = Attention(config, dtype=dtype, rngs=rngs)
        self.norm2 = RMSNorm(config.hidden, config.rms_eps, dtype=dtype)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, rope: Rope, attend: Attend):
        q, k, v = self.project(x, rope)
        return self.finish(x, attend(q, k, v)), (k, v)

    def project(self, x: jax.Array, rope: Rope):
        """What attention needs of each position."""
        return self.attn.project(self.norm1(x), rope)

    def finish(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """The layer's output, given what each position attended to."""
        x = x + self.attn.merge(context)
        return x + self.mlp(self.norm2(x))


def _row(vector: jax.Array, ndim: int) -> jax.Array:
    """The vector with leading axes of 1: rank promotion is an error in our tests."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)

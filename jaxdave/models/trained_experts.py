"""Mixtures of experts under training: products with a written gradient, and balance.

Differentiated by JAX, a loop over tiles adds an array of the size of all experts for
every tile. Here the gradients of an expert's matrices are added up where they lie.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.models.expert_tiles import Tiles, lay_out_tiles

SMALLEST_TILE, LARGEST_TILE = 8, 128
"""Rows of a tile: about as many as an expert has, within these bounds."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainedStack:
    """One matrix of every expert, which a gradient is asked for.

    Attributes:
        array: An array [X, in, out]; it may have a leading axis of layers, which a fold
            over layers slices.
    """

    array: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.array.shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainedRouter:
    """The matrix of a router whose experts are to get equally many tokens.

    Attributes:
        array: An array [E, X], as of `TrainedStack`.
        balance: How much that counts beside a token's loss; 0: nothing.
    """

    array: jax.Array
    balance: float = dataclasses.field(metadata={"static": True})


def balanced(
    logits_SX: jax.Array,
    bias_X: jax.Array | None,
    expert_SC: jax.Array,
    config: ExpertsConfig,
    balance: float,
) -> tuple[jax.Array, jax.Array | None]:
    """Add the gradient of a balance of experts to router logits, or to their bias.

    Where a bias is for the choice only, its gradient is how many tokens more than the
    mean an expert has: the optimiser lowers it, as DeepSeek-V3 and LLaDA2 do step by
    step. Otherwise that of logits is of Qwen3-MoE's auxiliary loss, the number of
    experts times the sum over them of the share of tokens and the mean probability.
    Either is per token, beside the losses of tokens before their division. Values are
    unchanged.

    Args:
        logits_SX: Router logits, float32 [S, X].
        bias_X: What is added to scores, [X]; None: nothing.
        expert_SC: The experts of each token, int32 [S, C].
        config: How experts are chosen.
        balance: What the balance counts.

    Returns:
        The same logits and bias.

    Source: DeepSeek-V3, arXiv 2412.19437 (section 2.1.2); transformers
    models/qwen3_moe/modeling_qwen3_moe.py (load_balancing_loss_func).
    """
    tokens, choices = expert_SC.shape
    count_X = jnp.zeros(config.count, jnp.float32).at[expert_SC.reshape(-1)].add(1)
    if config.bias == "choice" and bias_X is not None:
        excess_X = count_X - tokens * choices / config.count
        return logits_SX, _with_gradient(bias_X, balance * excess_X)
    share_X = count_X / tokens

    def auxiliary(logits_SX):
        is_softmax = config.score == "softmax"
        score_SX = (jax.nn.softmax if is_softmax else jax.nn.sigmoid)(logits_SX)
        share_SX = score_SX / jnp.sum(score_SX, axis=1, keepdims=True)
        return balance * config.count * jnp.sum(share_SX * share_X[None])

    gradient_SX = jax.grad(auxiliary)(jax.lax.stop_gradient(logits_SX))
    return _with_gradient(logits_SX, gradient_SX), bias_X


@jax.custom_vjp
def _with_gradient(value: jax.Array, gradient: jax.Array) -> jax.Array:
    """The value, whose gradient is another one's beside its own."""
    del gradient
    return value


def _keep_gradient(value: jax.Array, gradient: jax.Array):
    return value, gradient.astype(value.dtype)


def _add_gradient(gradient: jax.Array, d_value: jax.Array):
    return d_value + gradient, None


_with_gradient.defvjp(_keep_gradient, _add_gradient)


def trained_outputs(
    x_SE: jax.Array, expert_SC: jax.Array, gate: Any, up: Any, down: Any
) -> jax.Array:
    """Outputs of each token's experts, tile by tile.

    Args:
        x_SE: Normed vectors [S, E].
        expert_SC: The experts of each token, int32 [S, C].
        gate: Array [X, E, F].
        up: Array [X, E, F].
        down: Array [X, F, E].

    Returns:
        float32 [S, C, E].
    """
    rows = SMALLEST_TILE
    while rows < LARGEST_TILE and rows * len(gate) < expert_SC.size:
        rows *= 2
    tiles = lay_out_tiles(expert_SC, len(gate), rows)
    return _tiled(x_SE, gate, up, down, tiles)


@jax.custom_vjp
def _tiled(x_SE, gate, up, down, tiles: Tiles) -> jax.Array:
    return _forward(x_SE, gate, up, down, tiles)[0]


def _forward(x_SE, gate, up, down, tiles: Tiles):
    padded_SE = jnp.concatenate([x_SE, jnp.zeros_like(x_SE[:1])])

    def body(_, tile):
        expert, token_R = tile
        x_RE = padded_SE[token_R]
        _, _, inner = _inner(x_RE, gate[expert], up[expert])
        return None, _product("rf,fe->re", inner, down[expert])

    _, output_JRE = jax.lax.scan(body, None, (tiles.expert_J, tiles.token_JR))
    output_SCE = output_JRE.reshape(-1, x_SE.shape[1])[tiles.row_SC]
    return output_SCE, (x_SE, gate, up, down, tiles)


def _backward(saved, d_output_SCE: jax.Array):
    x_SE, gate, up, down, tiles = saved
    rows, hidden = tiles.token_JR.size, x_SE.shape[1]
    padded_SE = jnp.concatenate([x_SE, jnp.zeros_like(x_SE[:1])])
    # Empty rows have no gradient.
    empty = jnp.zeros((rows, hidden), d_output_SCE.dtype)
    d_rows = empty.at[tiles.row_SC.reshape(-1)].set(d_output_SCE.reshape(-1, hidden))
    d_output_JRE = d_rows.reshape(*tiles.token_JR.shape, hidden)

    def add(total_XIO, expert, part):
        own = jax.lax.dynamic_index_in_dim(total_XIO, expert, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(total_XIO, own + part, expert, 0)

    def body(totals, tile):
        expert, token_R, d_output = tile
        x_RE = padded_SE[token_R]
        # Computed again, so that no array of the size of all rows is kept.
        gate_RF, up_RF, inner = _inner(x_RE, gate[expert], up[expert])
        d_output = d_output.astype(x_RE.dtype)
        d_inner = _product("re,fe->rf", d_output, down[expert]).astype(x_RE.dtype)
        silu, of_gate = jax.vjp(jax.nn.silu, gate_RF)
        d_up, (d_gate,) = d_inner * silu, of_gate(d_inner * up_RF)
        parts = (
            _product("re,rf->ef", x_RE, d_gate),
            _product("re,rf->ef", x_RE, d_up),
            _product("rf,re->fe", inner, d_output),
        )
        d_x = _product("rf,ef->re", d_gate, gate[expert])
        d_x += _product("rf,ef->re", d_up, up[expert])
        added = (add(*pair) for pair in zip(totals, [expert] * 3, parts, strict=True))
        return tuple(added), d_x

    zeros = tuple(jnp.zeros(part.shape, jnp.float32) for part in (gate, up, down))
    scanned = tiles.expert_J, tiles.token_JR, d_output_JRE
    totals, d_x_JRE = jax.lax.scan(body, zeros, scanned)
    d_x_SE = jnp.sum(d_x_JRE.reshape(-1, hidden)[tiles.row_SC], axis=1)
    kernels = (a.astype(b.dtype) for a, b in zip(totals, (gate, up, down), strict=True))
    return d_x_SE.astype(x_SE.dtype), *kernels, None


_tiled.defvjp(_forward, _backward)


def _inner(x_RE: jax.Array, gate_EF: jax.Array, up_EF: jax.Array):
    """What SwiGLU multiplies, and what it puts out, rounded as in `layers.MLP`."""
    gate_RF = _product("re,ef->rf", x_RE, gate_EF).astype(x_RE.dtype)
    up_RF = _product("re,ef->rf", x_RE, up_EF).astype(x_RE.dtype)
    return gate_RF, up_RF, jax.nn.silu(gate_RF) * up_RF


def _product(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(
        spec,
        a,
        b,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )

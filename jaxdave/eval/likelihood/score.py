"""The log-likelihood of a text after another, as a masked diffusion model says it.

Such a model gives no single number. What is computed here is a bound from below, or the
likelihood of one order of decoding (`masks.py`). Full attention sees the context and
what is not hidden of the target, which is scored as one stretch; a block-causal model's
target is scored block by block, after the clean text before each. Nothing stands behind
the target. Ids that a decoder never predicts, the mask's first of all, have no share of
the probabilities. `scoring.py` is the host's side.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig, Numerics
from jaxdave.core.model_api import ModelFns
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.full_attention import uncached_model
from jaxdave.models.guidance import with_guidance
from jaxdave.sampling.chunked_head import chunk_logits, num_chunks, token_log_odds

TOKENS = 512
"""Tokens of one row's blocks that are evaluated side by side."""


class Row(NamedTuple):
    """Samples of one question, evaluated together.

    tokens_T: the clean text, filled up. The window of L positions from `start` on holds
    the target, which ends at `end`. hidden_SL, weight_SL: as in `masks.Masks`.
    """

    tokens_T: Any
    start: Any
    end: Any
    hidden_SL: Any
    weight_SL: Any


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What questions are scored with; made by `scorer`.

    network: positions -> Network. length: the block length of a block-causal model;
    None: full attention. told_before: whether a block's first token is predicted by the
    block before. max_positions: of context and target together.
    """

    network: Callable[[int], ModelFns]
    length: int | None
    told_before: bool
    mask_id: int
    max_positions: int


@functools.cache
def scorer(
    config: ModelConfig,
    *,
    numerics: Numerics | str = Numerics.GUARDED,
    block_length: int | None = None,
    guidance: float = 0.0,
) -> Scorer:
    """The scorer of a model.

    numerics: "guarded" computes in float32, others in the dtype of the weights.
    block_length: of a block-causal model, by default its own. guidance: of a model with
    full attention, 0 is off.
    """
    is_causal = config.attention == "block_causal"
    length = block_length or config.block_length

    def make(positions: int) -> ModelFns:
        shared: Any = {"numerics": numerics, "positions": positions}
        if is_causal:
            return block_causal_model(config, block_length=length, **shared)
        plain = uncached_model(config, **shared)
        return with_guidance(plain, guidance, config.mask_id) if guidance else plain

    return Scorer(
        network=make,
        length=length if is_causal else None,
        told_before=is_causal and config.logits_shift != "none",
        mask_id=config.mask_id,
        max_positions=config.max_positions,
    )


def score(of: Scorer, params, rows: Row) -> jax.Array:
    """What the samples of every row add to the log-likelihood, float32 [B]."""
    network = of.network(rows.tokens_T.shape[1])
    return jax.vmap(lambda row: _score(of, network, params, row))(rows)


def _score(of: Scorer, network: ModelFns, params, row: Row) -> jax.Array:
    samples, size = row.hidden_SL.shape
    length = of.length or size
    clean_L = jax.lax.dynamic_slice(row.tokens_T, (row.start,), (size,))
    told_LE, cache = network.prefill(
        params, row.tokens_T, row.start, row.start, row.end, size, len(row.tokens_T)
    )

    def stretch(index):
        at, cut = index * length, lambda a: _slice(a, index * length, length)
        hidden_SP, clean_P = cut(row.hidden_SL), cut(clean_L[None])
        noisy_SP = jnp.where(hidden_SP, jnp.int32(of.mask_id), clean_P)
        hidden_SPE, _ = network.forward(
            params, noisy_SP, row.start + at, row.end, cache
        )
        if of.told_before:
            own_SE = hidden_SPE[:, 0]
            before_SE = jnp.broadcast_to(told_LE[at][None], own_SE.shape)
            first_SE = jnp.where(row.start + at > 0, before_SE, own_SE)
            hidden_SPE = hidden_SPE.at[:, 0].set(first_SE)
        ids_SP = jnp.broadcast_to(clean_P, hidden_SP.shape)
        logs_SP = log_probabilities(network, params, hidden_SPE, ids_SP)
        weight_SP = cut(row.weight_SL)
        return jnp.sum(jnp.where(weight_SP > 0, weight_SP * logs_SP, 0.0))

    index_J = jnp.arange(size // length, dtype=jnp.int32)
    together = max(1, TOKENS // (samples * length))
    return jnp.sum(jax.lax.map(stretch, index_J, batch_size=together))


def log_probabilities(network: ModelFns, params, hidden: jax.Array, ids: jax.Array):
    """Float32 logs of the probabilities of ids [...] by vectors [..., E].

    The vocabulary is read in chunks; no table of it is kept.
    """
    hidden_RE = hidden.reshape(-1, hidden.shape[-1])
    logits = chunk_logits(network, params, hidden_RE)
    odds_R = token_log_odds(logits, num_chunks(network), 1.0, ids.reshape(-1))
    return jax.nn.log_sigmoid(odds_R).reshape(ids.shape)


def _slice(array_SL: jax.Array, at, length: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array_SL, at, length, axis=1)

"""Drafts of a draft model: a small recurrent model, run ahead of the large one.

The draft model reads committed tokens from left to right, once: its hidden state is the
draft function's memory and follows the accepted path. From there it predicts the open
positions of the window, and its tokens compete with the large model's own prediction
(see `guesses`). Like every draft, it can save calls and cannot change the text.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftFn
from jaxdave.core.made_by import remembered
from jaxdave.core.state import RowState
from jaxdave.drafting.guesses import TokenGuess, with_guesses
from jaxdave.drafting.nested import nested

MAX_PROBABILITY = 1.0 - 1e-4
"""A small model is never taken to be surer than this."""


@dataclasses.dataclass(frozen=True)
class DraftModelConfig:
    """The shape of a draft model.

    Attributes:
        vocab_rows: Rows of its embedding, those of the large model's.
        features: Size of its hidden state.
        mask_id: The large model's mask id, which ends what is committed.
    """

    vocab_rows: int
    mask_id: int
    features: int = 64


class DraftModelMemory(NamedTuple):
    """What the draft model has read of a row.

    Attributes:
        hidden_F: Hidden state, float32 [F].
        length: Tokens read, int32: up to the first masked position.
    """

    hidden_F: jax.Array
    length: jax.Array


def init_draft_params(config: DraftModelConfig, seed: int) -> dict[str, jax.Array]:
    """Random parameters of a draft model.

    Args:
        config: Its shape.
        seed: Draws them.

    Returns:
        Arrays by name, float32.
    """
    size = config.features
    keys = jax.random.split(jax.random.PRNGKey(seed), 3)
    return {
        "embedding": 0.1 * jax.random.normal(keys[0], (config.vocab_rows, size)),
        "input": size**-0.5 * jax.random.normal(keys[1], (size, 3 * size)),
        "hidden": size**-0.5 * jax.random.normal(keys[2], (size, 3 * size)),
        "bias": jnp.zeros((3 * size,)),
    }


def read_token(
    params: dict[str, jax.Array], hidden: jax.Array, token: jax.Array
) -> jax.Array:
    """The hidden state after one more token: a gated recurrent unit.

    Args:
        params: Parameters of the draft model.
        hidden: Hidden states, float32 [..., F].
        token: Token ids, int32 [...].

    Returns:
        Hidden states [..., F].

    Source: GRU, Cho et al., arXiv 1406.1078, with the reset gate after the product.
    """
    return read_input(params, hidden, token_input(params, token))


def token_input(params: dict[str, jax.Array], token: jax.Array) -> jax.Array:
    """What tokens [...] add to the gates, [..., 3 F], whatever was read before."""
    bias = params["bias"].reshape((1,) * token.ndim + (-1,))
    return params["embedding"][token] @ params["input"] + bias


def read_input(
    params: dict[str, jax.Array], hidden: jax.Array, x: jax.Array
) -> jax.Array:
    """`read_token` of a token's `token_input`."""
    # The three gates of a GRU side by side, [..., 3 F]: reset, update, new.
    h = hidden @ params["hidden"]
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = (
        jnp.split(part, 3, axis=-1) for part in (x, h)
    )
    reset = jax.nn.sigmoid(reset_x + reset_h)
    update = jax.nn.sigmoid(update_x + update_h)
    return update * hidden + (1 - update) * jnp.tanh(new_x + reset * new_h)


def next_logits(params: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
    """Logits of the next token; the output head is the embedding.

    Args:
        params: Parameters of the draft model.
        hidden: Hidden states, float32 [..., F].

    Returns:
        Logits float32 [..., V].
    """
    return hidden @ params["embedding"].T


@functools.cache
@remembered
def draft_model(config: DraftModelConfig, base: DraftFn = nested) -> DraftFn:
    """The draft function of a draft model.

    Args:
        config: Its shape. The parameters are given to each decode, as
            `DraftedParams(model=..., draft=...)`.
        base: Orders tokens into drafts; a draft function without memory and parameters.

    Returns:
        A draft function with a memory.

    Raises:
        ValueError: `base` has a memory or parameters of its own.

    Example:
        config = DraftModelConfig(model.config.vocab_rows, model.config.mask_id)
        decoder = jaxdave.freedave(model.config, draft=draft_model(config))
        params = DraftedParams(model=model.params, draft=draft_params)
        jaxdave.generate(decoder, params, [prompt_ids])
    """
    # A base without state compares equal to one
    # that is rebuilt from its `propose` alone.
    if base.takes_params or base != DraftFn(base.propose, reads_text=base.reads_text):
        raise ValueError(
            f"base={base!r} has a memory or parameters of its own, and a draft model "
            "needs that place; use nested or a tree"
        )

    def init(params: Any, row: RowState) -> DraftModelMemory:
        empty = DraftModelMemory(jnp.zeros((config.features,)), jnp.int32(0))
        return update(params, empty, row)

    def update(params: Any, memory: DraftModelMemory, row: RowState):
        """Read on to the first masked position."""
        capacity = row.tokens_T.shape[0]

        def token_at(index):
            return row.tokens_T[jnp.minimum(index, capacity - 1)]

        def is_committed(memory: DraftModelMemory):
            # A committed block may follow masks. What lies behind them is not read into
            # the memory, as the recurrence would have skipped the tokens between.
            is_inside = memory.length < capacity
            return is_inside & (token_at(memory.length) != config.mask_id)

        def read(memory: DraftModelMemory):
            hidden_F = read_token(params, memory.hidden_F, token_at(memory.length))
            return DraftModelMemory(hidden_F, memory.length + 1)

        return jax.lax.while_loop(is_committed, read, memory)

    def guess(context: DraftContext) -> TokenGuess:
        """Run ahead through the window, reading what is committed further right."""
        row, params = context.row, context.params
        memory: DraftModelMemory = context.memory
        size = context.open_L.shape[0]

        def ahead(carry, index):
            hidden_F, probability = carry
            probability_V = jax.nn.softmax(next_logits(params, hidden_F))
            guessed = jnp.argmax(probability_V).astype(jnp.int32)
            # Past the end of the sequence JAX clamps the index; what is read there lies
            # behind the window and is never picked below.
            actual = row.tokens_T[memory.length + index]
            is_open = actual == config.mask_id
            token = jnp.where(is_open, guessed, actual)
            # A guess stands on those before it, which must all be right.
            share = jnp.where(is_open, probability_V[guessed], 1.0)
            probability = probability * share
            hidden_F = read_token(params, hidden_F, token)
            return (hidden_F, probability), (token, probability)

        index_L = jnp.arange(size, dtype=jnp.int32)
        begin = memory.hidden_F, jnp.float32(1.0)
        _, (token_L, probability_L) = jax.lax.scan(ahead, begin, index_L)
        # From "so many after what was read" to positions of the window.
        source_L = row.start + index_L - memory.length
        is_read_L = (source_L >= 0) & context.open_L
        source_L = jnp.clip(source_L, 0, size - 1)
        probability_L = jnp.minimum(probability_L[source_L], MAX_PROBABILITY)
        return TokenGuess(
            token_L=jnp.where(is_read_L, token_L[source_L], -1),
            odds=probability_L / (1.0 - probability_L),
        )

    return with_guesses(base, guess)._replace(
        init=init, update=update, takes_params=True
    )

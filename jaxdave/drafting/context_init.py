"""Context-aware initialisation as drafts: an auxiliary model's answer, proposed once.

The paper starts a decode not from masks alone but from tokens that a small auxiliary
model wrote for the prompt, injected at some positions: with a given probability each,
or where the auxiliary model is confident. That changes the text, in the paper for the
worse, and tokens that the large model doubts are masked again ("prior scepticism").
Here the same tokens are drafts beside the large model's own, which confirms or drops
them: the text stays what it is. Scepticism is in the odds of a guess, which fall with
every committed token that the auxiliary model had wrong.

Not here: the paper's second form, embeddings between those of the injected token and of
the mask. It changes what the network reads, so that it cannot be a draft.

Axes: T positions of a row, L positions of the window.

Source: Context-Aware Initialization for Reducing Generative Path Length in Diffusion
Language Models, arXiv 2512.19004 (no code was published; its settings of rates and
thresholds are not known to us).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftFn
from jaxdave.core.made_by import remembered
from jaxdave.core.state import RowState
from jaxdave.drafting.draft_model import (
    MAX_PROBABILITY,
    DraftModelConfig,
    next_logits,
    read_token,
)
from jaxdave.drafting.guesses import TokenGuess, with_guesses
from jaxdave.drafting.nested import nested


class Proposal(NamedTuple):
    """What an auxiliary model has written for a prompt, before the decode begins.

    Attributes:
        token_T: Its tokens by position of the row, int32 [T]; -1 where there is none.
        probability_T: How sure it is of each, given its own tokens before, float32 [T].
    """

    token_T: jax.Array
    probability_T: jax.Array


ProposeTextFn = Callable[[Any, RowState], Proposal]
"""(parameters of the auxiliary model, the row at its beginning) -> its answer."""


@dataclasses.dataclass(frozen=True)
class GreedyText:
    """The answer that a draft model writes by itself, its best token each time.

    It is a `ProposeTextFn`; its parameters are those of
    `draft_model.init_draft_params`.

    Attributes:
        config: The draft model's shape.
    """

    config: DraftModelConfig

    def __call__(self, params: Any, row: RowState) -> Proposal:
        """Write an answer.

        Args:
            params: Parameters of the draft model.
            row: The row; what it holds from `row.begin` on is not looked at.

        Returns:
            The answer.
        """

        def read(carry, place):
            hidden_F, index = carry
            probability_V = jax.nn.softmax(next_logits(params, hidden_F))
            # The mask id is no token of any text.
            probability_V = probability_V.at[self.config.mask_id].set(0.0)
            own = jnp.argmax(probability_V).astype(jnp.int32)
            is_own = index >= row.begin
            token = jnp.where(is_own, own, place)
            written = jnp.where(is_own, own, -1), probability_V[own]
            return (read_token(params, hidden_F, token), index + 1), written

        begin = jnp.zeros((self.config.features,)), jnp.int32(0)
        return Proposal(*jax.lax.scan(read, begin, row.tokens_T)[1])


def inject(
    proposal: Proposal, key: jax.Array, *, rate: float, min_probability: float
) -> Proposal:
    """Keep the tokens of a proposal that are injected.

    Args:
        proposal: What the auxiliary model has written.
        key: Draws the positions.
        rate: The probability with which each position is kept.
        min_probability: Less sure tokens are not kept.

    Returns:
        The proposal, with -1 where nothing is injected.
    """
    is_drawn_T = jax.random.uniform(key, proposal.token_T.shape) < rate
    is_kept_T = is_drawn_T & (proposal.probability_T >= min_probability)
    return proposal._replace(token_T=jnp.where(is_kept_T, proposal.token_T, -1))


@functools.cache
@remembered
def context_init(
    propose_text: ProposeTextFn,
    base: DraftFn = nested,
    *,
    rate: float = 1.0,
    min_probability: float = 0.0,
    seed: int = 0,
) -> DraftFn:
    """The draft function of an answer that an auxiliary model writes beforehand.

    Args:
        propose_text: Writes the answer, e.g. `GreedyText`. Its parameters are given to
            each decode, as `DraftedParams(model=..., draft=...)`.
        base: Orders tokens into drafts; a draft function without memory and parameters.
        rate: The probability with which each position is injected, in 0..1.
        min_probability: Tokens that the auxiliary model is less sure of are not
            injected, in 0..1.
        seed: Draws the positions, alike for all rows.

    Returns:
        A draft function whose memory is the proposal.

    Raises:
        ValueError: A number is out of range, or `base` has a memory or parameters.

    Example:
        aux = DraftModelConfig(model.config.vocab_rows, model.config.mask_id)
        draft = context_init(GreedyText(aux), min_probability=0.5)
        decoder = jaxdave.freedave(model.config, draft=draft)
        params = DraftedParams(model=model.params, draft=aux_params)
        jaxdave.generate(decoder, params, [prompt_ids])
    """
    for name, value in (("rate", rate), ("min_probability", min_probability)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be in 0..1; use e.g. 0.5")
    if base.takes_params or base != DraftFn(base.propose, reads_text=base.reads_text):
        raise ValueError(
            f"base={base!r} has a memory or parameters of its own, and a proposal "
            "needs that place; use nested or a tree"
        )

    def init(params: Any, row: RowState) -> Proposal:
        return inject(
            propose_text(params, row),
            jax.random.PRNGKey(seed),
            rate=rate,
            min_probability=min_probability,
        )

    def guess(context: DraftContext) -> TokenGuess:
        row, proposal, size = context.row, context.memory, context.open_L.shape[0]
        index_T = jnp.arange(row.tokens_T.shape[0], dtype=jnp.int32)
        is_told_T = (proposal.token_T >= 0) & (index_T >= row.begin)
        is_seen_T = is_told_T & (row.tokens_T != context.mask_id)
        is_equal_T = is_seen_T & (row.tokens_T == proposal.token_T)
        seen = jnp.sum(is_seen_T, dtype=jnp.float32)
        equal = jnp.sum(is_equal_T, dtype=jnp.float32)
        # Laplace's rule of succession over what has been committed so far.
        trust = (equal + 1.0) / (seen + 2.0)
        probability_T = jnp.minimum(trust * proposal.probability_T, MAX_PROBABILITY)

        def window(value_T: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(value_T, row.start, size)

        probability_L = window(probability_T)
        is_told_L = window(is_told_T) & context.open_L
        return TokenGuess(
            token_L=jnp.where(is_told_L, window(proposal.token_T), -1),
            odds=probability_L / (1.0 - probability_L),
        )

    return with_guesses(base, guess)._replace(init=init, takes_params=True)

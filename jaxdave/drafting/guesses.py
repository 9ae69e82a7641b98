"""Drafts from guessed tokens, beside those of the model's own prediction.

A guess says which tokens may come at the open positions of a window. Its tokens are
drafted in the order in which the policy would commit them, and both kinds of drafts
compete for the slots of a call by how likely they are to be reached. A wrong guess can
cost a slot, never a word.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftFn, DraftSet, DraftState
from jaxdave.core.made_by import remembered
from jaxdave.drafting.draft_length import likeliest_drafts

MIN_SHARE = 0.02
"""A guess less likely than this, beside the model's own token, is not drafted."""


class TokenGuess(NamedTuple):
    """Guessed tokens of a window.

    Attributes:
        token_L: Token ids, int32 [L]; -1 where there is no guess.
        odds: p / (1 - p) that a guessed token is right, float32, one number or [L].
    """

    token_L: jax.Array
    odds: jax.Array


GuessFn = Callable[[DraftContext], TokenGuess]


@functools.cache
@remembered
def with_guesses(base: DraftFn, guess: GuessFn, reads_text: bool = False) -> DraftFn:
    """A draft function whose drafts compete with those of guessed tokens.

    Args:
        base: Orders tokens into drafts, e.g. `nested` or a tree; its memory and
            parameters, if any, are kept.
        guess: Guesses tokens, e.g. `text_drafts.prompt_lookup`.
        reads_text: The guess makes use of the user's draft text.

    Returns:
        The draft function of both.

    Example:
        draft = with_guesses(nested, text_drafts.user_text, reads_text=True)
        decoder = jaxdave.freedave(model.config, draft=draft)
        jaxdave.generate(decoder, model.params, [prompt], draft_text=[ids])
    """

    def propose(context: DraftContext, first: DraftState, num_drafts: int) -> DraftSet:
        guessed = guess(context)
        model_L = context.pred.token[0]
        # The model's odds are exp(score); where it predicts nothing they are none.
        score_L = jnp.where(model_L >= 0, context.pred.score[0], -jnp.inf)
        # The model's token against the guessed one, as
        # if no third could come: odds to odds. [L]
        share_L = guessed.odds / (guessed.odds + jnp.exp(score_L))
        differs_L = (guessed.token_L >= 0) & (guessed.token_L != model_L)
        differs_L &= (share_L >= MIN_SHARE) & context.open_L
        token_L = jnp.where(differs_L, guessed.token_L, model_L)

        def weighted(drafts: DraftSet) -> DraftSet:
            """Drafts worth less where they bet on one of two rival tokens."""
            token_KL = drafts.tokens_KNL[:, 0]
            is_bet_KL = (token_KL != first.tokens_NL[:1]) & differs_L[None]
            likely_KL = jnp.where(token_KL == token_L[None], share_L, 1.0 - share_L)
            factor_KL = jnp.where(is_bet_KL, likely_KL, 1.0)
            worth_K = drafts.worth_K * jnp.prod(factor_KL, axis=1)
            return drafts._replace(worth_K=worth_K)

        # The base is asked twice, for tokens of the model and of the guess,
        # and the better half of both is kept: the number of drafts, and with
        # it the cost of the call, stays the same.
        own = weighted(base.propose(context, first, num_drafts))
        guess_context = context.with_tokens(jnp.where(differs_L, token_L, -1))
        others = weighted(base.propose(guess_context, first, num_drafts))
        return merge_drafts(own, others, num_drafts)

    return base._replace(propose=propose, reads_text=base.reads_text or reads_text)


def merge_drafts(a: DraftSet, b: DraftSet, num_drafts: int) -> DraftSet:
    """Merge two draft sets into the likeliest drafts of both, each state once.

    Args:
        a: Drafts; the first of them stays first.
        b: Drafts of the same shapes.
        num_drafts: Drafts to keep.

    Returns:
        `num_drafts` drafts, most likely first.
    """
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)
    # [2K, 2K]: pairs of drafts with the same states, all N candidates of them.
    same_KK = jnp.all(both.tokens_KNL[:, None] == both.tokens_KNL[None], axis=(2, 3))
    for part_K in jax.tree.leaves(both.progress_K):
        same_KK &= part_K[:, None] == part_K[None]
    same_KK &= both.valid_K[:, None] & both.valid_K[None]
    # A state that both sets hold is worth what the surer of them says.
    worth_K = jnp.max(jnp.where(same_KK, both.worth_K[None], 0.0), axis=1)
    index_K = jnp.arange(worth_K.shape[0], dtype=jnp.int32)
    is_repeat_K = jnp.any(same_KK & (index_K[None] < index_K[:, None]), axis=1)
    valid_K = both.valid_K & ~is_repeat_K
    # Draft 0 occurs in both sets and is no
    # repetition of itself: its own validity stands.
    merged = both._replace(valid_K=valid_K.at[0].set(both.valid_K[0]), worth_K=worth_K)
    return likeliest_drafts(merged, num_drafts)

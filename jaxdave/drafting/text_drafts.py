"""Drafts that need no model: what the text repeats, and what the user expects.

A canvas says which tokens may come at the open positions of a window; -1: no idea. Its
tokens are drafted in the order that the policy would take, beside the drafts of the
model's own prediction, and both are merged by how likely they are to be visited. A
canvas is a guess like any other draft: it can cost a slot, never a word.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftFn, DraftSet, DraftState
from jaxdave.core.state import RowState

if TYPE_CHECKING:
    from jaxdave.core.spec import DecodeSpec


MAX_MATCH = 8
"""Tokens before the first open position that a match is counted by."""
MIN_MATCH = 2
"""Tokens that must match before the text is taken to repeat itself."""
MIN_SHARE = 0.02
"""A guess less likely than this beside the model's own is not drafted."""


class TextGuess(NamedTuple):
    """Guessed tokens of the window [L], and the odds that they are right: to 1, by the
    rule of succession over the last tokens that were."""

    token_L: jax.Array
    odds: jax.Array


TextGuessFn = Callable[[DraftContext], TextGuess]


def user_text(context: DraftContext) -> TextGuess:
    """The user's draft text, placed by its last matching tokens, else by position."""
    row = context.row
    at = _first_open_position(context)
    home = at - row.begin
    return _continuation(
        context, row.draft_text_T, row.draft_text_T.shape[0], home, at, 0
    )


def prompt_lookup(context: DraftContext) -> TextGuess:
    """What followed in the prompt or the text the last time it read like its end."""
    at = _first_open_position(context)
    return _continuation(context, context.row.tokens_T, at, at, at, MIN_MATCH)


def user_text_or_prompt_lookup(context: DraftContext) -> TextGuess:
    """The user's draft text or what the text repeats: what matches more of the end."""
    mine, other = user_text(context), prompt_lookup(context)
    is_mine = jnp.any(mine.token_L >= 0) & (mine.odds >= other.odds)
    return TextGuess(
        jnp.where(is_mine, mine.token_L, other.token_L),
        jnp.where(is_mine, mine.odds, other.odds),
    )


def _first_open_position(context: DraftContext) -> jax.Array:
    """The first open position; past the window if there is none."""
    size = context.open_L.shape[0]
    first = jnp.min(jnp.where(context.open_L, jnp.arange(size, dtype=jnp.int32), size))
    return context.row.start + first


def _continuation(
    context: DraftContext, source_T, last, home, at: jax.Array, fewest: int
) -> TextGuess:
    """What follows in a source where it ends like the text before `at`.

    last: a match must end before it; home: of equal matches the one nearest to it.
    """
    match_T = _match_lengths(source_T, context.row, at)
    place_T = jnp.arange(source_T.shape[0], dtype=jnp.int32)
    # Longest match first, then the nearest to home; both are exact in whole numbers.
    far_T = jnp.abs(place_T - home)
    value_T = match_T * (2 * source_T.shape[0]) - far_T
    value_T = jnp.where(place_T < last, value_T, -(2**30))
    begin = jnp.argmax(value_T).astype(jnp.int32)
    match = match_T[begin]
    place_L = context.row.start + jnp.arange(context.open_L.shape[0], dtype=jnp.int32)
    from_L = begin + place_L - at
    inside_L = (from_L >= 0) & (from_L < source_T.shape[0]) & (place_L >= at)
    token_L = jnp.where(inside_L, source_T.at[from_L].get(mode="clip"), -1)
    token_L = jnp.where(token_L == context.mask_id, -1, token_L)
    # Where later positions are known already and differ, the match is a chance one.
    here_L = jax.lax.dynamic_slice_in_dim(
        context.row.tokens_T, context.row.start, context.open_L.shape[0]
    )
    is_known_L = (here_L != context.mask_id) & (token_L >= 0)
    match = jnp.where(jnp.any(is_known_L & (here_L != token_L)), 0, match)
    token_L = jnp.where(context.open_L & (match >= fewest), token_L, -1)
    return TextGuess(token_L, match.astype(jnp.float32) + 1.0)


def _match_lengths(source_T, row: RowState, at: jax.Array) -> jax.Array:
    """How many tokens before each place of a source are those before `at`, [T]."""
    back_N = jnp.arange(1, MAX_MATCH + 1, dtype=jnp.int32)
    size = source_T.shape[0]
    place_TN = jnp.arange(size, dtype=jnp.int32)[:, None] - back_N[None]
    theirs_TN = jnp.where(place_TN >= 0, source_T.at[place_TN].get(mode="clip"), -1)
    ours_N = jnp.where(at >= back_N, row.tokens_T.at[at - back_N].get(mode="clip"), -2)
    equal_TN = (theirs_TN == ours_N[None]).astype(jnp.int32)
    return jnp.sum(jnp.cumprod(equal_TN, axis=1), axis=1, dtype=jnp.int32)


@dataclasses.dataclass(frozen=True)
class WithTextDrafts:
    """A draft function whose drafts compete with those of a canvas.

    Example:
        draft = Hinted(draft.nested, hints.told)
        decoder = freedave(model.config, draft=draft)
        generate(decoder, model.params, [prompt], draft_text=[ids])
    """

    base: DraftFn
    canvas: TextGuessFn

    def __call__(
        self, context: DraftContext, first: DraftState, budget: int
    ) -> DraftSet:
        canvas = self.canvas(context)
        model_L = context.pred.token[0]
        # The model's odds are as it says; where it says nothing they are none.
        score_L = jnp.where(model_L >= 0, context.pred.score[0], -jnp.inf)
        share_L = canvas.odds / (canvas.odds + jnp.exp(score_L))
        differs_L = (canvas.token_L >= 0) & (canvas.token_L != model_L)
        differs_L &= (share_L >= MIN_SHARE) & context.open_L
        token_L = jnp.where(differs_L, canvas.token_L, model_L)

        def weighed(drafts: DraftSet) -> DraftSet:
            here_KL = drafts.tokens_KNL[:, 0]
            new_KL = (here_KL != first.tokens_NL[:1]) & differs_L[None]
            likely_L = jnp.where(here_KL == token_L[None], share_L, 1.0 - share_L)
            worth_KL = jnp.where(new_KL, likely_L, 1.0)
            return drafts._replace(worth_K=drafts.worth_K * jnp.prod(worth_KL, axis=1))

        own = weighed(self.base(context, first, budget))
        hinted = context.with_tokens(jnp.where(differs_L, token_L, -1))
        return merge_drafts(own, weighed(self.base(hinted, first, budget)), budget)


def check_draft_texts(
    spec: "DecodeSpec", draft_text, prompts: int
) -> list[Sequence[int]]:
    """The draft texts of a batch, empty where there is none.

    Raises ValueError for those that nothing would read, that are too few or too many,
    or that no tokenizer of the model can have made.
    """
    if draft_text is None:
        return [()] * prompts
    if not isinstance(spec.draft, WithTextDrafts):
        raise ValueError(
            "draft_text is given, but the decoder's draft function does not read it; "
            "build the decoder with draft=hints.Hinted(draft.nested, hints.told)"
        )
    if len(draft_text) != prompts:
        raise ValueError(
            f"{len(draft_text)} draft texts for {prompts} prompts; give one each, [] "
            "where there is none"
        )
    size = spec.model.vocab_size
    for row, ids in enumerate(draft_text):
        odd = [one for one in ids if not 0 <= one < size]
        if odd:
            raise ValueError(
                f"draft_text {row} holds the id {odd[0]}, and ids are 0..{size - 1}; "
                "encode it with the model's tokenizer"
            )
    return list(draft_text)


def merge_drafts(one: DraftSet, other: DraftSet, budget: int) -> DraftSet:
    """The likeliest of two lists of drafts, each state once; the first stays first."""
    every = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)
    same_KK = jnp.all(every.tokens_KNL[:, None] == every.tokens_KNL[None], axis=(2, 3))
    same_KK &= every.valid_K[:, None] & every.valid_K[None]
    # A state that both have is worth what the one that knows it best says.
    worth_K = jnp.max(jnp.where(same_KK, every.worth_K[None], 0.0), axis=1)
    index_K = jnp.arange(worth_K.shape[0], dtype=jnp.int32)
    is_again_K = jnp.any(same_KK & (index_K[None] < index_K[:, None]), axis=1)
    valid_K = every.valid_K & ~is_again_K
    rank_K = jnp.where(valid_K, worth_K, -1.0).at[0].set(2.0)
    # Of equal ones what lies on the way comes first.
    order_K = jnp.lexsort((every.depth_K, -rank_K))[:budget]
    chosen = every._replace(
        valid_K=valid_K.at[0].set(every.valid_K[0]), worth_K=worth_K
    )
    return jax.tree.map(lambda a: a[order_K], chosen)

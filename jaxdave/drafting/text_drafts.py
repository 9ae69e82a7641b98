"""Guesses from text: what the prompt repeats, and what the user expects.

Prompt lookup: where the text so far ends like an earlier stretch of it, what followed
there may follow here. A user's draft text (an earlier version of the answer, say) is
used likewise.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftContext, DraftFn
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import RowState
from jaxdave.drafting.guesses import TokenGuess, with_guesses
from jaxdave.drafting.registry import DraftRequest, register
from jaxdave.drafting.tree import make_tree

MAX_MATCH = 8
"""Tokens before the first open position that a match is counted by."""
MIN_MATCH = 2
"""Tokens that must match before the text is taken to repeat itself."""


def user_text(context: DraftContext) -> TokenGuess:
    """The user's draft text, aligned by its last matching tokens, else by position.

    Args:
        context: What is known of the row; `row.draft_text_T` is the text.

    Returns:
        Tokens that may come at the open positions.
    """
    row, first_open = context.row, _first_open_position(context)
    # No match is needed: without one the text is aligned by position, as an answer that
    # resembles it is likely to be as far along.
    return _continuation(
        context,
        row.draft_text_T,
        source_end=row.draft_text_T.shape[0],
        expected=first_open - row.begin,
        first_open=first_open,
        min_match=0,
    )


def prompt_lookup(context: DraftContext) -> TokenGuess:
    """What followed in the prompt or the text the last time it read like its end.

    Args:
        context: What is known of the row.

    Returns:
        Tokens that may come at the open positions.

    Source: prompt lookup decoding (n-gram drafts), with the text so far as its source.
    """
    first_open = _first_open_position(context)
    # The source ends where the open positions begin:
    # a text must not be its own continuation.
    return _continuation(
        context,
        context.row.tokens_T,
        source_end=first_open,
        expected=first_open,
        first_open=first_open,
        min_match=MIN_MATCH,
    )


def user_text_or_prompt_lookup(context: DraftContext) -> TokenGuess:
    """The user's draft text or prompt lookup: whichever matches more of the end.

    Args:
        context: What is known of the row.

    Returns:
        Tokens that may come at the open positions.
    """
    user, lookup = user_text(context), prompt_lookup(context)
    is_user = jnp.any(user.token_L >= 0) & (user.odds >= lookup.odds)
    return TokenGuess(
        jnp.where(is_user, user.token_L, lookup.token_L),
        jnp.where(is_user, user.odds, lookup.odds),
    )


@register("copy")
def make_copy(request: DraftRequest) -> DraftFn:
    """The tree, and what the prompt or the text repeats.

    Args:
        request: The decode. Where its requests have draft texts, those are read too.

    Returns:
        A draft function.
    """
    if request.has_draft_text:
        guess = user_text_or_prompt_lookup
        return with_guesses(make_tree(request), guess, reads_text=True)
    return with_guesses(make_tree(request), prompt_lookup)


def reading_text(draft: DraftFn) -> DraftFn:
    """A draft function that makes use of the user's draft text.

    Args:
        draft: A draft function that may not.

    Returns:
        The draft function itself if it reads the text, else with `user_text` beside it.
    """
    if draft.reads_text:
        return draft
    return with_guesses(draft, user_text, reads_text=True)


def check_draft_texts(
    spec: DecodeSpec, draft_text, num_prompts: int
) -> list[Sequence[int]]:
    """The draft texts of a batch, empty where there is none.

    Args:
        spec: Its draft function must read draft texts if there are any.
        draft_text: Token ids for every prompt, or None.
        num_prompts: Prompts of the batch.

    Returns:
        One sequence of ids for every prompt.

    Raises:
        ValueError: Nothing would read them, there are too few or too many, or they hold
            ids that no tokenizer of the model can have produced.
    """
    if draft_text is None:
        return [()] * num_prompts
    if not spec.draft.reads_text:
        raise ValueError(
            "draft_text is given, but the decoder's draft function does not read it; "
            "build the decoder with draft=with_guesses(nested, user_text, "
            "reads_text=True)"
        )
    if len(draft_text) != num_prompts:
        raise ValueError(
            f"{len(draft_text)} draft texts for {num_prompts} prompts; give one each, "
            "[] where there is none"
        )
    size = spec.model.vocab_size
    for row, ids in enumerate(draft_text):
        outside = [token for token in ids if not 0 <= token < size]
        if outside:
            raise ValueError(
                f"draft_text {row} holds the id {outside[0]}, and ids are "
                f"0..{size - 1}; encode it with the model's tokenizer"
            )
    return list(draft_text)


def _first_open_position(context: DraftContext) -> jax.Array:
    """The first open position of the sequence; past the window if there is none."""
    size = context.open_L.shape[0]
    index_L = jnp.arange(size, dtype=jnp.int32)
    return context.row.start + jnp.min(jnp.where(context.open_L, index_L, size))


def _continuation(
    context: DraftContext,
    source_T: jax.Array,
    *,
    source_end: jax.Array | int,
    expected: jax.Array,
    first_open: jax.Array,
    min_match: int,
) -> TokenGuess:
    """What follows in a source where it ends like the text before `first_open`.

    Args:
        context: What is known of the row.
        source_T: Token ids to continue from, int32 [T].
        source_end: A match must end before this index.
        expected: Of equally long matches the one nearest to this index is taken.
        first_open: The position that the continuation begins at.
        min_match: Tokens that must match.
    """
    row, size = context.row, context.open_L.shape[0]
    # 1. Where to continue from: the index of the
    # source before which it reads like the text.
    match_T = _match_lengths(source_T, row, first_open)
    index_T = jnp.arange(source_T.shape[0], dtype=jnp.int32)
    # Longest match first, then the nearest one; both are exact in whole numbers.
    distance_T = jnp.abs(index_T - expected)
    rank_T = match_T * (2 * source_T.shape[0]) - distance_T
    # -2**30 is below any rank: matches are at most
    # `MAX_MATCH`, distances below the length.
    rank_T = jnp.where(index_T < source_end, rank_T, -(2**30))
    begin = jnp.argmax(rank_T).astype(jnp.int32)
    match = match_T[begin]
    # 2. Lay the source over the window: [L] of it from `begin` on, at `first_open`.
    position_L = row.start + jnp.arange(size, dtype=jnp.int32)
    source_L = begin + position_L - first_open
    inside_L = (source_L >= 0) & (source_L < source_T.shape[0])
    inside_L &= position_L >= first_open
    token_L = jnp.where(inside_L, source_T.at[source_L].get(mode="clip"), -1)
    token_L = jnp.where(token_L == context.mask_id, -1, token_L)
    # Where later positions are committed already and differ, the match is by chance.
    committed_L = jax.lax.dynamic_slice_in_dim(row.tokens_T, row.start, size)
    is_committed_L = (committed_L != context.mask_id) & (token_L >= 0)
    is_refuted = jnp.any(is_committed_L & (committed_L != token_L))
    match = jnp.where(is_refuted, 0, match)
    token_L = jnp.where(context.open_L & (match >= min_match), token_L, -1)
    # Laplace's rule of succession over the matched tokens: (match + 1) : 1.
    return TokenGuess(token_L, match.astype(jnp.float32) + 1.0)


def _match_lengths(
    source_T: jax.Array, row: RowState, first_open: jax.Array
) -> jax.Array:
    """How many tokens before each index of a source equal those before a position, [T].

    At most `MAX_MATCH` are compared.
    """
    # Token n before each index of the source [T, N], and before the open
    # position [N]. -1 and -2 stand for tokens before the beginning,
    # which match nothing, not even each other.
    back_N = jnp.arange(1, MAX_MATCH + 1, dtype=jnp.int32)
    index_TN = jnp.arange(source_T.shape[0], dtype=jnp.int32)[:, None] - back_N[None]
    source_TN = jnp.where(index_TN >= 0, source_T.at[index_TN].get(mode="clip"), -1)
    text_N = row.tokens_T.at[first_open - back_N].get(mode="clip")
    text_N = jnp.where(first_open >= back_N, text_N, -2)
    # A run counts up to its first mismatch: the cumulative product is 0 from there on.
    equal_TN = (source_TN == text_N[None]).astype(jnp.int32)
    return jnp.sum(jnp.cumprod(equal_TN, axis=1), axis=1, dtype=jnp.int32)

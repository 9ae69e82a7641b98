"""Who sees whom while a masked-diffusion model is trained.

A training sequence is laid out as one clean or partly masked text, or as a clean text
with masked copies beside it. Each of its positions is described by five numbers
(`Layout`), and one rule says from them whether a query sees a key (`sees`). It is what
all the published masks have in common: a query sees the text up to a certain block, its
context, and from there to its own block what stands in its own copy.

    layout        | network sees        | used by
    --------------|---------------------|----------------------------------------
    `full`        | x_t                 | LLaDA, MDLM, Dream, DiffuCoder
    `block_causal`| x_t, by blocks      | block-causal models outside training
    `noisy_first` | [x_t ; x_0]         | BD3-LM, SDAR, Fast-dLLM v2, LLaDA2
    `clean_first` | [x_0 ; x_t's answer]| dLLM-RL for SDAR and TraDo

Axes: B rows, T positions of the text, Q positions of the sequence that the network
sees.

Source: BD3-LM, arXiv 2503.09573 (its three masks are the three cases of `sees`);
kuleshov-group/bd3lms models/dit.py; Gen-Verse/dLLM-RL train/sft_sdar.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.training.data.token_batch import run_starts


class Layout(NamedTuple):
    """What each position of a training sequence is, all int32 [B, Q].

    Attributes:
        position_BQ: Its position in its sample, for rotary embeddings; the copies of a
            token have one position.
        block_BQ: The block that it is in. Blocks restart with each sample, and may be
            negative where they are counted from the beginning of the answer.
        context_BQ: It sees the text of all blocks before this one.
        copy_BQ: 0: the text; from 1: its masked copies.
        sample_BQ: The sample that it belongs to; it sees no other.
    """

    position_BQ: jax.Array
    block_BQ: jax.Array
    context_BQ: jax.Array
    copy_BQ: jax.Array
    sample_BQ: jax.Array


def sees(query: Layout, key: Layout) -> jax.Array:
    """Whether queries see keys, from what both are.

    A predicate for a kernel of one's own (flex or splash attention) gathers the fields
    of both at its indices; `visibility` has the whole table.

    Args:
        query: Fields of queries, of any shape.
        key: Fields of keys, of a shape that broadcasts with it.

    Returns:
        bool, of the broadcast shape.
    """
    sees_text = (key.copy_BQ == 0) & (key.block_BQ < query.context_BQ)
    sees_copy = (
        (key.copy_BQ > 0)
        & (key.copy_BQ == query.copy_BQ)
        & (key.block_BQ >= query.context_BQ)
        & (key.block_BQ <= query.block_BQ)
    )
    return (key.sample_BQ == query.sample_BQ) & (sees_text | sees_copy)


def visibility(layout: Layout) -> jax.Array:
    """The attention mask of a layout.

    Args:
        layout: The sequence.

    Returns:
        bool [B, Q, Q], True where a query (second axis) sees a key (third axis).

    Example:
        >>> text = block_causal(jnp.zeros((1, 4), jnp.int32), 2)
        >>> visibility(noisy_first(text))[0, 2].astype(int).tolist()
        [0, 0, 1, 1, 1, 1, 0, 0]
    """
    query = Layout(*(field[:, :, None] for field in layout))
    key = Layout(*(field[:, None, :] for field in layout))
    return sees(query, key)


def full(sample_BT: jax.Array) -> Layout:
    """A text in which everything sees everything of its sample.

    Args:
        sample_BT: The sample of each token, int32 [B, T].

    Returns:
        The layout, Q = T.
    """
    return _text(sample_BT, jnp.zeros_like(sample_BT))


def block_causal(
    sample_BT: jax.Array, block_length: int, answer_start: int | None = None
) -> Layout:
    """A text that sees up to the end of its own block.

    Args:
        sample_BT: The sample of each token, int32 [B, T].
        block_length: Tokens of a block.
        answer_start: The column that blocks are counted from, backwards too, so that a
            remainder is at the front (dLLM-RL); None: each sample's first token.

    Returns:
        The layout, Q = T.
    """
    if answer_start is None:
        return _text(sample_BT, sample_positions(sample_BT) // block_length)
    column_T = jnp.arange(sample_BT.shape[1], dtype=jnp.int32)
    block_T = (column_T - answer_start) // block_length
    return _text(sample_BT, jnp.broadcast_to(block_T[None], sample_BT.shape))


def noisy_first(text: Layout) -> Layout:
    """A masked copy, then the text: [x_t ; x_0].

    Args:
        text: From `block_causal`.

    Returns:
        The layout, Q = 2 T. A masked block sees itself and the text before it.
    """
    return _join(_masked_copy(text, 1), text)


def clean_first(text: Layout, answer_start: int, copies: int = 1) -> Layout:
    """The text, then masked copies of its answer: [prompt ; x_0 ; x_t ; ...].

    Args:
        text: From `block_causal`, with `answer_start`.
        answer_start: The column at which answers begin.
        copies: Masked copies, e.g. one for each step of a recorded trajectory.

    Returns:
        The layout, Q = T + copies (T - answer_start).
    """
    answer = Layout(*(field[:, answer_start:] for field in text))
    return _join(text, *(_masked_copy(answer, 1 + copy) for copy in range(copies)))


def sample_positions(sample_BT: jax.Array) -> jax.Array:
    """Positions of tokens, counted from the beginning of each sample.

    Args:
        sample_BT: The sample of each token, int32 [B, T]; padding is a run of its own.

    Returns:
        int32 [B, T].

    Example:
        >>> sample_positions(jnp.array([[0, 0, 1, 1, 1, -1]])).tolist()
        [[0, 1, 0, 1, 2, 0]]
    """
    column_T = jnp.arange(sample_BT.shape[1], dtype=jnp.int32)
    return column_T[None] - run_starts(sample_BT)


def _text(sample_BT: jax.Array, block_BT: jax.Array) -> Layout:
    """A text by itself, which sees up to the end of its block."""
    return Layout(
        position_BQ=sample_positions(sample_BT),
        block_BQ=block_BT,
        context_BQ=block_BT + 1,
        copy_BQ=jnp.zeros_like(block_BT),
        sample_BQ=sample_BT,
    )


def _masked_copy(text: Layout, copy: int) -> Layout:
    """A copy of a text, whose context ends where its block begins."""
    return text._replace(
        context_BQ=text.block_BQ, copy_BQ=jnp.full_like(text.copy_BQ, copy)
    )


def _join(*parts: Layout) -> Layout:
    return Layout(
        *(jnp.concatenate(fields, axis=1) for fields in zip(*parts, strict=True))
    )

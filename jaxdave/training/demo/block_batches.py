"""Batches for block diffusion: clean sequences, and masked windows over their answers.

The problems of a step are grouped by length, so that little of a batch is padding and
few shapes are compiled. The batches of a step are a pure function of (recipe, step), so
that a resumed run sees what it would have seen.

For models that edit there are further copies, as LLaDA2.1 is trained (arXiv
2602.08676: mask-to-token and token-to-token losses over masked and randomly replaced
tokens): of a block alone some tokens are masked and some replaced, and all of its
answer is predicted, the tokens that are right included.

Axes: B sequences, S positions of the clean sequence, C masked copies of the window, R
positions of the window.
"""

from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from jaxdave.demo_tasks.mixture import kind_of, training_problem
from jaxdave.training.demo.recipes import Recipe
from jaxdave.training.demo.tokenizer import START, TURN_END, pad_and_mask_ids

MAX_REPLACED = 0.5
"""At most this share of a copy's drafted tokens is replaced."""
COPIES = 2
"""Masked copies of each answer: one with every block alone, one with groups."""
MAX_GROUP_BLOCKS = 5
PADDING_WEIGHT = 0.2
"""Loss weight of the padding behind an answer, of which there is much."""
LATER_BLOCK_WEIGHT = 0.5
"""Factor of the loss weight of wholly masked blocks: they are further guesses."""

SHAPES = {
    "short": (64, 20),
    "words3": (80, 28),
    "words4": (96, 32),
    "lists": (76, 36),
}
"""By length group: length of the clean sequence and of the masked window, in tokens."""
GROUPS = {
    "words1": "short",
    "words2": "short",
    "words3": "words3",
    "words4": "words4",
    "lists": "lists",
}
"""The length group of each kind of problem."""

TokenPair = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


class BlockBatch(NamedTuple):
    """Sequences of one length group, for block-causal attention.

    Attributes:
        clean_BS: int32, prompt and answer, padded with the end token.
        start_B: int32, first position of the window: the beginning of the block in
            which the answer begins.
        noisy_BCR: int32, the window's tokens, some of them masked or replaced.
        weight_BCR: float32, loss weight; 0 where nothing is predicted.
        first_block_BCR: int32, the block at which a query's own group begins; it sees
            clean text before that (`block_loss.visibility`).
    """

    clean_BS: jax.Array | np.ndarray
    start_B: jax.Array | np.ndarray
    noisy_BCR: jax.Array | np.ndarray
    weight_BCR: jax.Array | np.ndarray
    first_block_BCR: jax.Array | np.ndarray


def encode_pair(tokenizer: Tokenizer, prompt: str, answer: str) -> TokenPair:
    """Encode a problem as one turn of the user and one of the assistant.

    Args:
        tokenizer: The demo's tokenizer.
        prompt: What the user says.
        answer: What the assistant answers.

    Returns:
        Token ids of the prompt in its chat template, and of the answer with the token
        that ends its turn.
    """
    rendered = f"{START}user\n{prompt}{TURN_END}\n{START}assistant\n"
    return tokenizer.encode(rendered).ids, tokenizer.encode(answer + TURN_END).ids


def make_block_batches(
    recipe: Recipe, tokenizer: Tokenizer, step: int
) -> dict[str, BlockBatch]:
    """Make the batches of one optimiser step.

    Args:
        recipe: The training run; its seed and batch size choose the problems.
        tokenizer: The demo's tokenizer.
        step: Index of the step, from 0.

    Returns:
        One batch for each length group.

    Raises:
        ValueError: If a problem does not fit the shape of its group.
    """
    groups = grouped_pairs(recipe, tokenizer, step)
    # The last number tells the noise of these batches from that of other kinds.
    rng = np.random.default_rng((recipe.seed, step, 1))
    block_length = recipe.config.block_length
    return {
        name: pack_pairs(
            pairs,
            group_shape(name, block_length),
            block_length,
            tokenizer,
            rng,
            edited_copies=recipe.edited_copies,
            guessed_copies=recipe.guessed_copies,
        )
        for name, pairs in groups.items()
    }


def group_shape(group: str, block_length: int) -> tuple[int, int]:
    """The shape of a length group's batches.

    Args:
        group: A key of `SHAPES`, whose windows are those of blocks of 4.
        block_length: Tokens of the model's blocks.

    Returns:
        Length of the clean sequence and of the window, which is whole blocks and begins
        with the block that the answer begins in.
    """
    size, window = SHAPES[group]
    longest = window - 4 + block_length
    return size, -(-longest // block_length) * block_length


def grouped_pairs(
    recipe: Recipe, tokenizer: Tokenizer, step: int
) -> dict[str, list[TokenPair]]:
    """Encode the problems of one step, by length group.

    Args:
        recipe: The training run; its seed and batch size choose the problems.
        tokenizer: The demo's tokenizer.
        step: Index of the step, from 0.

    Returns:
        Token ids of prompts and answers, for every group in `SHAPES`.
    """
    groups: dict[str, list[TokenPair]] = {name: [] for name in SHAPES}
    for index in range(step * recipe.batch_size, (step + 1) * recipe.batch_size):
        problem = training_problem(recipe.seed, index)
        pair = encode_pair(tokenizer, problem.prompt, problem.answer)
        groups[GROUPS[kind_of(index)]].append(pair)
    return groups


def pack_pairs(
    pairs: list[TokenPair],
    shape: tuple[int, int],
    block_length: int,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    edited_copies: int = 0,
    guessed_copies: int = 0,
) -> BlockBatch:
    """Make one batch of problems of similar length, and mask it.

    Args:
        pairs: Prompts and answers (`encode_pair`).
        shape: Length of the clean sequences and of the masked windows, in tokens.
        block_length: Tokens of the model's blocks.
        tokenizer: The demo's tokenizer.
        rng: Source of the masks; it advances.
        edited_copies: Copies with wrong tokens, behind the masked ones.
        guessed_copies: Copies that the model is to fill, behind those: masked like the
            first one, but all of the answer is predicted.

    Returns:
        The batch.

    Raises:
        ValueError: If a problem does not fit the shape.
    """
    size, window = shape
    pad, mask = pad_and_mask_ids(tokenizer)
    rows = len(pairs)
    clean = np.full((rows, size), pad, np.int32)
    start = np.zeros((rows,), np.int32)
    copies = COPIES + edited_copies + guessed_copies
    noisy = np.full((rows, copies, window), pad, np.int32)
    weight = np.zeros((rows, copies, window), np.float32)
    first_block = np.zeros((rows, copies, window), np.int32)
    for row, (prompt, answer) in enumerate(pairs):
        total = len(prompt) + len(answer)
        # The window begins with a block, as in decoding: the end of the prompt may
        # share that block with the beginning of the answer.
        begin = len(prompt) // block_length * block_length
        if total > size or total - begin > window:
            raise ValueError(f"a problem of {total} tokens does not fit {shape=}")
        clean[row, : len(prompt)], clean[row, len(prompt) : total] = prompt, answer
        start[row] = begin
        # The window may end past the sequence; `resize` repeats what there is, and
        # the repeated part is overwritten by padding.
        target_R = np.resize(clean[row, begin:], window)
        target_R[min(window, size - begin) :] = pad
        position_R = np.arange(begin, begin + window)
        is_answer_R = position_R >= len(prompt)
        base_weight_R = np.where(position_R < total, 1.0, PADDING_WEIGHT)
        for copy in range(COPIES):
            group_R, hidden_R, later_R = _corrupt(
                rng, window, block_length, is_answer_R, grouped=copy > 0
            )
            noisy[row, copy] = np.where(hidden_R, mask, target_R)
            weight[row, copy] = (
                hidden_R * base_weight_R * np.where(later_R, LATER_BLOCK_WEIGHT, 1.0)
            )
            first_block[row, copy] = begin // block_length + group_R
        for copy in range(COPIES, COPIES + edited_copies):
            noisy_R = _wrong_drafts(rng, target_R, is_answer_R, block_length, tokenizer)
            noisy[row, copy], weight[row, copy] = noisy_R, is_answer_R * base_weight_R
            first_block[row, copy] = position_R // block_length
        for copy in range(COPIES + edited_copies, copies):
            group_R, hidden_R, _ = _corrupt(
                rng, window, block_length, is_answer_R, grouped=False
            )
            noisy[row, copy] = np.where(hidden_R, mask, target_R)
            weight[row, copy] = is_answer_R * base_weight_R
            first_block[row, copy] = begin // block_length + group_R
    return BlockBatch(
        clean_BS=clean,
        start_B=start,
        noisy_BCR=noisy,
        weight_BCR=weight,
        first_block_BCR=first_block,
    )


def _wrong_drafts(
    rng: np.random.Generator,
    target_R: np.ndarray,
    is_answer_R: np.ndarray,
    block_length: int,
    tokenizer: Tokenizer,
) -> np.ndarray:
    """A copy in which some tokens of each block are masked and some are wrong, [R].

    A wrong token is any of the vocabulary, or one of the same answer: those look right
    at first sight, as a model's own early guesses do.
    """
    pad, mask = pad_and_mask_ids(tokenizer)
    num_blocks = len(target_R) // block_length
    order = rng.random((num_blocks, block_length)).argsort(axis=1)
    # As many masks as while a block is decoded, or none, as in post steps.
    count = rng.integers(0, block_length, size=(num_blocks, 1))
    count *= rng.random((num_blocks, 1)) < 0.6
    is_masked_R = (order < count).reshape(-1) & is_answer_R
    share = rng.random((num_blocks, 1)) * MAX_REPLACED
    is_wrong_R = (rng.random((num_blocks, block_length)) < share).reshape(-1)
    any_R = rng.integers(0, pad, len(target_R))
    own_R = rng.choice(target_R[is_answer_R], len(target_R))
    wrong_R = np.where(rng.random(len(target_R)) < 0.5, any_R, own_R)
    noisy_R = np.where(is_wrong_R & is_answer_R, wrong_R, target_R)
    return np.where(is_masked_R, mask, noisy_R)


def _corrupt(
    rng: np.random.Generator,
    window: int,
    block_length: int,
    is_answer_R: np.ndarray,
    grouped: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the positions to hide, and the groups of blocks.

    A block alone is a group of one: it is partly hidden, behind clean text. With
    `grouped`, runs of blocks are a group, as they are when a decoder drafts past the
    end of the active block: the first is partly hidden, the later ones wholly.

    Returns (index of the group's first block, hidden, not the first of its group), each
    [R].
    """
    num_blocks = window // block_length
    leads = np.ones(num_blocks, bool)
    if grouped:
        run = rng.integers(2, MAX_GROUP_BLOCKS + 1)
        offset = rng.integers(MAX_GROUP_BLOCKS)
        leads = (np.arange(num_blocks) + offset) % run == 0
        leads[0] = True
    # Every block gets the index of the last leading block up to it.
    first_blocks = np.maximum.accumulate(np.where(leads, np.arange(num_blocks), 0))
    # Ranks of random numbers: a uniformly chosen set of `count` positions per block.
    order = rng.random((num_blocks, block_length)).argsort(axis=1)
    count = rng.integers(1, block_length + 1, size=(num_blocks, 1))
    hidden = (order < count) | ~leads[:, None]
    return (
        np.repeat(first_blocks, block_length),
        hidden.reshape(-1) & is_answer_R,
        np.repeat(~leads, block_length),
    )

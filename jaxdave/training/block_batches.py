"""Batches for block diffusion: clean sequences, and masked windows over the answers.

A step's problems are grouped by length, so that little of a batch is padding. Batch
`step` is a pure function of (recipe, step): a resumed run sees what it would have seen.
"""

from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from jaxdave.demo_tasks.mixture import kind_of, training_problem
from jaxdave.training.recipes import Recipe
from jaxdave.training.tokenizer import END, MASK, START, TURN_END

COPIES = 2
LONGEST_GROUP = 5

# group -> (length of the clean sequence, length of the masked window), in tokens
SHAPES = {
    "short": (64, 20),
    "words3": (80, 28),
    "words4": (96, 32),
    "lists": (76, 36),
}
GROUPS = {
    "words1": "short",
    "words2": "short",
    "words3": "words3",
    "words4": "words4",
    "lists": "lists",
}


class Batch(NamedTuple):
    """Sequences of one length group.

    clean_BS: prompt and answer, padded. start_B: first position of the window. Of the
    C noisy windows of R tokens: noisy_BCR the tokens, weight_BCR the loss weight (0
    where nothing is predicted), first_BCR the block at which a query's own window
    begins (see `loss.visibility`).
    """

    clean_BS: jax.Array | np.ndarray
    start_B: jax.Array | np.ndarray
    noisy_BCR: jax.Array | np.ndarray
    weight_BCR: jax.Array | np.ndarray
    first_BCR: jax.Array | np.ndarray


def encode(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list, list]:
    """Ids of the rendered prompt and of the answer with its turn end."""
    told = f"{START}user\n{prompt}{TURN_END}\n{START}assistant\n"
    return tokenizer.encode(told).ids, tokenizer.encode(answer + TURN_END).ids


def step_batches(recipe: Recipe, tokenizer: Tokenizer, step: int) -> dict[str, Batch]:
    """The batches of one optimiser step, by length group."""
    grouped = grouped_pairs(recipe, tokenizer, step)
    rng = np.random.default_rng((recipe.seed, step, 1))
    length = recipe.config.block_length
    return {
        name: _pack(pairs, SHAPES[name], length, tokenizer, rng)
        for name, pairs in grouped.items()
    }


def grouped_pairs(recipe: Recipe, tokenizer: Tokenizer, step: int) -> dict[str, list]:
    """The (prompt, answer) ids of one step's problems, by length group."""
    grouped: dict[str, list] = {name: [] for name in SHAPES}
    for index in range(step * recipe.batch, (step + 1) * recipe.batch):
        problem = training_problem(recipe.seed, index)
        pair = encode(tokenizer, problem.prompt, problem.answer)
        grouped[GROUPS[kind_of(index)]].append(pair)
    return grouped


def _pack(pairs, shape, length, tokenizer, rng) -> Batch:
    size, window = shape
    pad, mask = tokenizer.token_to_id(END), tokenizer.token_to_id(MASK)
    rows = len(pairs)
    clean = np.full((rows, size), pad, np.int32)
    start = np.zeros((rows,), np.int32)
    noisy = np.full((rows, COPIES, window), pad, np.int32)
    weight = np.zeros((rows, COPIES, window), np.float32)
    first = np.zeros((rows, COPIES, window), np.int32)
    for row, (prompt, answer) in enumerate(pairs):
        total = len(prompt) + len(answer)
        begin = len(prompt) // length * length
        if total > size or total - begin > window:
            raise ValueError(f"a problem of {total} tokens does not fit {shape=}")
        clean[row, : len(prompt)], clean[row, len(prompt) : total] = prompt, answer
        start[row] = begin
        filled = np.resize(clean[row, begin:], window)
        filled[min(window, size - begin) :] = pad
        open_R = np.arange(begin, begin + window) >= len(prompt)
        told_R = np.where(np.arange(begin, begin + window) < total, 1.0, 0.2)
        for copy in range(COPIES):
            groups, hidden_R, later_R = _corrupt(rng, window, length, open_R, copy > 0)
            noisy[row, copy] = np.where(hidden_R, mask, filled)
            weight[row, copy] = hidden_R * told_R * np.where(later_R, 0.5, 1.0)
            first[row, copy] = begin // length + groups
    return Batch(clean, start, noisy, weight, first)


def _corrupt(rng, window, length, open_R, ahead):
    """Which positions to hide, and where each block's own window begins.

    Without `ahead` every block stands alone, behind clean text. With it, runs of blocks
    share a window, as they do when a decoder drafts past the end of the current block:
    the first is partly hidden, the later ones wholly.
    """
    blocks = window // length
    leads = np.ones(blocks, bool)
    if ahead:
        run, offset = rng.integers(2, LONGEST_GROUP + 1), rng.integers(LONGEST_GROUP)
        leads = (np.arange(blocks) + offset) % run == 0
        leads[0] = True
    groups = np.maximum.accumulate(np.where(leads, np.arange(blocks), 0))
    order = rng.random((blocks, length)).argsort(axis=1)
    count = rng.integers(1, length + 1, size=(blocks, 1))
    hidden = (order < count) | ~leads[:, None]
    spread = np.repeat(groups, length)
    return spread, hidden.reshape(-1) & open_R, np.repeat(~leads, length)

"""What `bench.constrained_tuning` trains on, and how its models are graded."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxdave
from jaxdave.demo_tasks import lists, problem_sets, words
from jaxdave.demo_tasks.grade import is_correct
from jaxdave.demo_tasks.mixture import training_problem
from jaxdave.demo_tasks.problem import Problem
from jaxdave.io import checkpoint
from jaxdave.io.checkpoint import Model
from jaxdave.io.tokenizer import Codec
from jaxdave.numerics.weight_layout import to_device_layout, to_stacked
from jaxdave.training.data.token_batch import TokenBatch, pack_samples
from jaxdave.training.objective.masking import Masking
from jaxdave.training.objective.objective_loss import make_objective_loss
from jaxdave.training.objective.objectives import Objective

POOL = 512
"""Problems of each kind that a seed draws from."""
NEW_LENGTH, OLD_LENGTH = 112, 96
MARGIN = 0.01
"""Nats a token that the old loss may rise by."""
OBJECTIVE = Objective(
    masking=Masking(per="block", low=1e-3),
    layout="noisy_first",
    block_length=4,
    weight="one",
)


def pack(codec: Codec, problems: Sequence[Problem], length: int) -> TokenBatch:
    """Encode problems, one a row, with the rest of the last block as padding to learn.

    Args:
        codec: The tokenizer.
        problems: The problems.
        length: Positions of a row.

    Returns:
        The batch.
    """
    rows = []
    for problem in problems:
        prompt = codec.encode_prompt(problem.prompt)
        answer = codec.encode_answer(problem.answer)  # with the end of its turn
        spare = -(len(prompt) + len(answer)) % 4
        rows.append([(prompt, [*answer, *[codec.pad_id] * spare])])
    return pack_samples(rows, length=length, pad_id=codec.pad_id, block_length=4)


class Data(NamedTuple):
    """What a seed trains on.

    Attributes:
        new: Problems of 5 operations.
        old: Problems of the old mixture.
        limit: What the loss on the latter is to be at most.
    """

    new: TokenBatch
    old: TokenBatch
    limit: jax.Array


@functools.cache
def demo_model() -> Model:
    """The packaged model."""
    return checkpoint.load("sdar-1m")


@functools.cache
def loss_fn() -> Callable[[Any, TokenBatch, jax.Array], jax.Array]:
    """The loss: (parameters, batch, key of the masks) -> nats a token, compiled."""
    sums = make_objective_loss(demo_model().config, OBJECTIVE)
    return jax.jit(lambda params, batch, key: sums(params, batch, key).mean())


def start_params() -> Any:
    """The packaged parameters, as training has them."""
    return jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float32), to_stacked(demo_model().params)
    )


def make_data(seed: int) -> Data:
    """Make the problems of a seed; the bound is of 128 of them at the start.

    Args:
        seed: The seed.

    Returns:
        The data.
    """
    codec, rng = demo_model().codec, np.random.default_rng((seed, 5))
    new = [words.sample_from_split(rng, "train", (5,), None) for _ in range(POOL)]
    old = [training_problem(1000 + seed, index) for index in range(POOL)]
    packed = pack(codec, new, NEW_LENGTH), pack(codec, old, OLD_LENGTH)
    new, old = jax.tree.map(jnp.asarray, packed)
    loss = loss_fn()(start_params(), rows(old, 0, 128), jax.random.key(12))
    return Data(new, old, loss + MARGIN)


@functools.cache
def held_out() -> tuple[TokenBatch, TokenBatch]:
    """Held-out new and old problems, the same for all seeds."""
    codec, rng = demo_model().codec, np.random.default_rng(7)
    new = [words.sample_from_split(rng, "test", (5,), None) for _ in range(48)]
    old = [words.sample_from_split(rng, "test") for _ in range(52)]
    old += [lists.sample_from_split(rng, "test") for _ in range(12)]
    return pack(codec, new, NEW_LENGTH), pack(codec, old, OLD_LENGTH)


def measure(params: Any) -> list[float]:
    """The new and the old loss on held-out problems.

    Args:
        params: Parameters.

    Returns:
        Both.
    """
    keys = jax.random.split(jax.random.key(11))
    pairs = zip(held_out(), keys, strict=True)
    return [float(loss_fn()(params, batch, key)) for batch, key in pairs]


def rows(batch: TokenBatch, first: int, count: int) -> TokenBatch:
    """Some rows of a batch.

    Args:
        batch: The batch.
        first: Index of the first one.
        count: How many.

    Returns:
        The rows.
    """
    return TokenBatch(*(array[first : first + count] for array in batch))


def draw(batch: TokenBatch, key: jax.Array, count: int) -> tuple[TokenBatch, jax.Array]:
    """Draw rows of a batch, and a key for their masks.

    Args:
        batch: The batch.
        key: A key.
        count: How many rows.

    Returns:
        What a loss takes after the parameters.
    """
    key_rows, key_masks = jax.random.split(key)
    index = jax.random.randint(key_rows, (count,), 0, len(batch.tokens_BT))
    return TokenBatch(*(array[index] for array in batch)), key_masks


def right_answers(params: Any, limit: int) -> dict[str, float]:
    """Decode and grade problems of the frozen sets.

    Args:
        params: Parameters.
        limit: Problems of each set.

    Returns:
        The share of right answers by set.
    """
    config = jaxdave.DecodeConfig(
        draft_steps=8, max_new_tokens=56, numerics="fast", draft="nested"
    )
    model = demo_model()
    params = to_device_layout(params, model.config)
    sampler = jaxdave.Sampler(dataclasses.replace(model, params=params), config)
    shares = {}
    for name in ("words_long", "words_test", "lists_test"):
        problems = problem_sets.load(name)[:limit]
        texts = []
        for at in range(0, len(problems), 20):
            prompts = [problem.prompt for problem in problems[at : at + 20]]
            texts += [one.text for one in sampler.batch(prompts)]
        graded = [
            # The sandbox takes long, and the reference needs none.
            text == problem.answer or is_correct(problem, text)
            for problem, text in zip(problems, texts, strict=True)
        ]
        shares[name] = float(np.mean(graded))
    return shares

"""Prompts that are no token ids are refused by the library itself, in one line."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.fake_model import MASK, build, prompts_of, weights

from jaxdave import policies
from jaxdave.engine.generation import generate
from jaxdave.engine.streaming import stream

SIZE = 34
"""Above the hash network's vocabulary."""


@pytest.fixture(scope="module")
def decoder():
    return build(policies.static(1), 4, 4, 8)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[1, 10**6]], "prompt 0 holds '1000000'"),
        ([[1], [2, -1]], "prompt 1 holds '-1'"),
        ([[MASK]], "without the mask id"),
        ([[1.0, 2.0]], "prompt 0 holds '1.0'"),
        ([[True]], "prompt 0 holds 'True'"),
        ([["1"]], "prompt 0 holds '1'"),
        ([np.array([0.5])], "prompt 0 holds '0.5'"),
        ([10**30], "prompt 0='1000000000000"),
        (["Hello"], "encode it first"),
        ("Hello", "encode it first"),
        ([1, 2, 3], "prompt 0='1' must be a sequence"),
        ([[]], "prompt 0 is empty"),
        ([], "holds no prompt"),
        ([None], "must be a sequence of token ids"),
        ([[[1]]], "prompt 0 holds '[1]'"),
    ],
)
def test_bad_prompts(decoder, prompts, words):
    for call in (generate, lambda *a: list(stream(*a))):
        with pytest.raises(ValueError) as caught:
            call(decoder, weights(0), prompts)
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True, "1", None])
def test_bad_seeds(decoder, seed):
    with pytest.raises(ValueError, match="seed="):
        generate(decoder, weights(0), [[1]], seed=seed)
    with pytest.raises(ValueError, match="request="):
        generate(decoder, weights(0), [[1]], requests=[seed])


def test_arrays_are_prompts_too(decoder):
    (ids,) = prompts_of([5], 1)
    want = generate(decoder, weights(1), [ids]).completions
    for prompt in (np.array(ids), jnp.array(ids), tuple(ids), np.array(ids, np.uint8)):
        got = generate(decoder, weights(1), [prompt])  # pyright: ignore
        assert got.completions == want

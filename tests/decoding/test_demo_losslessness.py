# pyright: reportCallIssue=false
"""Law 1 on the demo models: trained weights, real prompts, exact numerics."""

import functools

import pytest
from helpers import official_loops
from helpers.losslessness import MORE, NAMES, made, network, saved_calls

from jaxdave.demo_tasks import problem_sets
from jaxdave.io import checkpoint

FEW = ("static", "random", "credit", "saber")
"""The plainest; own noise; memory of logits; a policy that revises what it has said."""


@functools.cache
def model(name: str):
    """A demo model; skips where it is not trained."""
    if not (checkpoint.find_model(name)[1] / "model.safetensors").exists():
        pytest.skip(f"{name} is not trained yet")
    return checkpoint.load(name)


def holds(name: str, cache: str | None, names, room: int, count: int) -> int:
    """How many calls eight drafts have saved on some problems, the texts the same."""
    config, params, codec = (
        getattr(model(name), f) for f in ("config", "params", "codec")
    )
    length = min(config.block_length, room // 2)
    net = functools.partial(network, config, length, cache, 8, room)
    problems = (
        problem_sets.load("words_test")[:count]
        + problem_sets.load("lists_test")[:count]
    )
    prompts = [codec.encode_prompt(problem.prompt) for problem in problems]
    policies = {name: made(name, 6) for name in names}
    common = dict(block_length=length, max_new_tokens=room, cache=cache)
    return sum(
        saved_calls(decoder, 8, official_loops.Chosen(params, index), prompts, 1)
        for decoder, chosen in official_loops.programs(
            config, net, policies, 8, **common
        )
        for _, index in chosen
    )


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        # The others with all care: `bench.lossless`, and below.
        pytest.param("sdar-1m", None, marks=pytest.mark.as_shipped),
        ("dream-1m", "dual"),
        pytest.param("llada-1m", "prefix", marks=pytest.mark.slow),
    ],
)
def test_drafts_keep_the_text_of_demo_models(name, cache):
    assert holds(name, cache, FEW, 24, 2) > 0


@pytest.mark.slow
@pytest.mark.as_shipped
@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("sdar-1m", None),
        *(
            (name, cache)
            for name in ("llada-1m", "dream-1m")
            for cache in ("none", "prefix", "dual")
        ),
    ],
)
def test_drafts_keep_the_text_of_demo_models_everywhere(name, cache):
    assert holds(name, cache, [*NAMES, *MORE], 64, 8) > 0

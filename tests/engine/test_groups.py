"""Several answers to one prompt: it is evaluated once, all else is the same."""

import functools

import jax
import pytest
from helpers import fake_full_model, fake_model, official_loops
from helpers.fake_model import build, prompts_of, texts, weights
from helpers.losslessness import made

import jaxdave
from jaxdave import policies
from jaxdave.decoding.loop import prefill
from jaxdave.engine.batching import pack_prompts
from jaxdave.engine.generation import generate

LENGTH, ROOM, SIZE = 4, 12, 4


@pytest.mark.parametrize(
    ("drafts", "kind"),
    [
        (1, "causal"),
        (4, "dual"),
        pytest.param(4, "causal", marks=pytest.mark.slow),
        pytest.param(1, "dual", marks=pytest.mark.slow),
    ],
)
def test_a_group_is_its_rows_alone(kind, drafts):
    """KLASS has a memory; its answers at a temperature differ by request."""
    common = {"block_length": LENGTH, "max_new_tokens": ROOM, "temperature": 0.7}
    config, network = fake_model.CONFIG, fake_model.network(LENGTH)
    if kind == "dual":
        config, network = fake_full_model.CONFIG, fake_full_model.network(False)
        common["cache"] = kind
    ((decoder, chosen),) = official_loops.programs(
        config,
        lambda _: network,
        {"klass": made("klass", 4)},
        drafts,
        record_steps=True,
        **common,
    )
    params = official_loops.Chosen(weights(1), chosen[0][1])
    two = prompts_of([5, 2], 4, fake_model.MASK)
    prompts = [prompt for prompt in two for _ in range(SIZE)]
    requests = [*range(SIZE)] * 2
    options = {"seed": 3, "requests": requests}
    together = generate(decoder, params, prompts, group_size=SIZE, **options)
    apart = generate(decoder, params, prompts, **options)
    assert texts(together) == texts(apart)
    assert len({row.token_ids for row in together.completions}) > 2
    for a, b in zip(together.completions, apart.completions, strict=True):
        assert str(a.trajectory) == str(b.trajectory)


def test_the_prompt_is_evaluated_once():
    """Operations of the prefill: one prompt's, where there would be those of all."""
    model = jaxdave.load("sdar-1m")
    config = jaxdave.DecodeConfig(draft_steps=1, max_new_tokens=16, numerics="fast")
    decoder = jaxdave.Sampler(model, config).decoder
    packed, length = pack_prompts(decoder, [[3] * 40] * SIZE)

    def operations(group_size: int) -> float:
        program = functools.partial(
            prefill, decoder.spec, prefill_length=length, group_size=group_size
        )
        args = model.params, decoder.spec.runtime(1), packed
        analysis = jax.jit(program).lower(*args).cost_analysis()
        return analysis["flops"]  # pyright: ignore

    assert operations(SIZE) < 0.4 * operations(1)


@pytest.mark.parametrize(
    ("prompts", "size", "message"),
    [
        ([[1], [1], [1]], 2, "group_size=2 must divide the 3 prompts"),
        ([[1], [2]], 2, "group_size=2: prompt 1 is not prompt 0"),
        ([[1]], 0, "group_size=0 must divide"),
    ],
)
def test_bad_groups(prompts, size, message):
    decoder = build(policies.static(1), 2, LENGTH, ROOM)
    with pytest.raises(ValueError, match=message):
        generate(decoder, weights(0), prompts, group_size=size)


@pytest.mark.parametrize(
    "numerics", ["guarded", pytest.param("exact", marks=pytest.mark.slow)]
)
def test_a_group_on_a_transformer(numerics):
    """With the demo model: texts of a group are those of requests alone."""
    model = jaxdave.load("sdar-1m")
    config = jaxdave.DecodeConfig(
        draft_steps=4, max_new_tokens=16, temperature=1.0, seed=2, numerics=numerics
    )
    sampler = jaxdave.Sampler(model, config)
    prompt = "Mia has 3 pens. How many pens?"
    group = sampler.batch([prompt] * 4, requests=range(4), group_size=4)
    alone = [sampler(prompt, request=request).text for request in range(4)]
    assert [row.text for row in group] == alone and len(set(alone)) > 1

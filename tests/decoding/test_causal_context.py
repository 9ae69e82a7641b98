"""Nemotron's rule against its loop in PyTorch, and the laws of drafts over it."""

import pytest
from helpers.conversion_sources import run

import jaxdave
from jaxdave import policies
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate

pytest.importorskip("torch")
from helpers import torch_families, torch_nemotron  # noqa: E402
from helpers.fake_model import capped, texts  # noqa: E402

LENGTH, ROOM = 8, 32
PROMPTS = [[5, 9, 2], list(range(10, 27)), [700] * 8]
THRESHOLD = 0.35


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """(PyTorch's module, our model), whose predictions vary."""
    home = tmp_path_factory.mktemp("nemotron")
    module = torch_families.build(torch_nemotron.CASE, 0.5)
    source = torch_families.save(torch_nemotron.CASE, module, home / "source")
    assert run(source, home / "ours") == 0
    return module, jaxdave.load(home / "ours")


def make(model, drafts: int, numerics: str, **settings):
    """A decoder of the rule."""
    return decoders.freedave(
        model.config,
        policies.threshold(THRESHOLD),
        draft_steps=drafts,
        max_new_tokens=ROOM,
        numerics=numerics,
        no_early_exit=True,
        **settings,
    )


@pytest.mark.parametrize("numerics", ["exact", "guarded"])
def test_the_plain_rule_is_the_loop_s(twins, numerics):
    module, model = twins
    decoder = make(model, 1, numerics)
    result = generate(decoder, model.params, PROMPTS)
    for prompt, row in zip(PROMPTS, result.completions, strict=True):
        want = torch_nemotron.decode(module, prompt, ROOM, LENGTH, THRESHOLD)
        stop = next(
            (i for i, t in enumerate(want.tokens) if t in model.config.stop_ids), ROOM
        )
        assert row.token_ids == want.tokens[:stop]
        # The public loop evaluates the last state of each block, and so do we.
        assert row.nfe.total - row.nfe.recheck == want.calls == row.reference_nfe


@pytest.mark.parametrize(
    ("numerics", "drafts"),
    [
        pytest.param(numerics, drafts, marks=() if is_quick else pytest.mark.slow)
        for numerics in ("exact", "guarded")
        for drafts in (2, 4, 8)
        for is_quick in [(numerics, drafts) in (("exact", 4), ("guarded", 8))]
    ],
)
def test_drafts_change_no_text(twins, numerics, drafts):
    _, model = twins
    decoder = make(model, drafts, numerics)
    plain = generate(make(model, 1, numerics), model.params, PROMPTS)
    same = generate(capped(decoder, 1), model.params, PROMPTS)
    quick = generate(decoder, model.params, PROMPTS)
    assert texts(quick) == texts(plain) == texts(same)
    for a, b in zip(quick.completions, plain.completions, strict=True):
        assert a.nfe.total - a.nfe.recheck <= b.nfe.total - b.nfe.recheck

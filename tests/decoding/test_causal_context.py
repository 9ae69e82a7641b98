"""Nemotron's rule against its loop in PyTorch, and the laws of drafts over it."""

import itertools

import pytest
from helpers import checkpoint_folders, official_loops
from helpers.conversion_sources import run
from helpers.fake_model import capped, prompts_of, texts
from helpers.losslessness import MORE, NAMES, made, saved_calls
from helpers.small_models import SMALL

import jaxdave
from jaxdave import policies
from jaxdave.engine import decoders
from jaxdave.engine.decode_layout import decode_layout
from jaxdave.engine.generation import generate
from jaxdave.models.presets import preset

torch = pytest.importorskip("torch")
from helpers import torch_families, torch_nemotron  # noqa: E402

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


QUICK = (("exact", 4, 0.0), ("guarded", 8, 0.0))


@pytest.mark.parametrize(
    ("numerics", "drafts", "temperature"),
    [
        pytest.param(*cell, marks=() if cell in QUICK else pytest.mark.slow)
        for cell in itertools.product(("exact", "guarded"), (2, 4, 8), (0.0, 0.7))
    ],
)
def test_drafts_change_no_text(twins, numerics, drafts, temperature):
    _, model = twins
    noise = {"temperature": temperature}
    decoder = make(model, drafts, numerics, **noise)
    lone = make(model, 1, numerics, **noise)
    plain = generate(lone, model.params, PROMPTS, seed=3)
    same = generate(capped(decoder, 1), model.params, PROMPTS, seed=3)
    quick = generate(decoder, model.params, PROMPTS, seed=3)
    assert texts(quick) == texts(plain) == texts(same)
    for a, b in zip(quick.completions, plain.completions, strict=True):
        assert a.nfe.total - a.nfe.recheck <= b.nfe.total - b.nfe.recheck


@pytest.mark.parametrize("drafts", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_blocks_of_one_token_are_greedy_autoregressive_text(twins, drafts):
    """What the published loop `linear_spec` decodes, here with one call a round."""
    module, model = twins
    decoder = make(model, drafts, "exact", block_length=1)
    result = generate(decoder, model.params, PROMPTS)
    for prompt, row in zip(PROMPTS, result.completions, strict=True):
        tokens = list(prompt)
        while len(tokens) < len(prompt) + len(row.token_ids):
            logits = torch_nemotron.logits(module, tokens, [])
            tokens.append(int(logits[0].argmax()))
        assert row.token_ids == tuple(tokens[len(prompt) :])
        assert row.nfe.total <= ROOM
        assert drafts > 1 or row.nfe.total == ROOM


SHADOWED = {name for name in NAMES if made(name, 4).shadow}
EDITING = {name for name in (*NAMES, *MORE) if made(name, 4).edits}
EVERY = [name for name in (*NAMES, *MORE) if name not in SHADOWED | EDITING]


def holds(names, length: int, drafts: int, temperature: float, seeds) -> int:
    """The calls that drafts save policies; checks that the text stays the same."""
    sizes = dict(SMALL, block_length=length, attention="causal_context")
    config = preset("sdar-1m", **sizes)
    chosen = {name: made(name, 3) for name in names}
    model = decode_layout(config, length, None, drafts, 16).make_model
    network = model(config, numerics="exact")
    saved = 0
    for decoder, indices in official_loops.programs(
        config,
        lambda policy: network,
        chosen,
        drafts,
        block_length=length,
        max_new_tokens=16,
        temperature=temperature,
    ):
        for _, index in indices:
            for seed in seeds:
                weights = checkpoint_folders.random(config, seed)
                params = official_loops.Chosen(weights, index)
                prompts = prompts_of([3, 8, 13], seed, 57)
                saved += saved_calls(decoder, drafts, params, prompts, seed)
    return saved


def test_drafts_keep_the_text_of_policies():
    names = ["threshold", "low_confidence_static", "klass", "bold"]
    assert holds(names, 4, 5, 0.0, range(3)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_drafts_keep_the_text_of_every_policy(part):
    cells = [(4, 5, 0.7), (8, 9, 0.0), (1, 4, 0.0)]
    length, drafts, temperature = cells[part % 3]
    holds(EVERY[part::6], length, drafts, temperature, range(3))


def test_a_policy_with_shadow_masks_is_refused(twins):
    for name in SHADOWED:
        with pytest.raises(ValueError, match="its context is causal") as caught:
            decoders.freedave(twins[1].config, made(name, 4), numerics="exact")
        assert "\n" not in str(caught.value)


def test_a_policy_that_edits_is_refused():
    """What it would edit after the last mask is evaluated as context."""
    for policy in (policies.llada2_s(), *(made(name, 4) for name in EDITING)):
        with pytest.raises(ValueError, match="evaluates causally as context") as caught:
            decoders.freedave(preset("nemotron-14b"), policy)
        assert "\n" not in str(caught.value)

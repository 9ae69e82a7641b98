"""Law 1 as a function, and the policies and layouts that it is asked of."""

import functools

import numpy as np
import pytest
from helpers import fake_model
from helpers.fake_model import capped, texts
from hypothesis import settings

from jaxdave import policies
from jaxdave.engine.decode_layout import decode_layout
from jaxdave.engine.generation import generate
from jaxdave.models.shadow_masks import with_shadow_masks

NAMES = [entry.name for entry in policies.listing() if entry.lossless]
LAYOUTS = ("causal", "none", "prefix", "dual")
KINDS = [
    pytest.param(kind, marks=() if kind in ("causal", "dual") else pytest.mark.slow)
    for kind in LAYOUTS
]
"""Every layout; those that say no more than the others do are slow."""
PROGRAMS = settings.get_profile("programs")
MORE = {
    "bold": lambda: policies.threshold(0.4),
    "small blocks": lambda: policies.small_blocks(policies.threshold(0.6), 4),
    "several blocks": lambda: policies.multi_block(2, 0.3, 0.5),
    "stops last": lambda: policies.demote(policies.static(1), (fake_model.STOP,)),
}


def made(name: str, steps: int):
    """The policy, its schedule short enough to commit several tokens a step."""
    if name in MORE:
        return MORE[name]()
    entry = next(e for e in policies.listing() if e.name == name)
    return policies.parse(name + f":steps={steps}" * ("steps" in entry.parameters))


def network(config, length: int, cache: str | None, drafts: int, room: int, policy):
    """The network that a policy is decoded with under exact numerics."""
    return _network(config, length, cache, drafts, room, policy.shadow)


@functools.cache
def _network(config, length, cache, drafts, room, has_shadow: bool):
    make = decode_layout(config, length, cache, drafts, room).make_model
    make = with_shadow_masks(make, length) if has_shadow else make
    return make(config, numerics="exact")


def saved_calls(decoder, cap: int, params, prompts, seed: int = 0) -> int:
    """How many calls `cap` drafts have saved, all else found to be the same.

    Texts, ends and canvases are those of the plain policy; no row takes more calls than
    it, and it takes one a step; the order of the rows does not matter. Guard calls,
    which come by chance of near ties, do not count.
    """
    plain, canvases = fake_model.decode(capped(decoder, 1), params, prompts, seed=seed)
    quick, others = fake_model.decode(capped(decoder, cap), params, prompts, seed=seed)
    assert texts(quick) == texts(plain)
    np.testing.assert_array_equal(others, canvases)
    for a, b in zip(quick.completions, plain.completions, strict=True):
        assert unguarded(a) <= unguarded(b)
        # A policy that weighs candidates asks for calls that commit nothing.
        assert decoder.spec.policy.scoring or unguarded(b) == b.steps
        assert b.proposed_drafts == b.accepted_drafts == 0
        assert a.accepted_drafts <= a.proposed_drafts
        if not (a.nfe.recheck or decoder.spec.policy.scoring):
            assert a.steps == a.nfe.total + a.accepted_drafts
    turned = generate(capped(decoder, cap), params, prompts[::-1], seed=seed)
    assert list(turned.completions) == list(quick.completions)[::-1]
    return sum(map(unguarded, plain.completions)) - sum(
        map(unguarded, quick.completions)
    )


def unguarded(row) -> int:
    """Calls that a row took, but for its recheck calls."""
    return row.nfe.total - row.nfe.recheck

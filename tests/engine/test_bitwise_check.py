"""The self-check says yes to the real network and no to ones that mix their drafts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers import fake_model

from jaxdave.engine import decoders
from jaxdave.engine.bitwise_check import slot_probe

pytestmark = pytest.mark.as_shipped


@pytest.fixture(scope="module")
def spec():
    return decoders.freedave(fake_model.TINY, draft_steps=4, numerics="exact").spec


def broken(spec, hidden_of):
    """The program with its hidden states passed through a function of [M, P, E]."""
    pieces = spec.model.evaluate_blocks

    def changed(params, cut, start, end, cache):
        hidden, kv = pieces(params, cut, start, end, cache)
        return hidden_of(hidden), kv

    model = spec.model._replace(evaluate_blocks=changed)
    return dataclasses.replace(spec, model=model)


def test_the_real_network_passes(spec):
    assert slot_probe(spec, fake_model.tiny_params(0)).holds
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), fake_model.tiny_params(0))
    assert slot_probe(spec, half).holds


def test_a_place_that_shows_is_found(spec):
    place = lambda h: h * (1 + jnp.arange(len(h), dtype=h.dtype)[:, None, None] / 64)  # noqa: E731
    probe = slot_probe(broken(spec, place), fake_model.tiny_params(0))
    assert probe.repeats and probe.neighbours
    assert not probe.order and not probe.equals and not probe.holds


def test_a_neighbour_that_shows_is_found(spec):
    mixed = lambda h: h + jnp.mean(h, axis=0, keepdims=True) / 64  # noqa: E731
    probe = slot_probe(broken(spec, mixed), fake_model.tiny_params(0))
    assert probe.repeats and not probe.neighbours and not probe.holds


def test_an_answer_is_asked_for_once(spec):
    first = slot_probe(spec, fake_model.tiny_params(0))
    assert slot_probe(spec, fake_model.tiny_params(0)) is first

"""Models and decoders go to other processes, and decode the same there."""

import concurrent.futures
import dataclasses
import multiprocessing
import pickle

import jax
import numpy as np
import pytest
from helpers import checkpoint_folders, compiling, fake_model

import jaxdave
from jaxdave import policies
from jaxdave.core.config import Numerics
from jaxdave.core.draft_api import DraftFn
from jaxdave.core.policy_api import Policy
from jaxdave.drafting.draft_model import DraftModelConfig, draft_model
from jaxdave.drafting.guesses import with_guesses
from jaxdave.drafting.nested import nested, propose_nested
from jaxdave.drafting.text_drafts import user_text
from jaxdave.engine import decoders
from jaxdave.engine.streaming import stream
from jaxdave.runtime.files import NO_CACHE


def copied(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("name", [entry.name for entry in policies.listing()])
def test_a_policy_comes_back_as_itself(name):
    policy = policies.parse(name)
    assert copied(policy) is policy
    wrapped = policies.small_blocks(policies.demote(policy, [3]), 4)
    assert copied(wrapped) is wrapped


def step(view, memory):
    return view.tokens_W, memory


def test_a_policy_of_one_s_own_is_its_functions():
    assert copied(Policy("mine", step)) == Policy("mine", step)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        copied(Policy("mine", lambda view, memory: step(view, memory)))
    changed = policies.static(1)._replace(name="mine")
    with pytest.raises((pickle.PicklingError, AttributeError)):
        copied(changed)  # it is not what static returns


def test_a_draft_function_comes_back_as_itself():
    for draft in (
        with_guesses(nested, user_text, reads_text=True),
        draft_model(DraftModelConfig(vocab_rows=16, mask_id=12)),
    ):
        assert copied(draft) is draft
    assert copied(DraftFn(propose_nested)) == DraftFn(propose_nested)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"policy": policies.threshold(0.5), "draft_steps": 3},
        {"policy": "entropy:steps=4", "numerics": "exact", "draft": "copy"},
        {"policy": policies.small_blocks(policies.static(2), 2), "draft": nested},
        {"temperature": 0.5, "suppressed_ids": (7,), "no_stop": True},
        {"policy": "wino", "lossy": True},
    ],
    ids=lambda fields: "-".join(fields) or "default",
)
def test_a_decoder_comes_back_as_itself(fields):
    decoder = decoders.freedave(fake_model.TINY, max_new_tokens=8, **fields)
    for one in (decoder, decoder.undrafted()):
        # Equal specs are one object, which owns the compiled programs.
        assert copied(one) == one and copied(one).spec is one.spec


def test_a_decoder_that_was_changed_is_no_other_one():
    decoder = decoders.freedave(fake_model.TINY, max_new_tokens=8)
    fast = dataclasses.replace(decoder.spec, numerics=Numerics.FAST)
    with pytest.raises(pickle.PicklingError, match="not made by make_decoder"):
        pickle.dumps(dataclasses.replace(decoder, spec=fast))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> jaxdave.Model:
    path = tmp_path_factory.mktemp("pickle") / "tiny"
    checkpoint_folders.make(path)
    return jaxdave.load(path)


def test_a_model_comes_back(model):
    again = copied(model)
    assert dataclasses.replace(again, params=0, codec=0) == dataclasses.replace(
        model, params=0, codec=0
    )
    assert jax.tree.structure(again.params) == jax.tree.structure(model.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    ids = model.codec.encode_prompt("How many pens?")
    assert again.codec.encode_prompt("How many pens?") == ids
    assert again.codec.decode(ids) == model.codec.decode(ids)
    assert (again.codec.stop_ids, again.codec.size) == (
        model.codec.stop_ids,
        model.codec.size,
    )


def test_a_spawned_process_decodes_the_same(model, monkeypatch, shared_cache):
    """And finds there, on disk, what this one has compiled."""
    monkeypatch.delenv(NO_CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    config = jaxdave.DecodeConfig(max_new_tokens=8, draft_steps=2)
    sampler = jaxdave.Sampler(model, config)
    question = "How many pens?"
    here = sampler(question).token_ids
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        answer = pool.submit(compiling.answer_quickly, sampler, question)
        there, traces = answer.result()
    assert there == here
    assert traces == 0


def test_a_stream_refuses_at_once(model):
    config = jaxdave.DecodeConfig(max_new_tokens=8, draft_steps=2)
    sampler = jaxdave.Sampler(model, config)
    for bad in ([], [10**6], [1] * 10_000):
        with pytest.raises(ValueError):
            sampler.stream(bad)
    for prompts in ([[]], [[1] * 10_000]):
        with pytest.raises(ValueError):
            stream(sampler.decoder, model.params, prompts)
    with pytest.raises(ValueError, match="draft_text"):
        stream(sampler.decoder, model.params, [[1]], draft_text=[[1]])

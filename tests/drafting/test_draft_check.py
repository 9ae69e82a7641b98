"""A draft function that returns what it must not is refused when a decoder is built."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers import fake_model
from helpers.fake_model import prompts_of, weights

import jaxdave
from jaxdave import DecodeConfig, DraftFn, Sampler, policies
from jaxdave.core.draft_api import DraftedParams
from jaxdave.drafting.draft_model import (
    DraftModelConfig,
    draft_model,
    init_draft_params,
)
from jaxdave.drafting.nested import nested
from jaxdave.engine.decoders import make_decoder
from jaxdave.engine.generation import generate

MODEL = jaxdave.load("sdar-1m")
SHAPE = DraftModelConfig(MODEL.config.vocab_rows, MODEL.config.mask_id, features=8)


def proposing(change) -> DraftFn:
    """Nested drafts, and what a mistake makes of them."""

    def propose(context, first, num_drafts):
        return change(nested.propose(context, first, num_drafts))

    return DraftFn(propose)


def remembering(initial, change) -> DraftFn:
    """Nested drafts with a memory, and what a mistake makes of it."""

    def update(params, memory, row):
        del params, row
        return change(memory)

    return nested._replace(init=lambda params, row: initial(), update=update)


def failing(context, first, num_drafts):
    return context.no_such_field


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (
            proposing(lambda d: jax.tree.map(lambda a: a[1:], d)),
            "tokens_KNL of int32[4, 1, 20], but num_drafts=5 drafts of states [1, 20] "
            "need int32[5, 1, 20]; return num_drafts drafts",
        ),
        (
            proposing(lambda d: d._replace(tokens_KNL=d.tokens_KNL[:, 0])),
            "tokens_KNL of int32[5, 20]",
        ),
        (proposing(lambda d: d._replace(valid_K=d.valid_K[0])), "valid_K of bool[]"),
        (
            proposing(lambda d: d._replace(depth_K=d.depth_K.astype(jnp.float32))),
            "depth_K of float32[5], but num_drafts=5 drafts of states [1, 20] need "
            "int32[5]; cast it with .astype('int32')",
        ),
        (
            proposing(lambda d: d._replace(worth_K=d.worth_K.astype(jnp.bfloat16))),
            "worth_K of bfloat16[5]",
        ),
        (proposing(lambda d: d._replace(worth_K=None)), "worth_K of NoneType"),
        (proposing(tuple), "propose returned a tuple, but must return a DraftSet"),
        (DraftFn(failing), "fails while it is traced (AttributeError"),
        (remembering(lambda: "text", lambda m: m), "init returned memory of type str"),
        (
            remembering(lambda: {"a": jnp.zeros(3)}, lambda m: (m["a"],)),
            "a memory of structure PyTreeDef((*,)), but init made PyTreeDef({'a': *})",
        ),
        (
            remembering(lambda: {"a": jnp.zeros(3)}, lambda m: {"a": m["a"][:2]}),
            "memory['a'] of float32[2], but init made float32[3]",
        ),
        (
            remembering(lambda: jnp.int32(0), lambda m: m.astype(jnp.float32)),
            "memory of float32[], but init made int32[]",
        ),
        (
            nested._replace(init=lambda params: ()),  # type: ignore[arg-type]
            "has an init of another signature than (params, row)",
        ),
        (
            nested._replace(update=lambda params: ()),  # type: ignore[arg-type]
            "has an update of another signature than (params, memory, row)",
        ),
    ],
)
def test_a_draft_function_of_the_wrong_shape_is_refused_when_built(draft, words):
    with pytest.raises(ValueError) as error:
        fake_model.build(policies.static(1), 5, 4, 20, draft=draft)
    assert words in one_line(error)
    config = DecodeConfig(draft=draft, draft_steps=5)
    with pytest.raises(ValueError):
        make_decoder(MODEL.config, config)


def test_what_is_right_is_accepted_under_every_layout():
    counting = remembering(lambda: jnp.int32(0), lambda memory: memory + 1)
    for name in ("static", "info_gain", "wino"):
        for cache in ("none", "prefix", "dual"):
            config = DecodeConfig(
                draft=counting, policy=name, cache=cache, draft_steps=3
            )
            make_decoder(jaxdave.preset("llada-1m"), config)
        make_decoder(MODEL.config, DecodeConfig(draft=counting, policy=name))


def test_a_function_is_checked_once():
    calls = []

    def propose(context, first, num_drafts):
        calls.append(num_drafts)
        return nested.propose(context, first, num_drafts)

    for _ in range(2):
        make_decoder(MODEL.config, DecodeConfig(draft=DraftFn(propose), draft_steps=6))
    assert calls == [6]


def test_parameters_are_checked_where_they_are_known():
    """By a sampler when it is built, and by `generate` before it compiles."""
    config = DecodeConfig(draft=draft_model(SHAPE), draft_steps=4, max_new_tokens=8)
    Sampler(MODEL, config, init_draft_params(SHAPE, 0))
    with pytest.raises(ValueError, match="to a Sampler draft_params=") as error:
        Sampler(MODEL, config)
    one_line(error)
    wide = init_draft_params(dataclasses.replace(SHAPE, features=16), 0)
    with pytest.raises(ValueError, match="init.* fails .* give parameters") as error:
        Sampler(MODEL, config, wide)
    one_line(error)
    with pytest.raises(ValueError, match="takes no parameters") as error:
        Sampler(MODEL, DecodeConfig(draft="nested"), wide)
    one_line(error)


def test_a_wrong_shape_that_parameters_bring_is_one_line_when_traced():
    def propose(context, first, num_drafts):
        drafts = nested.propose(context, first, num_drafts)
        return drafts._replace(worth_K=context.params)

    draft = DraftFn(propose, takes_params=True)
    decoder = fake_model.build(policies.static(1), 2, 4, 8, draft=draft)
    params = DraftedParams(model=weights(0), draft=jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"worth_K of float32\[3, 2\]") as error:
        generate(decoder, params, prompts_of([3]))
    one_line(error)

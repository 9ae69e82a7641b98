"""The sampler: text in and text out, as the functional layer has it."""

import json

import numpy as np
import pytest

import jaxdave
from jaxdave import DecodeConfig, Sampler
from jaxdave.engine.decoders import make_decoder
from jaxdave.engine.text_stream import split_text

MODEL = jaxdave.load("sdar-1m")
PROMPT = "Tom has 2 pens. He buys 3 more pens. How many pens does Tom have now?"
OTHER = "Mia has 7 pens. She buys 4 more pens. How many pens does Mia have now?"
CONFIG = DecodeConfig(max_new_tokens=24, draft_steps=4)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(MODEL, CONFIG)


def test_text_is_that_of_generate(sampler):
    result = sampler(PROMPT)
    decoder = make_decoder(MODEL.config, CONFIG, tables=MODEL.tables)
    ids = MODEL.codec.encode_prompt(PROMPT)
    (completion,) = jaxdave.generate(decoder, MODEL.params, [ids]).completions
    assert result.completion == completion
    assert result.token_ids == completion.token_ids
    assert result.text == MODEL.codec.decode(completion.token_ids)
    assert str(result).startswith(result.text) and "tokens/call" in str(result)


def test_prompts_are_texts_conversations_or_ids(sampler):
    ids = MODEL.codec.encode_prompt(PROMPT)
    forms = PROMPT, [{"role": "user", "content": PROMPT}], ids, np.asarray(ids)
    assert [sampler.encode(form) for form in forms] == [ids] * 4


def test_a_batch_is_its_prompts_one_by_one(sampler):
    together = sampler.batch([PROMPT, OTHER])
    assert together == [sampler(PROMPT), sampler(OTHER)]
    assert together[0] != together[1]
    assert [one.batch_rows for one in together] == [2, 2]


def test_pieces_of_a_stream_are_the_text(sampler):
    stream = sampler.stream(PROMPT)
    pieces = list(stream)
    result = sampler(PROMPT)
    assert "".join(pieces) == result.text and len(pieces) > 1
    assert tuple(stream.token_ids) == result.token_ids and stream.is_finished
    assert "".join(split_text(MODEL.codec.decode, result.token_ids)) == result.text


def test_undrafted_has_the_same_text_in_more_calls(sampler):
    plain = sampler.undrafted()
    assert plain.config.method == "static"
    assert plain(PROMPT) == sampler(PROMPT)
    assert plain(PROMPT).nfe.total > sampler(PROMPT).nfe.total


def test_draft_texts_change_no_word(sampler):
    result = sampler(PROMPT)
    assert sampler(PROMPT, draft_text=result.text) == result
    assert "".join(sampler.stream(PROMPT, draft_text="no such thing")) == result.text
    assert sampler.batch([PROMPT, OTHER], draft_texts=[result.text, None])[0] == result


def test_json_has_the_names_of_the_command_line(sampler):
    answer = json.loads(sampler(PROMPT).to_json())
    assert (
        list(answer)
        == (
            "index text token_ids finish_reason valid_tokens nfe reference_nfe steps "
            "proposed_drafts accepted_drafts hit_rate seconds compile_seconds "
            "tokens_per_nfe tokens_per_second memory method policy temperature "
            "draft_steps seed model numerics dtype quantize batch_rows"
        ).split()
    )
    assert (answer["method"], answer["draft_steps"]) == ("freedave", 4)
    assert (answer["model"], answer["dtype"]) == ("sdar-1m", "float32")
    assert json.loads(sampler.undrafted()(PROMPT).to_json())["draft_steps"] == 1


def test_the_room_is_the_model_s_where_none_is_given():
    sampler = Sampler(MODEL)
    assert sampler.config.max_new_tokens == MODEL.max_new_tokens
    assert sampler.decoder.max_new_tokens == MODEL.max_new_tokens


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "is empty"),
        ([], "prompt_ids is empty"),
        ([1, 10**6], "must be token ids in 0.."),
        ([True, 1], "must be token ids"),
        ([{"role": "user"}], "messages must be a list"),
        ("word " * 3000, "the prompt has"),
    ],
)
def test_bad_prompts_are_one_line(sampler, prompt, words):
    for call in (sampler, sampler.stream, lambda p: sampler.batch([PROMPT, p])):
        with pytest.raises(ValueError) as caught:
            call(prompt)
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_fit_the_model_is_refused_at_once():
    with pytest.raises(ValueError, match="is for full-attention models"):
        Sampler(MODEL, DecodeConfig(cache="dual"))

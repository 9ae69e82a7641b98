"""Samples from JSON lines: what is trained is what the decoder is given."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import pytest
from helpers.checkpoint_folders import TOKENIZER
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdave
from jaxdave.cli.prompts import encode, read_requests
from jaxdave.demo_tasks.mixture import training_problem
from jaxdave.io.checkpoint import describe
from jaxdave.io.tokenizer import load_codec
from jaxdave.training.data.samples import (
    SampleList,
    Turn,
    encode_turn,
    end_id,
    open_samples,
    parse_turns,
)

FORGETFUL = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}"
    "<|im_end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
    "{%- if brief -%}!{%- endif -%}"
)
"""A template that leaves the reasoning of past answers out, as Qwen3's does."""
SYSTEM = {"role": "system", "content": "Count."}
USER = {"role": "user", "content": "How many pens?"}
THINK = {"role": "assistant", "content": "<think>1 + 2</think>3"}
MORE = {"role": "user", "content": "And 4 more?"}
LAST = {"role": "assistant", "content": "7"}


@functools.cache
def model():
    return describe("sdar-1m")


def codec_with(folder: Path, template: str):
    """The demo's tokenizer with another chat template."""
    for path in TOKENIZER.glob("*token*.json"):
        shutil.copy(path, folder)
    (folder / "chat_template.jinja").write_text(template)
    return load_codec(folder)


def write(path: Path, *values) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.mark.parametrize("template", [None, FORGETFUL])
def test_a_prompt_is_what_the_decoder_is_given(tmp_path, template):
    codec = model().codec if template is None else codec_with(tmp_path, template)
    args = {"template_args": {"brief": True}}
    conversation = [SYSTEM, USER, THINK, MORE, LAST]
    trained = write(
        tmp_path / "train.jsonl",
        {"prompt": "How many pens?", "response": "3"},
        {"prompt": [SYSTEM, USER], "response": "3", "id": 8},
        {"messages": conversation},
        {"messages": conversation, **args},
    )
    asked = write(
        tmp_path / "prompts.jsonl",
        {"prompt": "How many pens?"},
        {"messages": [SYSTEM, USER]},
        {"messages": [SYSTEM, USER]},
        {"messages": [SYSTEM, USER, THINK, MORE]},
        {"messages": [SYSTEM, USER], **args},
        {"messages": [SYSTEM, USER, THINK, MORE], **args},
    )
    samples = open_samples([trained], codec)

    reader = dataclasses.replace(model(), codec=codec)
    # The path of `jaxdave generate --prompts`.
    requests = read_requests(None, asked)
    expected = [encode(request, reader, 8).ids for request in requests]
    assert [samples[i][0] for i in range(len(samples))] == expected
    answers = [codec.decode(samples[i][1]) for i in range(len(samples))]
    assert answers == ["3", "3", *[THINK["content"], "7"] * 2]


texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@settings(max_examples=100, deadline=None)
@given(prompt=texts, answer=texts)
def test_prompt_and_answer_together_are_their_tokens_apart(prompt, answer):
    codec = model().codec
    turn = Turn(prompt=prompt, answer=answer)
    prompt_ids, answer_ids = encode_turn(codec, turn, end=end_id(codec))
    rendered = codec.render([{"role": "user", "content": prompt}])
    together = codec.encode_text(f"{rendered}{answer}<|im_end|>")
    assert together == [*prompt_ids, *answer_ids]
    assert codec.decode(answer_ids) == answer


def test_the_end_is_what_the_template_ends_a_turn_with(tmp_path):
    codec = model().codec
    turn_end, text_end = codec.stop_ids
    assert [turn_end, text_end] == codec.encode_text("<|im_end|><|endoftext|>")
    assert end_id(codec) == turn_end

    def end_with(template):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        other = codec_with(folder, template)
        return end_id(other), other.stop_ids

    # From the tokenizer alone only the end of text is known as an end.
    assert end_with("{{ messages[-1].content }}<|endoftext|>") == (
        text_end,
        (text_end,),
    )
    # The decoder does not stop at what this one puts there; the next has no such
    # conversations, the last says nothing about ends.
    assert end_with("{{ messages[-1].content }}<|im_end|>")[0] == text_end
    assert end_with("{{ raise_exception('one turn only') }}")[0] == text_end
    assert end_with("{{ messages[-1].content }}")[0] == text_end


def test_raw_texts_have_no_template(tmp_path):
    codec = model().codec
    path = write(
        tmp_path / "raw.jsonl",
        {"prompt": "3 plus 4 is", "response": " 7"},
        {"prompt": "", "response": "A text by itself."},
    )
    samples = open_samples([path], codec, chat_template=False)
    end = codec.stop_ids[0]
    assert samples[0] == (
        codec.encode_text("3 plus 4 is"),
        [*codec.encode_text(" 7"), end],
    )
    assert samples[1] == ([], [*codec.encode_text("A text by itself."), end])


def test_files_follow_one_another_and_blank_lines_are_left_out(tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    separator = chr(0x2028)  # ends lines for Python, not in JSON lines
    one.write_bytes(
        b"\xef\xbb\xbf"
        + b'{"prompt": "a", "response": "1"}\r\n\n  \n'
        + f'{{"prompt": "b", "response": "2{separator}2"}}\n'.encode()
    )
    two.write_text(json.dumps({"messages": [USER, LAST, USER, THINK, MORE]}))
    codec = model().codec
    samples = open_samples([one, two], codec)
    answers = [codec.decode(samples[i][1]) for i in range(len(samples))]
    assert answers == ["1", f"2{separator}2", "7", THINK["content"]]
    places = [samples.where(i) for i in range(len(samples))]
    assert places == [
        f"{one}, line 1: ",
        f"{one}, line 4: ",
        *[f"{two}, line 1: "] * 2,
    ]
    with pytest.raises(IndexError):
        samples[4]


GOOD = {"prompt": "a", "response": "1"}


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", ["broken JSON"]),
        ("[" * 100_000, ["nested too deep"]),
        ("[1]", ["[1]", "must be an object"]),
        ({}, ["keys []", '"prompt" and "response"']),
        ({str(i): i for i in range(999)}, ["keys ['0', '1'", "..."]),
        ({"prompt": "a", "reponse": "1"}, ["'prompt', 'reponse'", '"response"']),
        ({**GOOD, "messages": [USER, LAST]}, ["'messages'", "alone"]),
        ({**GOOD, "template_args": 3}, ["template_args=3", "object"]),
        ({"prompt": 3, "response": "1"}, ["prompt=3", "list"]),
        ({"prompt": " ", "response": "1"}, ["prompt=' '", "empty"]),
        ({"prompt": [], "response": "1"}, ["prompt=[]", "list"]),
        ({"prompt": "a", "response": None}, ["response=None", "must be a text"]),
        ({"prompt": "a", "response": ""}, ["response=''", "empty answer"]),
        ({"prompt": "a", "response": " \n"}, ["empty answer"]),
        ({"prompt": "a", "response": "\ud800"}, ["half a character"]),
        ({"messages": "hello"}, ["messages='hello'", "list"]),
        ({"messages": ["hello"]}, ["messages[0]='hello'", "object"]),
        ({"messages": [USER, {"content": "7"}]}, ["messages[1] has no role"]),
        ({"messages": [{"role": "robot", "content": ""}]}, ["role='robot'", "user"]),
        ({"messages": [{"role": ["user"], "content": ""}]}, ["role=['user']"]),
        ({"messages": [{"role": "user"}]}, ["messages[0] has no content"]),
        ({"messages": [{"role": "user", "content": 3}]}, ["messages[0].content=3"]),
        ({"messages": [USER]}, ["no assistant"]),
        ({"messages": [LAST]}, ["messages[0]", "nothing before"]),
        ({"messages": [USER, {**LAST, "content": ""}]}, ["messages[1].content=''"]),
    ],
)
def test_a_bad_line_is_named_when_the_file_is_opened(tmp_path, line, words):
    text = line if isinstance(line, str) else json.dumps(line)
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{text}\n")
    with pytest.raises(ValueError) as error:
        open_samples([path], model().codec)
    message = str(error.value)
    assert message.startswith(f"{path}, line 3: ")
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 300


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "latin1.jsonl"
    path.write_bytes(b'{"prompt": "a", "response": "\xe9"}')
    with pytest.raises(ValueError, match="line 1: byte 30 .* is not UTF-8"):
        open_samples([path], model().codec)


def test_messages_need_a_template(tmp_path):
    path = write(tmp_path / "chats.jsonl", {"messages": [USER, LAST]})
    with pytest.raises(ValueError, match='line 1: has "messages".*chat_template'):
        open_samples([path], model().codec, chat_template=False)
    with pytest.raises(ValueError, match="prompt=.*must be a text"):
        parse_turns(
            json.dumps({"prompt": [USER], "response": "1"}), chat_template=False
        )


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "cannot be read .*check the path"),
        (b"", "holds no line"),
        (b"\n \n", "holds no line"),
    ],
)
def test_a_file_that_has_no_sample_is_named(tmp_path, content, words):
    path = tmp_path / "file.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"file.jsonl: {words}"):
        open_samples([path], model().codec)


def test_no_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        open_samples([], model().codec)
    with pytest.raises(ValueError, match="no regular file"):
        open_samples([tmp_path], model().codec)


@pytest.mark.parametrize(
    "line, words",
    [
        ({"prompt": "a", "response": "b<|im_end|>c"}, "ends answers .id 774"),
        ({"prompt": "a", "response": "b<|endoftext|>"}, "ends answers .id 772"),
        ({"prompt": "a", "response": "b<|MASK|>c"}, "answer holds the mask token"),
        ({"prompt": "a<|MASK|>", "response": "b"}, "prompt holds the mask token"),
    ],
)
def test_what_only_the_tokenizer_can_tell_names_its_line_too(tmp_path, line, words):
    samples = open_samples([write(tmp_path / "a.jsonl", GOOD, line)], model().codec)
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: .*{words}"):
        samples[1]


def test_a_line_that_changes_under_the_run_is_noticed(tmp_path):
    path = write(tmp_path / "a.jsonl", GOOD, {**GOOD, "response": "2"})
    samples = open_samples([path], model().codec)
    digests = samples.digests
    first = samples[0]
    text = path.read_bytes()
    with open(path, "r+b") as file:  # the same file, not another one in its place
        file.write(text.replace(b'"2"', b'"3"'))
    assert samples[0] == first
    with pytest.raises(ValueError, match="line 2: has changed since .* opened"):
        samples[1]
    assert open_samples([path], model().codec).digests != digests
    with open(path, "r+b") as file:
        file.truncate(50)
    with pytest.raises(ValueError, match="line 2: has changed"):
        samples[1]
    # A file that takes its place does not: what was opened is read.
    other = open_samples([write(tmp_path / "b.jsonl", GOOD)], model().codec)
    write(tmp_path / "new.jsonl", {**GOOD, "response": "5"}).replace(
        tmp_path / "b.jsonl"
    )
    assert other[0] == first


def test_a_list_has_answers():
    with pytest.raises(ValueError, match="no sample"):
        SampleList([])
    with pytest.raises(ValueError, match="sample 1: an answer of 0 tokens"):
        SampleList([([1], [2]), ([1], [])])
    # A token moved from a prompt to its answer is another list.
    assert SampleList([([1], [2, 3])]).digests != SampleList([([1, 2], [3])]).digests


@pytest.mark.slow
def test_an_answer_is_what_the_decoder_returns(tmp_path):
    demo = jaxdave.load("sdar-1m")
    problems = [training_problem(0, 10**6 + index) for index in range(8)]
    lines = [{"prompt": one.prompt, "response": one.answer} for one in problems]
    samples = open_samples([write(tmp_path / "a.jsonl", *lines)], demo.codec)
    decoder = jaxdave.freedave(demo.config, draft_steps=4, max_new_tokens=32)
    prompts = [samples[i][0] for i in range(len(samples))]
    result = jaxdave.generate(decoder, demo.params, prompts)
    for i, completion in enumerate(result.completions):
        text = demo.codec.decode(completion.token_ids)
        turn = Turn(prompt="a", answer=text)
        # Up to its end, whatever the answer is.
        _, answer = encode_turn(demo.codec, turn, end=end_id(demo.codec))
        assert completion.finish_reason == "stop"
        assert answer[:-1] == list(completion.token_ids)
        # And it is right, as the model was trained on such answers.
        assert answer == samples[i][1]

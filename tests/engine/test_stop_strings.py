"""Stop strings: where texts are cut, what is settled, and how they are given."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jaxdave
from jaxdave import DecodeConfig, Sampler
from jaxdave.engine.stop_strings import (
    check_stops,
    cut_at_stop,
    is_final,
    settled_length,
    unescape,
)

SHORT = st.text("ab", max_size=4)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", (), "one two"),
        ("one two", ("",), "one two"),
        ("one two", (" ", "tw"), "one"),
        ("one two", ("tw", " "), "one"),
        ("one two", ("three",), "one two"),
        ("one two", ("one",), ""),
    ],
)
def test_text_is_cut_before_the_first_stop_string(text, stops, expected):
    assert cut_at_stop(text, stops) == expected


@given(SHORT, SHORT, st.lists(SHORT, max_size=3))
def test_a_final_text_is_cut_alike_whatever_follows(text, more, stops):
    if is_final(text, stops):
        assert cut_at_stop(text + more, stops) == cut_at_stop(text, stops)


def test_a_text_is_final_no_later_than_it_must_be():
    assert not is_final("ab", ("b", "ab c"))  # "ab c" may begin before "b"
    assert is_final("ab d", ("b", "ab c"))
    assert is_final("ab", ("b",))
    assert not is_final("ab\ufffd\ufffd", ("b", "ab c"))


@given(
    st.text("ab", max_size=8), SHORT, st.lists(st.text("ab", min_size=1, max_size=4))
)
def test_what_is_settled_is_shown_whatever_follows(text, more, stops):
    settled = text[: settled_length(text, stops)]
    assert cut_at_stop(text + more, stops).startswith(settled)
    # And no less: something that may follow cuts the text there, or nothing does.
    follows = ["", *(stop[n:] for stop in stops for n in range(len(stop)))]
    assert settled == min((cut_at_stop(text + end, stops) for end in follows), key=len)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (r"\n\n", "\n\n"),
        (r"\t\r", "\t\r"),
        (r"\\n", "\\n"),
        (r"\x41\u00e9\U0001F600", "A\u00e9\U0001f600"),
        ("####", "####"),
        ("a\nb", "a\nb"),
        ("", ""),
    ],
)
def test_a_command_line_writes_line_feeds_as_escapes(text, meant):
    assert unescape(text) == meant


@pytest.mark.parametrize("text", [r"\q", "end\\", r"\x4", r"\ud800", r"\U99999999"])
def test_other_escapes_are_refused(text):
    with pytest.raises(ValueError, match="unknown escape") as caught:
        unescape(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stop", "words"),
    [
        ("", "is empty"),
        (["a", ""], "is empty"),
        ([1], "stop=1 must be a text"),
        ([None], "must be a text"),
        (b"a", "must be a text, or a list of texts"),
        (7, "must be a text, or a list of texts"),
        ({"a": 1}, "must be a text, or a list of texts"),
    ],
)
def test_what_is_no_stop_string_is_refused(stop, words):
    with pytest.raises(ValueError, match=words) as caught:
        check_stops(stop)
    assert "\n" not in str(caught.value)


MODEL = jaxdave.load("sdar-1m")
PROMPT = "Tom has 2 pens. He buys 3 more pens. How many pens does Tom have now?"
OTHER = "Mia has 7 pens. She buys 4 more pens. How many pens does Mia have now?"
CONFIG = DecodeConfig(max_new_tokens=32, draft_steps=4)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(MODEL, CONFIG)


def stops_of(text: str) -> list[list[str]]:
    """Stop strings that are in a text, at its edges, twice, and not in it."""
    middle = len(text) // 2
    return [
        [text[middle : middle + 2]],
        [text[-1]],
        [text[:1]],
        [text[middle:], text[middle + 1 : middle + 3]],
        [text + "no", text[3:5] + "\x00"],
        ["not there"],
    ]


def test_a_text_is_the_beginning_of_the_whole_one(sampler):
    whole = sampler(PROMPT)
    for stops in stops_of(whole.text):
        text = cut_at_stop(whole.text, stops)
        answer = sampler(PROMPT, stop=stops)
        assert answer.text == text
        ids = answer.token_ids
        assert ids == whole.token_ids[: len(ids)] and answer.valid_tokens == len(ids)
        assert MODEL.codec.decode(ids).startswith(text)
        if text == whole.text:
            assert answer == whole and answer.nfe == whole.nfe
        else:
            # No id more than the text needs, and no call after its end is known.
            assert answer.finish_reason == "stop"
            assert not ids or len(MODEL.codec.decode(ids[:-1])) < len(text)
            assert answer.nfe.total <= whole.nfe.total
        assert json.loads(answer.to_json())["text"] == text
    early = sampler(PROMPT, stop=stops_of(whole.text)[2])
    assert (early.text, early.token_ids) == ("", ())
    assert early.nfe.total < whole.nfe.total
    assert sampler(PROMPT, stop=whole.text[2:4]) == sampler(
        PROMPT, stop=[whole.text[2:4]]
    )


def test_a_stream_never_shows_what_is_cut(sampler):
    whole = sampler(PROMPT)
    for stops in stops_of(whole.text):
        answer, stream = sampler(PROMPT, stop=stops), sampler.stream(PROMPT, stop=stops)
        shown = ""
        for piece in stream:
            assert piece
            shown += piece
            assert answer.text.startswith(shown)
        assert shown == answer.text and tuple(stream.token_ids) == answer.token_ids
        assert stream.is_finished and stream.finish_reason == answer.finish_reason
        assert stream.calls == answer.nfe.total


def test_rows_of_a_batch_end_as_they_do_alone(sampler):
    stops = [sampler(PROMPT).text[8:10]]
    for made in (sampler, sampler.undrafted()):
        together = made.batch([PROMPT, OTHER], stop=stops)
        assert together == [made(PROMPT, stop=stops), made(OTHER, stop=stops)]
    drafted, plain = (
        sampler(PROMPT, stop=stops),
        sampler.undrafted()(PROMPT, stop=stops),
    )
    assert drafted == plain and drafted.nfe.total <= plain.nfe.total


def test_prompts_of_a_batch_have_stop_strings_of_their_own(sampler):
    own, shared = sampler(PROMPT).text[8:10], sampler(OTHER).text[3:5]
    together = sampler.batch([PROMPT, OTHER, PROMPT], stop=shared, stops=[own, (), ()])
    assert together == [
        sampler(PROMPT, stop=[shared, own]),
        sampler(OTHER, stop=shared),
        sampler(PROMPT, stop=shared),
    ]
    with pytest.raises(ValueError, match="2 stops for 1 prompts"):
        sampler.batch([PROMPT], stops=["a", "b"])


def test_without_an_early_exit_the_room_is_decoded_all_the_same(sampler):
    whole = Sampler(MODEL, dataclasses.replace(CONFIG, no_early_exit=True))
    plain = whole(PROMPT)
    assert plain == sampler(PROMPT) and plain.nfe.total > sampler(PROMPT).nfe.total
    stops = [plain.text[8:10]]
    cut, stream = whole(PROMPT, stop=stops), whole.stream(PROMPT, stop=stops)
    assert cut == sampler(PROMPT, stop=stops) and cut.nfe == plain.nfe
    assert "".join(stream) == cut.text and stream.calls == plain.nfe.total


@pytest.mark.parametrize("stop", ["", ["a", ""], [1], 7])
def test_bad_stops_are_refused_at_once(sampler, stop):
    for call in (sampler, sampler.stream, lambda p, **k: sampler.batch([p], **k)):
        with pytest.raises(ValueError, match="stop="):
            call(PROMPT, stop=stop)


def test_the_command_line_takes_several(run, monkeypatch):
    options = (PROMPT, "--max-new-tokens", 32, "--draft-steps", 4)
    code, out, _ = run("generate", *options)
    text = out[:-1]
    stop = text[8:10]
    for more in (("--json",), ()):
        code, out, _ = run(
            "generate", *options, "--stop", r"\n\n", "--stop", stop, *more
        )
        assert code == 0
        found = json.loads(out)["text"] if more else out[:-1]
        assert found == cut_at_stop(text, [stop, "\n\n"]) != text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    code, out, _ = run("generate", *options, "--stop", stop)
    assert (code, out[:-1]) == (0, found)


@pytest.mark.parametrize("stop", ["", r"\q", "\\"])
def test_the_command_line_refuses_bad_ones_in_one_line(run, stop):
    code, out, err = run("generate", "x", "--stop", stop)
    assert (code, out) == (2, "") and err.count("\n") == 1 and "stop=" in err

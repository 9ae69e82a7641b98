"""Policies that edit, in all that decodes with them: the text is that of no drafts."""

import json

import pytest
from helpers import checkpoint_folders, fake_model
from helpers.fake_model import TINY, texts, tiny_params

from jaxdave import DecodeConfig, Sampler, load, policies
from jaxdave.engine import compaction, decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.stop_strings import cut_at_stop

POLICY = policies.llada2_s(3)
PROMPTS = fake_model.prompts_of([3, 9, 17, 4, 30, 6])[1:4]
QUESTION = "How many pens does Mia have now?"
CONFIG = DecodeConfig(policy="llada2_s", draft_steps=4, max_new_tokens=24)


def tiny_decoder(drafts, policy=POLICY):
    return decoders.freedave(TINY, policy, draft_steps=drafts, max_new_tokens=24)


@pytest.fixture(scope="module")
def undrafted():
    """The texts of three rows, which edits change."""
    plain = texts(generate(tiny_decoder(1), tiny_params(1), PROMPTS))
    never = policies.joint_threshold(0.5, 1.0, 3)
    assert texts(generate(tiny_decoder(1, never), tiny_params(1), PROMPTS)) != plain
    return plain


@pytest.mark.slow
def test_auto_keeps_the_text(undrafted):
    decoder = tiny_decoder("auto")
    assert len(decoder.spec.draft_steps) > 1 and decoder.numerics == "guarded"
    assert texts(generate(decoder, tiny_params(1), PROMPTS)) == undrafted


@pytest.mark.slow
def test_a_batch_that_shrinks_keeps_the_text(undrafted, monkeypatch):
    monkeypatch.setattr(compaction, "is_available", lambda wanted: True)
    monkeypatch.setattr(compaction, "MIN_WAIT_CACHED", 0.0)
    compaction._ACCOUNTS.clear()
    decoder = tiny_decoder(4)
    assert texts(generate(decoder, tiny_params(1), PROMPTS)) == undrafted
    assert {rows for rows, _ in compaction._ACCOUNTS[decoder.spec]} == {3, 2, 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("editing") / "tiny"
    checkpoint_folders.make(path)
    return path


def test_stop_strings_and_streams_keep_the_text(folder):
    sampler = Sampler(load(folder), CONFIG)
    plain = sampler.undrafted()
    whole = plain(QUESTION)
    assert sampler(QUESTION) == whole
    assert "".join(sampler.stream(QUESTION)) == whole.text
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 2]
    cut = plain(QUESTION, stop=stop)
    assert sampler(QUESTION, stop=stop) == cut
    assert cut.text == cut_at_stop(whole.text, (stop,)) != whole.text
    stream = sampler.stream(QUESTION, stop=stop)
    assert "".join(stream) == cut.text and stream.calls < whole.nfe.total


def test_samples_of_the_command_line_keep_the_text(run, folder):
    """Answers that the best is chosen of; they share a prompt's evaluation."""
    words = ("generate", QUESTION, "--model", folder, "--policy", "llada2_s")
    words += ("--max-new-tokens", 16, "--temperature", 0.7, "--samples", 3, "--json")
    rows = []
    for options in (("--draft-steps", 4), ("--method", "static")):
        code, out, err = run(*words, *options)
        assert code == 0, err
        # Only a line feed ends a line: texts hold U+2028 and its like as they are.
        rows.append([json.loads(line) for line in out.split("\n") if line])
    drafted, plain = ([row["token_ids"] for row in part] for part in rows)
    assert drafted == plain and len(drafted) == 3

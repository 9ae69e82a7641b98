"""Drafts at the command line: trees, copies, draft texts, and what is refused."""

import json

import pytest

ASK = "Tom has 2 pens. He buys 3 more pens. How many pens does Tom have now?"
ROOM = ("--max-new-tokens", 24, "--json")


def test_draft_texts_save_calls_and_change_no_word(run, tmp_path):
    code, out, _ = run("generate", ASK, *ROOM, "--draft", "nested")
    assert code == 0
    plain = json.loads(out)
    lines = [
        {"prompt": ASK, "draft_text": text}
        for text in (plain["text"], "no such thing", "")
    ]
    file = tmp_path / "asked.jsonl"
    file.write_text("\n".join(map(json.dumps, [*lines, {"prompt": ASK}])))
    code, out, _ = run("generate", *ROOM, "--prompts", file, "--draft", "copy")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(found) == 4
    assert {one["text"] for one in found} == {plain["text"]}
    assert found[0]["nfe"]["total"] <= found[3]["nfe"]["total"]
    code, out, _ = run("generate", ASK, *ROOM, "--draft-text", plain["text"])
    assert code == 0 and json.loads(out)["token_ids"] == plain["token_ids"]


@pytest.mark.parametrize(
    ("line", "words", "says"),
    [
        ({"prompt": ASK, "draft_text": 3}, (), "draft_text=3 must be a text"),
        ({"prompt": ASK}, ("--draft-text", "5"), "--draft-text is for one prompt"),
        ({"prompt": ASK}, ("--draft", "forest"), "draft='forest' is unknown"),
    ],
)
def test_bad_draft_texts_are_one_line(run, tmp_path, line, words, says):
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps(line))
    code, out, err = run("generate", "--prompts", file, *words)
    assert (code, out) == (2, "") and says in err
    assert err.count("\n") == 1 and "Traceback" not in err

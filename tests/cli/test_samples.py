"""`generate --samples`: which answers they are, and what is said of them where."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import checkpoint_folders
from hypothesis import given
from hypothesis import strategies as st

import jaxdave
from jaxdave import policies
from jaxdave.engine.prompt_batches import EncodedPrompt
from jaxdave.engine.samples import (
    MAX_PROMPTS,
    MAX_SAMPLES,
    SampleConfig,
    number_of,
    request_of,
)

QUESTIONS = (
    "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?",
    "Tom has 9 books. He gives away 2. How many books does Tom have now?",
)
DRAWN = ("--temperature", "0.7", "--seed", "5", "--max-new-tokens", "8")
DRAWN += ("--draft-steps", "2", "--record-steps")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("samples") / "tiny"
    checkpoint_folders.make(path)
    return str(path)


@pytest.fixture
def prompts(tmp_path):
    """Two prompts, in lines 0 and 2."""
    file = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"prompt": question}) for question in QUESTIONS]
    file.write_text("\n\n".join(lines))
    return file


def read(text: str) -> list[dict[str, Any]]:
    # Only a line feed ends a line: texts hold U+2028 and its like as they are.
    return [json.loads(line) for line in text.split("\n") if line]


@given(st.integers(0, MAX_PROMPTS - 1), st.integers(0, MAX_SAMPLES - 1))
def test_every_answer_has_a_number_of_its_own(index, sample):
    request = request_of(index, sample)
    assert 0 <= request < 2**32 and number_of(request) == (index, sample)


def test_more_samples_leave_the_first_ones_as_they_are():
    prompts = [EncodedPrompt(request=n, ids=[n + 1]) for n in (0, 3)]
    few, many = (
        [(one.request, one.ids) for one in SampleConfig(count=n).expand(prompts)]
        for n in (2, 5)
    )
    assert few == many[0:2] + many[5:7]
    assert [few[0], few[2]] == [(0, [1]), (3, [4])]  # as without samples
    assert SampleConfig().expand(prompts) == prompts


@pytest.mark.parametrize(
    ("rows", "done", "left"),
    [
        (4, {0, request_of(0, 1)}, [0, 1]),  # the second prompt has no answer
        (8, {0}, [0, 1]),
        (2, {0, request_of(0, 1), request_of(1, 2)}, [0, 1]),
        (1, {0, request_of(0, 2)}, [0, 1]),
    ],
)
def test_what_is_left_comes_in_whole_groups(rows, done, left):
    samples = SampleConfig(count=4, batch_size=rows)
    prompts = samples.expand([EncodedPrompt(request=n, ids=[n + 1]) for n in left])
    rest = samples.unfinished(prompts, done)
    missing = {one.request for one in prompts} - done
    assert missing <= {one.request for one in rest}
    size = samples.group_size
    for at in range(0, len(rest), size):
        group = rest[at : at + size]
        assert len({one.ids[0] for one in group}) == 1
        assert missing & {one.request for one in group}


def test_answers_are_those_of_their_requests_alone(run, model, prompts):
    """Together and in parts the same, and each as in Python."""
    words = ("generate", "--prompts", prompts, "--model", model, *DRAWN, "--json")
    found = {}
    for rows in (4, 2):
        more = () if rows == 4 else ("--batch-size", rows)
        code, out, _ = run(*words, "--samples", 4, *more)
        assert code == 0
        found[rows] = read(out)
        assert {row["batch_rows"] for row in found[rows]} == {rows}
    names = ("index", "sample", "request", "text", "token_ids", "steps")
    traced = ("positions", "token_ids", "steps")
    facts = [
        [
            [row[name] for name in names] + [row["trajectory"][name] for name in traced]
            for row in rows
        ]
        for rows in found.values()
    ]
    assert facts[0] == facts[1] and all(row[-1] for row in facts[0])
    numbers = [(row["index"], row["sample"]) for row in found[4]]
    assert numbers == [(index, sample) for index in (0, 2) for sample in range(4)]
    assert len({row["text"] for row in found[4]}) > 2

    config = jaxdave.DecodeConfig(
        temperature=0.7, seed=5, max_new_tokens=8, draft_steps=2, record_steps=True
    )
    sampler = jaxdave.Sampler(jaxdave.load(model), config)
    for row in found[4]:
        question = QUESTIONS[row["index"] // 2]
        assert sampler(question, request=row["request"]).text == row["text"]
    # Sample 0 is the answer without samples, whose record says nothing of them.
    plain = read(run(*words)[1])
    assert [row["text"] for row in plain] == [found[4][n]["text"] for n in (0, 4)]
    assert all("sample" not in row and "request" not in row for row in plain)


def test_texts_say_whose_they_are(run, model, prompts):
    """With stop strings."""
    words = (*DRAWN, "--samples", 2, "--stop", "e", "--model", model)
    answers = {}
    for name, more in {
        "one": (QUESTIONS[0],),
        "many": ("--prompts", prompts),
        "json": ("--prompts", prompts, "--json"),
    }.items():
        code, answers[name], _ = run("generate", *more, *words)
        assert code == 0
    rows = read(answers["json"])
    titles = ["[0.0] ", "[0.1] ", "[2.0] ", "[2.1] "]
    texts = zip(titles, rows, strict=True)
    assert answers["many"] == "".join(f"{one}{row['text']}\n" for one, row in texts)
    texts = zip(("[0] ", "[1] "), rows[:2], strict=True)
    assert answers["one"] == "".join(f"{one}{row['text']}\n" for one, row in texts)


def test_a_half_written_file_is_gone_on_with(
    run, model, prompts, tmp_path, monkeypatch
):
    """Its last answer was cut off: the whole group of it is decoded again."""
    from jaxdave.engine.sampler import Sampler

    out, whole = tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    words = ("generate", "--prompts", prompts, "--model", model, *DRAWN)
    words += ("--samples", 4, "--batch-size", 2)
    assert run(*words, "--output", whole)[0] == 0

    batch, sizes = Sampler.batch, []

    def fails_at_third(self, prompts, **rest):
        sizes.append((len(prompts), rest["group_size"]))
        if len(sizes) == 3:
            raise OSError(28, "No space left on device")
        return batch(self, prompts, **rest)

    monkeypatch.setattr(Sampler, "batch", fails_at_third)
    words += ("--output", out)
    code, _, err = run(*words)
    assert code == 2 and err.count("\n") == 1 and not out.exists()
    part = tmp_path / "answers.jsonl.part"
    part.write_bytes(b"\n".join(part.read_bytes().split(b"\n")[:4]) + b'\n{"index": 0,')
    code, _, err = run(*words, "--resume", "--samples", 8)
    assert code == 2 and "is of a run with settings=" in err
    code, _, err = run(*words, "--resume")
    assert code == 0 and "8 answers (3 of an earlier run)" in err
    assert sizes == [(2, 2)] * 6
    rows, expected = read(out.read_text("utf-8")), read(whole.read_text("utf-8"))
    names = ("index", "sample", "request", "text", "token_ids")
    assert [[row[n] for n in names] for row in rows] == [
        [row[n] for n in names] for row in expected
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--samples", 0), "samples=0 must be in 1..4096"),
        (("--samples", -2), "samples=-2 must be in 1..4096"),
        (("--samples", 5000), "samples=5000 must be in 1..4096"),
        (("--samples", "few"), "--samples"),
        (("--samples", 4), "samples=4 at temperature 0 would all be the same answer"),
        (("--samples", 4, "--policy", "entropy"), "samples=4 at temperature 0"),
        (
            (*DRAWN, "--samples", 4, "--batch-size", 3),
            "batch_size=3 must be a multiple of samples=4, or divide it; try 4",
        ),
        ((*DRAWN, "--samples", 4, "--batch-size", 6), "batch_size=6 must be a mult"),
        ((*DRAWN, "--samples", 4, "--batch-size", 0), "batch_size=0 must be at least"),
    ],
)
def test_bad_values_are_one_line(run, options, message):
    code, out, err = run("generate", QUESTIONS[0], *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_line_too_far_down_is_refused():
    prompts = [EncodedPrompt(request=n, ids=[1]) for n in (0, MAX_PROMPTS)]
    with pytest.raises(ValueError, match=f"in line {MAX_PROMPTS + 1}; split the file"):
        SampleConfig(count=2).expand(prompts)


@pytest.mark.parametrize(
    ("policy", "draws"),
    [
        ("static", False),
        ("entropy", False),
        ("entropy:alg_temp=0.5", True),
        ("random", True),
        ("random:small_blocks=4", True),
        ("origin", True),
        ("first_hitting", True),
        ("info_gain", True),
    ],
)
def test_what_draws_may_be_sampled_at_temperature_0(policy, draws):
    rule = policies.parse(policy)
    assert rule.draws == draws
    spec: Any = SimpleNamespace(policy=rule, sampling=SimpleNamespace(temperature=0.0))
    SampleConfig(count=1).check(spec)
    if draws:
        return SampleConfig(count=2).check(spec)
    with pytest.raises(ValueError, match="add --temperature 1"):
        SampleConfig(count=2).check(spec)

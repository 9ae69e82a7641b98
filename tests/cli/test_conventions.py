"""What people expect of a command line: short options, pipes, files, completion."""

import io
import json
import os
import subprocess
import sys

import pytest

import jaxdave
from jaxdave.cli import listing
from jaxdave.cli.listing import Entry, format_entries
from jaxdave.policies import registry

PROMPT = "Mia has 3 pens. She buys 4 more pens. How many pens does Mia have now?"
ANSWER = "3+4=7\n#### 7"
SHORT = ("--max-new-tokens", "16")


class Stdin:
    """A standard input that is not a terminal."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)

    def isatty(self) -> bool:
        return False


@pytest.fixture
def pipe(monkeypatch):
    """Pipe bytes into the command."""
    return lambda content: monkeypatch.setattr("sys.stdin", Stdin(content))


def test_short_options(run):
    assert run("-V") == run("--version")
    assert run("-h")[1] == run("--help")[1]
    assert run("generate", "-h")[1] == run("generate", "--help")[1] != ""


def test_python_m():
    for module, name in (("jaxdave", "jaxdave"), ("jaxdave_convert.cli", None)):
        command = [sys.executable, "-m", module, "--version"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert out == f"{name or 'jaxdave-convert'} {jaxdave.__version__}\n"


def test_completion_is_offered(run):
    assert "--install-completion" in run("--help")[1]
    env = {**os.environ, "_JAXDAVE_COMPLETE": "complete_bash"}
    env |= {"COMP_WORDS": "jaxdave gen", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "jaxdave"]
    out = subprocess.run(command, capture_output=True, text=True, env=env).stdout
    assert out.split() == ["generate"]


@pytest.mark.parametrize(
    ("words", "suggestion"),
    [
        (("generate", "x", "--max-new-tokns", "4"), "--max-new-tokens"),
        (("genrate", "x"), "generate"),
    ],
)
def test_misspelt_words(run, words, suggestion):
    code, _, err = run(*words)
    assert code == 2 and suggestion in err and err.count("\n") == 1


def test_a_prompt_from_a_pipe(run, pipe):
    for words in (("-",), ()):
        pipe(f"{PROMPT}\n".encode())
        assert run("generate", *words, *SHORT)[:2] == (0, f"{ANSWER}\n")


def test_prompts_from_a_pipe(run, pipe):
    pipe(f"{json.dumps({'prompt': PROMPT})}\n\n".encode())
    assert run("generate", "--prompts", "-", *SHORT)[:2] == (0, f"{ANSWER}\n")


@pytest.mark.parametrize("words", [("-",), (), ("--prompts", "-")])
@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe"])
def test_nothing_to_read(run, pipe, words, content):
    pipe(content)
    code, out, err = run("generate", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_closed_standard_input(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    for words in ((), ("-",), ("--prompts", "-")):
        code, out, err = run("generate", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.fixture
def prompts(tmp_path):
    """A file of three prompts."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(f"{json.dumps({'prompt': PROMPT})}\n" * 3, encoding="utf-8")
    return file


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_output_is_the_json(run, prompts, tmp_path):
    out = tmp_path / "answers.jsonl"
    code, printed, err = run("generate", "--prompts", prompts, "--output", out, *SHORT)
    assert (code, printed) == (0, "") and "3 answers in" in err
    rows = read(out)
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert {row["text"] for row in rows} == {ANSWER}
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name, prompts.name]
    # What is complete is not decoded again.
    again = run("generate", "--prompts", prompts, "--output", out, "--resume", *SHORT)
    assert again[0] == 0 and "is complete" in again[1]


def test_an_unfinished_output_is_resumed(run, prompts, tmp_path, monkeypatch):
    from jaxdave.engine.sampler import Sampler

    out, batch, calls = tmp_path / "answers.jsonl", Sampler.batch, []

    def fails_at_second(self, prompts, **rest):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return batch(self, prompts, **rest)

    words = ("generate", "--prompts", prompts, "--output", out, *SHORT)
    monkeypatch.setattr(Sampler, "batch", fails_at_second)
    code, _, err = run(*words)
    assert code == 2 and err.count("\n") == 1 and not out.exists()
    part = tmp_path / "answers.jsonl.part"
    assert len(read(part)) == 2  # its header, and an answer
    # A line that was torn is decoded again; other settings are refused.
    part.write_bytes(part.read_bytes() + b'{"index": 1, "te')
    assert "--resume" in run(*words)[2]
    code, _, err = run(*words, "--resume", "--seed", "3")
    assert code == 2 and "is of a run with settings=" in err
    code, _, err = run(*words, "--resume")
    assert code == 0 and "3 answers (1 of an earlier run)" in err
    assert [row["index"] for row in read(out)] == [0, 1, 2] and not part.exists()
    assert calls == [1, 1, 1, 1]


def test_a_prompt_ends_before_its_own_stop_string(run, prompts, tmp_path):
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    stop = ANSWER[2:4]
    lines[1]["stop"] = stop
    stopped = tmp_path / "stopped.jsonl"
    stopped.write_text("\n".join(map(json.dumps, lines)))
    code, out, _ = run(
        "generate", "--prompts", stopped, "--batch-size", 3, *SHORT, "--json"
    )
    texts = [json.loads(line)["text"] for line in out.splitlines()]
    assert code == 0 and texts == [ANSWER, ANSWER[: ANSWER.index(stop)], ANSWER]


def test_a_disk_that_is_full(run, prompts, tmp_path, monkeypatch):
    from jaxdave.runtime import journal

    written = []

    def full_at_third(descriptor):
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    out = tmp_path / "answers.jsonl"
    words = ("generate", "--prompts", prompts, "--output", out, *SHORT)
    monkeypatch.setattr(journal.os, "fsync", full_at_third)
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (2, 1) and not out.exists()
    assert "answers.jsonl.part cannot be written (No space left on device)" in err
    assert "make room and resume" in err
    assert run(*words, "--resume")[0] == 0 and len(read(out)) == 3


@pytest.mark.parametrize(
    ("target", "message"),
    [("", "is a folder"), ("none/a.jsonl", "is in no folder"), ("p", "regular")],
)
def test_bad_targets(run, prompts, tmp_path, target, message):
    os.mkfifo(tmp_path / "p")
    before = sorted(tmp_path.rglob("*"))
    words = ("generate", "--prompts", prompts, "--output", tmp_path / target)
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err
    assert sorted(tmp_path.rglob("*")) == before


def test_resume_needs_a_file(run):
    code, _, err = run("generate", "x", "--resume")
    assert code == 2 and "--output" in err


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_policies_fit_the_terminal(width):
    entries = [
        Entry(e.name, ",".join(f"{k}={v}" for k, v in e.parameters.items()), e.summary)
        for e in registry.listing()
    ]
    lines = format_entries(entries, width)
    assert max(map(len, lines)) <= max(width, listing.MIN_WIDTH)
    text = " ".join(" ".join(lines).split())
    # Nothing is cut, and no name is hidden.
    for entry in entries:
        assert f"{entry.name} " in text and entry.summary in text
        assert entry.parameters.replace(",", ", ") in text


def test_policies_in_a_pipe(run):
    code, out, _ = run("policies")
    rows = [line.split("\t") for line in out.split("\n\n")[0].splitlines()]
    assert code == 0 and len(rows) == len(registry.listing())
    assert ["threshold", "threshold=0.9"] in [row[:2] for row in rows]

"""Two real processes of four devices each: same texts as one, one of them writes."""

import json
import pathlib
import time

import pytest
from helpers import checkpoint_folders
from helpers.real_processes import free_port, together

COUNT = 200
"""Prompts of a run that is interrupted, of which most are still to be answered then."""
SETTINGS = ("--max-new-tokens", "16", "--temperature", "0.7", "--seed", "5")
SETTINGS += ("--draft-steps", "4", "--batch-size", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("distributed") / "tiny"
    checkpoint_folders.make(path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> pathlib.Path:
    """One for all processes of these tests: they load and store the same programs."""
    return tmp_path_factory.mktemp("cache")


def write_prompts(file: pathlib.Path, count: int) -> pathlib.Path:
    lines: list[dict] = [{"prompt_ids": [n + 1, 5, 2]} for n in range(count)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def read(file: pathlib.Path) -> list[dict]:
    # Only a line feed ends a line: texts hold U+2028 and its like as they are.
    return [json.loads(line) for line in file.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def alone(model, cache, tmp_path_factory) -> list[dict]:
    """What one process answers to the first of all prompts."""
    folder = tmp_path_factory.mktemp("alone")
    prompts, out = write_prompts(folder / "prompts.jsonl", 7), folder / "out.jsonl"
    words = ("generate", "--model", model, "--prompts", prompts, *SETTINGS)
    ((code, _, err),) = together(cache, (*words, "--output", out))
    assert code == 0, err
    rows = read(out)
    assert len({row["text"] for row in rows}) > 1
    return rows


def facts_of(rows: list[dict], *names: str) -> list[list]:
    return [[row[name] for name in ("index", "text", *names)] for row in rows]


def test_generate(model, cache, alone, tmp_path):
    """The second run finds some answers there and has fewer batches than processes."""
    prompts, two = write_prompts(tmp_path / "prompts.jsonl", 7), tmp_path / "two.jsonl"
    words = ("generate", "--model", model, "--prompts", prompts, *SETTINGS)
    shared = (*words, "--output", two)
    first, second = together(cache, shared, shared)
    assert first[:2] == (0, "") and "7 answers in" in first[2], first
    assert first[2].count("\n") == 1 and second == (0, "", "")
    names = ("token_ids", "finish_reason", "nfe")
    assert facts_of(read(two), *names) == facts_of(alone, *names)
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", "two.jsonl"}


@pytest.mark.slow
def test_a_mesh_in_each_process(model, cache, alone, tmp_path):
    """Each process has a mesh of its own four devices."""
    prompts, out = write_prompts(tmp_path / "prompts.jsonl", 5), tmp_path / "out.jsonl"
    words = ("generate", "--model", model, "--prompts", prompts, *SETTINGS)
    words += ("--mesh", "data=2,model=2", "--output", out)
    first, second = together(cache, words, words)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert facts_of(read(out), "token_ids") == facts_of(alone[:5], "token_ids")


@pytest.mark.slow
def test_a_model_on_the_devices_of_both(model, cache, tmp_path):
    """Both run every batch, and exchange parts of every layer."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", 5)
    words = ("generate", "--model", model, "--prompts", prompts, *SETTINGS)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert together(cache, (*words, "--output", one))[0][0] == 0
    shared = (*words, "--output", two, "--mesh", "model=8")
    first, second = together(cache, shared, shared)
    assert (first[:2], second) == ((0, ""), (0, "", "")), (first, second)
    names = ("index", "text", "token_ids", "finish_reason")
    expected = [[row[name] for name in names] for row in read(one)]
    assert [[row[name] for name in names] for row in read(two)] == expected
    assert len({row["text"] for row in read(two)}) > 1


def test_a_process_is_killed(model, cache, tmp_path):
    """The other one ends soon, with one line, and the answers so far are kept."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", COUNT)
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    words = ("generate", "--model", model, "--prompts", prompts, "--output", out)
    words += (*SETTINGS, "--method", "static")

    def kill_second(processes):
        while not part.exists() or part.read_bytes().count(b"\n") < 12:
            assert processes[0].poll() is None
            time.sleep(0.02)
        processes[1].kill()

    first, second = together(cache, words, words, meanwhile=kill_second)
    assert (first[:2], second[0]) == ((2, ""), -9), first
    assert "another process has gone" in first[2] and first[2].count("\n") == 1
    assert not out.exists() and 12 <= len(read(part)) < COUNT
    first, second = together(cache, *[(*words, "--resume")] * 2)
    assert (first[0], second) == (0, (0, "", "")), first
    assert [row["index"] for row in read(out)] == list(range(COUNT))


@pytest.mark.slow  # as threads: test_rounds
def test_more_processes_than_prompts(model, cache, tmp_path):
    prompts = write_prompts(tmp_path / "prompts.jsonl", 1)
    out = tmp_path / "out.jsonl"
    words = ("generate", "--model", model, "--prompts", prompts, "--output", out)
    first, second = together(cache, *[(*words, *SETTINGS)] * 2)
    assert (first[0], second) == (0, (0, "", "")), first
    assert [row["index"] for row in read(out)] == [0]


def test_bad_input_of_one_process_ends_both(model, cache, tmp_path):
    """The first says what is wrong, also if it is the second's file that is missing."""
    prompts, out = write_prompts(tmp_path / "p.jsonl", 3), tmp_path / "out.jsonl"
    words = ("generate", "--model", model, *SETTINGS, "--output", out, "--prompts")
    missing = tmp_path / "none.jsonl"
    first, second = together(cache, (*words, prompts), (*words, missing))
    assert (first[:2], second) == ((2, ""), (2, "", "")), (first, second)
    assert first[2].count("\n") == 1 and f"{missing} cannot be read" in first[2]
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_eval(model, cache, tmp_path):
    words = ("eval", "--model", model, "--limit", 3, "--tasks", "demo-math")
    words += ("--methods", "static", "--max-new-tokens", 16, "--out")
    one, two = tmp_path / "one", tmp_path / "two"
    (alone,) = together(cache, (*words, one))
    first, second = together(cache, (*words, two), (*words, two))
    assert (alone[0], first[0], second) == (0, 0, (0, "", "")), (first, second)
    assert first[1].count("Table 1") == 1
    names = [path.name for path in sorted(one.iterdir())]
    assert [path.name for path in sorted(two.iterdir())] == names
    (name,) = (name for name in names if name.endswith(".jsonl"))
    header, *records = read(one / name)
    other_header, *others = read(two / name)
    assert header == other_header
    assert facts(records) == facts(others) and len(others) == 3


@pytest.mark.slow
def test_eval_with_rows_on_the_devices_of_both(model, cache, tmp_path):
    words = ("eval", "--model", model, "--limit", 3, "--tasks", "demo-math")
    words += ("--methods", "static", "--max-new-tokens", 16, "--batch-size", 3)
    words += ("--mesh", "data=2,model=4", "--out")
    one, two = tmp_path / "one", tmp_path / "two"
    (alone,) = together(cache, (*words[:-3], "--out", one))
    first, second = together(cache, (*words, two), (*words, two))
    assert (alone[0], first[0], second) == (0, 0, (0, "", "")), (first, second)
    assert first[1].count("Table 1") == 1
    (name,) = (path.name for path in one.iterdir() if path.suffix == ".jsonl")
    records, others = read(one / name)[1:], read(two / name)[1:]
    assert facts(records) == facts(others) and len(others) == 3


def facts(rows):
    """What records say that does not depend on the clock, in one order."""
    times = ("seconds", "compile_seconds", "memory")
    rows = [{k: v for k, v in row.items() if k not in times} for row in rows]
    return sorted(rows, key=lambda row: row["id"])


@pytest.mark.parametrize("index", [0, 1])
def test_the_others_do_not_come(model, cache, tmp_path, index):
    """The coordinator waits for nobody for ever, and nobody for the coordinator."""
    prompts = write_prompts(tmp_path / "prompts.jsonl", 1)
    words = ("generate", "--model", model, "--prompts", prompts, "--output")
    words += (tmp_path / "out.jsonl", "--distributed", "--connect-seconds", 2)
    words += ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2)
    ((code, out, err),) = together(cache, (*words, "--process-id", index))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "cannot be reached, or not all processes have come, in 2 s" in err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--process-id", 1), "--process-id is for several processes; add --dist"),
        (("--distributed", "--process-id", 1), "go together; give all of them"),
        (
            ("--distributed", "--coordinator", "a:1", "--num-processes", 2)
            + ("--process-id", 2),
            "process_id=2 must be in 0..1",
        ),
        (
            ("--distributed", "--coordinator", "a", "--num-processes", 2)
            + ("--process-id", 1),
            "coordinator='a' must be HOST:PORT",
        ),
        (
            ("--distributed", "--coordinator", "a:1", "--num-processes", 0)
            + ("--process-id", 0),
            "num_processes=0 must be at least 1",
        ),
        (("--distributed", "--connect-seconds", 0), "connect_seconds=0 must be"),
        (("--distributed", "--ray", "local"), "--ray and --distributed exclude"),
    ],
)
def test_bad_options(run, tmp_path, words, message):
    prompts = write_prompts(tmp_path / "prompts.jsonl", 1)
    files = ("--prompts", prompts, "--output", tmp_path / "out.jsonl")
    code, out, err = run("generate", *files, *words)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_files_are_needed(run):
    code, _, err = run("generate", "x", "--distributed")
    assert code == 2 and "--distributed decodes a file into another; add" in err

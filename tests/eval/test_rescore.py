"""`jaxdave eval --rescore` with bad input: one line, exit code 2, nothing written."""

import json

import pytest
from helpers import eval_runs

from jaxdave.eval.benchmarks import demo
from jaxdave.eval.run import records

HEADER = {
    "format": records.FORMAT, "task": "demo-math", "preset": "demo", "model": "tiny",
    "as_published": False, "row": "static", "weights": "w", "method": "static",
    "draft_steps": 1, "tokens_per_step": 1, "threshold": None, "policy": None,
    "dtype": "float32", "numerics": "guarded", "batch_size": 1,
}  # fmt: skip
IDS = ("demo-math-0", "demo-math-2", "demo-math-1")
GOLDS = {item.id: item.gold for item in demo.TASKS["demo-math"].items(None)[:3]}


def samples(ids=IDS, **changes) -> bytes:
    """A file whose answers are right, though their records say otherwise."""
    found = [
        eval_runs.record(id, text=GOLDS.get(id, ""), right=False, extracted="?")
        for id in ids
    ]
    return records.file_content({**HEADER, **changes}, found)


@pytest.fixture
def folder(tmp_path):
    """A run of two methods."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "tiny.demo-math.static.jsonl").write_bytes(samples())
    fast = samples(row="freedave", method="freedave", draft_steps=8)
    (out / "tiny.demo-math.freedave.d8.jsonl").write_bytes(fast)
    return out


def test_samples_are_graded_and_told_in_the_usual_order(run, folder, tmp_path):
    code, out, err = run("eval", "--rescore", folder, "--out", tmp_path / "new")
    assert code == 0, err
    report = json.loads((tmp_path / "new" / "results.json").read_text())
    assert [cell["method"] for cell in report["cells"]] == ["static", "freedave"]
    assert [cell["right"] for cell in report["cells"]] == [3, 3]
    assert report["preset"] == "demo" and report["sweep"] is None
    assert out == (tmp_path / "new" / "results.md").read_text()
    # The order of a report that is there goes before that of the names.
    report["cells"].reverse()
    (folder / "results.json").write_text(json.dumps(report))
    _, out, _ = run("eval", "--rescore", folder)
    assert out.index("| FreeDave d=8 |") < out.index("| static |")


def cut(content: bytes) -> bytes:
    return content[:-9]


def broken(content: bytes) -> bytes:
    return content.replace(b'"nfe": {', b'"nfe": {{', 1)


def without(name: str):
    def change(content: bytes) -> bytes:
        lines = [json.loads(line) for line in content.splitlines()]
        del lines[1][name]
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    return change


def with_value(name: str, value):
    def change(content: bytes) -> bytes:
        lines = [json.loads(line) for line in content.splitlines()]
        lines[1][name] = value
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, "was cut off in its last line"),
        (broken, "line 2: broken JSON"),
        (lambda _: b"", "is no file of samples of format"),
        (lambda _: b"\x00\xff\n", "line 1: broken JSON"),
        (lambda _: b'{"a": 1}\n', "is no file of samples of format"),
        (lambda _: samples(format=2), "its format is 2"),
        (lambda _: samples(task="gsm9k"), "task 'gsm9k' is unknown"),
        (lambda _: samples(task=["x"]), "is none of an evaluation"),
        (lambda _: samples(row="magic"), "is none of an evaluation"),
        (lambda _: samples(draft_steps="x"), "is none of an evaluation"),
        (lambda _: samples(task="demo-code"), "is none of task demo-code"),
        (lambda _: samples(task="mbpp", preset="sdar"), "say --allow-code-execution"),
        (lambda _: samples(("other-1",)), "which is none of task demo-math"),
        (lambda _: samples(IDS + IDS[:1]), "has item 'demo-math-0' twice"),
        (lambda _: samples(()), "has no item"),
        (lambda _: samples(IDS[:2]), "let the run end first"),
        (lambda _: samples(model="other"), "is of a run with model="),
        (without("text"), "line 2: it is no record of an item (text)"),
        (with_value("text", 7), "line 2: it is no record of an item (text)"),
        (with_value("more", 7), "line 2: it is no record of an item (more)"),
        (with_value("nfe", {"total": 1}), "it is no record of an item (nfe)"),
        (with_value("token_ids", ["a"]), "it is no record of an item (token_ids)"),
    ],
)
def test_bad_samples_are_one_line(run, folder, tmp_path, change, words):
    path = folder / "tiny.demo-math.static.jsonl"
    path.write_bytes(change(path.read_bytes()))
    code, printed, err = run("eval", "--rescore", folder, "--out", tmp_path / "new")
    assert (code, printed) == (2, "") and words in err, err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--tasks", "gsm8k"), "is of task demo-math, and --tasks names gsm8k"),
        (("--tasks", "gsm9k"), "task 'gsm9k' is unknown"),
        (("--model", "x"), "--model says what is decoded"),
        (("--dtype", "bfloat16"), "--dtype says what is decoded"),
        (("--methods", "static"), "--methods says what is decoded"),
        (("--preset", "sdar"), "--preset says what is decoded"),
        (("--limit", 2), "--limit says what is decoded"),
        (("--seed", 1), "--seed says what is decoded"),
        (("--draft-steps", 8), "--draft-steps says what is decoded"),
        (("--sweep", "draft_steps"), "--sweep says what is decoded"),
        (("--trajectory", "x"), "trajectory"),
    ],
)
def test_options_of_a_decode_are_refused(run, folder, tmp_path, more, words):
    options = ("--rescore", folder, "--out", tmp_path / "new", *more)
    code, printed, err = run("eval", *options)
    assert (code, printed) == (2, "") and words in err, err
    assert err.count("\n") == 1 and not (tmp_path / "new").exists()


def test_nothing_else_is_written_over(run, folder, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    mine = new / "tiny.demo-math.static.jsonl"
    for content in (b"mine", samples(IDS[:2]), samples(seed=1)):
        mine.write_bytes(content)
        code, _, err = run("eval", "--rescore", folder, "--out", new)
        assert code == 2 and err.count("\n") == 1 and mine.name in err
        assert mine.read_bytes() == content and [*new.iterdir()] == [mine]
    mine.write_bytes(samples())
    assert run("eval", "--rescore", folder, "--out", new)[0] == 0
    assert mine.read_bytes() != samples()


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_place_without_samples_is_one_line(run, tmp_path, name):
    (tmp_path / "empty").mkdir()
    code, out, err = run("eval", "--rescore", tmp_path / name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "earlier run" in err

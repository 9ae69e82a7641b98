"""`jaxdave eval` from end to end, on a tiny random model and on the packaged demo."""

import collections
import contextlib
import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import checkpoint_folders, compiling

from jaxdave.cli.console import run_app
from jaxdave.cli.main import app
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import make_decoder
from jaxdave.engine.generation import generate
from jaxdave.eval.benchmarks import demo
from jaxdave.eval.report import report
from jaxdave.eval.run import runner
from jaxdave.grading.types import Verdict
from jaxdave.io import checkpoint
from jaxdave.runtime.compilation import clear_executables
from jaxdave.runtime.files import NO_CACHE

DATA = Path(__file__).parents[3] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(
    not DATA.is_dir(), reason="needs the benchmark files in ../shared/data"
)
LIMIT = 6
ROOM = 8
SMALL = ("--limit", LIMIT, "--batch-size", 2, "--draft-steps", 2)
SMALL += ("--max-new-tokens", ROOM, "--tasks", "demo-math")
BOTH = ("--methods", "static,freedave")
# Dies by SIGKILL when a text is graded for the fifth time: 2 of 3 batches are done.
DIES = """
import os, signal, sys
from types import MappingProxyType
from jaxdave.eval.benchmarks import demo
task, graded = demo.TASKS["demo-math"], []
def grade(items, texts):
    graded.extend(texts)
    if len(graded) > 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return task.grade(items, texts)
demo.TASKS = MappingProxyType({"demo-math": task._replace(grade=grade)})
from jaxdave.runtime import compilation
compilation.EXTRA_OPTIONS = OPTIONS
from jaxdave.cli.main import main
main(sys.argv[1:])
""".replace("= OPTIONS", f"= {compiling.OPTIONS}")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("eval") / "tiny"
    checkpoint_folders.make(path)
    return str(path)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> Path:
    """A cache of this module's own: its programs are compiled with less care."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def quickly(shared_cache):
    """Compiling is what these tests would take; so it is done once, and in haste."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            patch.delenv(NO_CACHE, raising=False)
            patch.setenv("XDG_CACHE_HOME", str(shared_cache))
        # So that a process of its own is as this one.
        patch.setenv("JAX_NUMPY_RANK_PROMOTION", "raise")
        patch.setenv("JAX_NUMPY_DTYPE_PROMOTION", "strict")
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        with compiling.quickly():
            yield
        clear_executables()


def results(folder) -> dict:
    return report.reproducible_part(json.loads((folder / "results.json").read_text()))


def lines(folder) -> dict[str, int]:
    return {p.name: p.read_bytes().count(b"\n") for p in folder.glob("*.jsonl")}


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A folder with a finished run, and what it printed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    printed, errors = io.StringIO(), io.StringIO()
    command_line = ["eval", "--model", model, *SMALL, *BOTH, "--out", out]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        assert run_app(app, "jaxdave", [*map(str, command_line)]) == 0
    return out, printed.getvalue(), errors.getvalue()


def test_a_killed_run_goes_on_to_the_same_results(
    run, model, finished, tmp_path, monkeypatch
):
    whole, cut = finished[0], tmp_path / "cut"
    command_line = ("eval", "--model", model, *SMALL, *BOTH)
    command = [sys.executable, "-c", DIES, *map(str, command_line), "--out", str(cut)]
    killed = subprocess.run(command, capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    # A header and the items of two batches of three, of both methods in turn.
    names = "tiny.demo-math.static.jsonl", "tiny.demo-math.freedave.d2.jsonl"
    assert lines(cut) == dict.fromkeys(names, 1 + 4)
    assert not (cut / "results.json").exists()
    torn = cut / names[0]
    before = torn.read_bytes()
    torn.write_bytes(before[:-9])  # and one item's line was not yet whole
    decoded = count_decoded(monkeypatch)
    assert run(*command_line, "--out", cut)[0] == 0
    assert decoded == {1: 3, 2: 2}
    assert results(cut) == results(whole)
    assert lines(cut) == lines(whole) == dict.fromkeys(names, 1 + LIMIT)
    assert torn.read_bytes().startswith(before[: before.rindex(b"\n", 0, -1)])


def count_decoded(monkeypatch) -> dict[int, int]:
    """How many items are decoded from now on, by drafts a call."""
    counts: dict[int, int] = collections.Counter()
    decode = runner.generate

    def counting(**arguments):
        counts[max(arguments["decoder"].spec.draft_steps)] += len(arguments["prompts"])
        return decode(**arguments)

    monkeypatch.setattr(runner, "generate", counting)
    return counts


def test_what_is_printed_is_what_is_kept(finished):
    out, printed, errors = finished
    assert printed == (out / "results.md").read_text()
    assert "| demo-math (6) | FreeDave d=2 |" in printed
    for title in ("static", "FreeDave d=2"):
        assert f"demo-math {title}: 6 items, 0.0 % right" in errors


def test_a_finished_run_decodes_nothing(run, model, finished, monkeypatch):
    out = finished[0]
    before = results(out)
    decoded = count_decoded(monkeypatch)
    assert run("eval", "--model", model, *SMALL, *BOTH, "--out", out)[0] == 0
    assert not decoded and results(out) == before


def test_numbers_are_those_of_the_decodes(model, finished):
    """Calls and tokens once more, by other means and in other batches."""
    cells = results(finished[0])["cells"]
    loaded = checkpoint.load(model)
    items = demo.TASKS["demo-math"].items(None)[:LIMIT]
    asked = DecodeConfig(draft_steps=2, max_new_tokens=ROOM)
    for cell, method in zip(cells, ("static", "freedave"), strict=True):
        settings = dataclasses.replace(asked, method=method)
        decoder = make_decoder(loaded.config, settings, tables=loaded.tables)
        prompts = [loaded.codec.encode_prompt(i.question) for i in reversed(items)]
        pairs = (prompts[:2], prompts[2:4], prompts[4:])
        rows = [
            r for p in pairs for r in generate(decoder, loaded.params, p).completions
        ]
        calls = sum(row.nfe.total for row in rows)
        tokens = sum(len(row.token_ids) for row in rows)
        assert cell["valid_tokens"] == tokens
        assert cell["nfe"]["total"] == calls == sum(cell["nfe"].values()) / 2
        assert cell["tokens_per_nfe"]["value"] == pytest.approx(tokens / calls)
        verified = sum(row.nfe.verify for row in rows)
        drafts = {"static": 1, "freedave": 2}[method]
        assert cell["rows"] == calls + verified * (drafts - 1)
        assert cell["decoded_tokens"] >= tokens and cell["right"] == 0
        assert cell["same_text"]["static"]["share"] == 1.0
    static, fast = cells
    assert static["steps"] == static["nfe"]["total"] > fast["nfe"]["total"]
    fewer = static["nfe"]["total"] / fast["nfe"]["total"]
    assert fast["tokens_per_nfe_gain"]["value"] == pytest.approx(fewer)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--seed", 1), "is of a run with seed=0, and this one has 1"),
        (("--batch-size", 3), "batch_size=2"),
        (("--max-new-tokens", 12), "max_new_tokens=8"),
        (("--numerics", "fast"), "numerics='guarded'"),
        (("--dtype", "bfloat16"), "dtype='float32'"),
    ],
)
def test_other_settings_refuse_and_change_nothing(run, model, finished, more, words):
    out = finished[0]
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    command_line = ("eval", "--model", model, *SMALL, *BOTH, "--out", out, *more)
    code, printed, err = run(*command_line)
    assert (code, printed) == (2, "") and words in err and err.count("\n") == 1
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_other_references_refuse(run, model, finished, monkeypatch):
    out = finished[0]
    task = demo.TASKS["demo-math"]

    def changed(data):
        return tuple(item._replace(gold="#### 0") for item in task.items(data))

    mine = {"demo-math": task._replace(items=changed)}
    monkeypatch.setattr(demo, "TASKS", mine)
    code, _, err = run("eval", "--model", model, *SMALL, *BOTH, "--out", out)
    assert code == 2 and "another prompt or reference" in err


@pytest.fixture
def no_model(monkeypatch):
    """A model that is loaded, or a prompt that is decoded, fails the test."""
    for name in ("jaxdave.io.checkpoint.load", "jaxdave.eval.run.runner.generate"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("needs a model"))


def test_rescored_samples_give_the_same_results(
    run, finished, tmp_path, monkeypatch, no_model
):
    out, printed, _ = finished
    code, again, err = run("eval", "--rescore", out, "--out", tmp_path / "new")
    assert code == 0, err
    assert results(tmp_path / "new") == results(out)
    for path in out.glob("*.jsonl"):
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()
    rows = [line for line in printed.splitlines() if line.startswith("| demo-math (6)")]
    assert all(row in again for row in rows)
    # In place, and one file of two.
    shutil.copytree(out, tmp_path / "copy")
    assert (
        run("eval", "--rescore", tmp_path / "copy", "--out", tmp_path / "copy")[0] == 0
    )
    assert results(tmp_path / "copy") == results(out)
    file = out / "tiny.demo-math.freedave.d2.jsonl"
    code, again, _ = run("eval", "--rescore", file, "--tasks", "demo-math")
    assert code == 0 and "FreeDave d=2" in again and "| static |" not in again


def test_another_grader_changes_the_results(
    run, finished, tmp_path, monkeypatch, no_model
):
    out = finished[0]
    task = demo.TASKS["demo-math"]

    def kinder(items, texts):
        rights = [item.id.endswith(("1", "4")) for item in items]
        return tuple(Verdict(right, "7", "" if right else "no") for right in rights)

    mine = {**demo.TASKS, "demo-math": task._replace(grade=kinder)}
    monkeypatch.setattr(demo, "TASKS", mine)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run("eval", "--rescore", out, "--out", tmp_path)[0] == 0
    old, new = results(out)["cells"], results(tmp_path)["cells"]
    assert [cell["right"] for cell in old] == [0, 0]
    assert [cell["right"] for cell in new] == [2, 2]
    for a, b in zip(old, new, strict=True):
        kept = {name: x for name, x in a.items() if name not in ("right", "accuracy")}
        assert kept.items() <= b.items()
    line = (tmp_path / "tiny.demo-math.static.jsonl").read_text().splitlines()[1]
    assert json.loads(line)["extracted"] == "7"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    # What was rescored can be resumed like any run: nothing is decoded.


def test_samples_and_report_have_the_counts_of_drafts(finished):
    out = finished[0]
    static, fast = results(out)["cells"]
    assert (static["proposed_drafts"], static["hit_rate"]) == (0, None)
    assert 0 < fast["accepted_drafts"] <= fast["proposed_drafts"]
    assert fast["hit_rate"] == fast["accepted_drafts"] / fast["proposed_drafts"]
    lines = (out / "tiny.demo-math.freedave.d2.jsonl").read_text().splitlines()[1:]
    samples = [json.loads(line) for line in lines]
    for name in ("proposed_drafts", "accepted_drafts"):
        assert sum(sample[name] for sample in samples) == fast[name]
    assert all(
        sample["steps"] <= sample["nfe"]["total"] + sample["accepted_drafts"]
        for sample in samples
    )


def test_sweep_and_trajectory_are_drawn(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxdave.eval.run.plan.SWEEP", (1, 2))
    options = ("--sweep", "draft_steps", "--trajectory", "demo-math-1")
    command_line = ("eval", "--model", model, *SMALL, *BOTH, *options, "--limit", 2)
    code, out, err = run(*command_line, "--out", tmp_path)
    assert code == 0, err
    assert "FreeDave d=1" in out and "FreeDave d=2" in out
    names = {p.name for p in tmp_path.iterdir()}
    stems = ("figure3", "trajectory-demo-math-1")
    pictures = {f"{stem}.{extension}" for stem in stems for extension in ("png", "svg")}
    rows = ("static", "freedave.d1", "freedave.d2")
    record_files = {f"tiny.demo-math.{row}.jsonl" for row in rows}
    assert names == pictures | record_files | {"figure3.json", "figure3.md"}
    before = {name: (tmp_path / name).read_bytes() for name in pictures}
    assert run(*command_line, "--out", tmp_path)[0] == 0
    assert {name: (tmp_path / name).read_bytes() for name in pictures} == before
    command_line = ("eval", "--rescore", tmp_path, "--trajectory", "demo-math-1")
    assert run(*command_line, "--out", tmp_path / "new")[0] == 0
    assert {p.name for p in (tmp_path / "new").iterdir()} == names
    values = [
        report.reproducible_part(json.loads((folder / "figure3.json").read_text()))
        for folder in (tmp_path, tmp_path / "new")
    ]
    assert values[0] == values[1]


@pytest.mark.slow
@NEEDS_DATA
def test_gsm8k_through_the_real_pipeline(run, model, tmp_path):
    benchmark = ("--tasks", "gsm8k", "--preset", "paper-2025", "--data-dir", DATA)
    small = ("--model", model, *SMALL, *BOTH, *benchmark)
    code, out, err = run("eval", *small, "--out", tmp_path)
    assert code == 0, err
    assert "| gsm8k (6) | static | 0.0 [" in out and "preset paper-2025" in out
    first = json.loads(
        (tmp_path / "tiny.gsm8k.static.jsonl").read_text().split("\n")[1]
    )
    assert first["id"].startswith("gsm8k/") and first["reason"]
    code, _, err = run("eval", *small, "--out", tmp_path, "--as-published")
    assert code == 2 and "as_published=False, and this one has True" in err

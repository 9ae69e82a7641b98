"""The benchmark command: scripted drafts, the roofline, findings, stored results."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import fake_model

from bench import __main__ as command
from bench import convert
from bench.harness import machine, scripted_drafts, stored_results
from bench.harness.measure import (
    DECODE_MEMORY,
    LOOP_EFFICIENCY,
    MEASURE_NAMES,
    SEQUENCE_SCALING,
    WALL_CLOCK_SPEEDUP,
    Plan,
    ResultsBook,
)
from bench.harness.models import BenchModel, random_config
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate

MAX_NEW_TOKENS = 16
PROMPT = [1, 2, 3, 4, 5]
LENGTH = fake_model.TINY.block_length
CHANGES = dict(vocab_rows=96, vocab_size=96, mask_id=90, pad_id=91, stop_ids=(92,))


def scripted_rows(acceptance: float, *caps: int):
    """Decodes of one compiled program, under several caps on its drafts."""
    config = dataclasses.replace(fake_model.TINY, **CHANGES)
    decoder = decoders.freedave(
        config,
        draft_steps=4,
        max_new_tokens=MAX_NEW_TOKENS,
        network=scripted_drafts.scripted_model(config, acceptance, "exact"),
    )
    params = fake_model.scaled(config, 0)
    return [
        generate(fake_model.capped(decoder, c), params, [PROMPT]).completions[0]
        for c in caps
    ]


def scripted_calls(acceptance: float, draft_steps: int) -> int:
    """Calls by the script of what `scripted_rows` decodes."""
    return scripted_drafts.scripted_calls(
        len(PROMPT), MAX_NEW_TOKENS, LENGTH, draft_steps, acceptance
    )


def test_a_script_decides_the_text_whatever_the_drafts():
    positions = np.arange(5, 5 + MAX_NEW_TOKENS, dtype=np.int32)
    text = tuple(int(t) for t in scripted_drafts.token_at(positions))
    for acceptance in (0.0, 1.0):
        for row in scripted_rows(acceptance, 1, 4):
            assert row.token_ids == text


def test_a_script_decides_how_many_calls_there_are():
    plain, drafted = scripted_rows(1.0, 1, 4)
    # The last block is decoded whole.
    count = -(-(len(PROMPT) + MAX_NEW_TOKENS) // LENGTH) * LENGTH - len(PROMPT)
    assert plain.nfe.total == count == scripted_calls(1.0, 1)
    expected = 1 + -(-(count - 1) // 4)
    assert drafted.nfe.total == expected == scripted_calls(1.0, 4)
    # Without steady positions a call commits one token, or two where a deeper draft has
    # evaluated the next state already.
    calls = scripted_rows(0.0, 4)[0].nfe.total
    assert count // 2 <= calls <= scripted_calls(0.0, 4) == count


def test_steady_positions_have_their_share():
    positions = np.arange(20_000, dtype=np.int32)
    for share in (0.0, 0.3, 0.8, 1.0):
        steady = scripted_drafts.is_steady(positions, share)
        assert abs(np.mean(steady) - share) < 0.02


def test_the_roofline_is_the_rate_that_binds():
    rates = machine.Rates(np.array([1e9, 2e9]), np.array([1e6, 1e6]))
    compute_bound, memory_bound = machine.Work(1e9, 1.0), machine.Work(1.0, 3e6)
    np.testing.assert_allclose(rates.min_seconds(compute_bound), [1.0, 0.5])
    np.testing.assert_allclose(rates.min_seconds(memory_bound), [3.0, 3.0])


@pytest.mark.parametrize(("size", "millions"), [("1M", 1), ("30M", 29), ("135M", 134)])
def test_random_models_have_their_size(size, millions):
    config = random_config(size)
    layers, head = machine.matrix_sizes(config)
    embedding = 0 if config.tie_embeddings else config.vocab_rows * config.hidden
    assert round((layers + head + embedding) / 1e6) == millions


def model_without_params(name: str) -> BenchModel:
    return BenchModel(
        name=name,
        config=fake_model.TINY,
        params=None,
        prompts=[],
        max_new_tokens=1,
        acceptance=0.5,
    )


def test_a_measure_that_fails_is_a_line_of_the_table(capsys):
    def broken(model, plan, book):
        raise RuntimeError("no such\nthing")

    book = ResultsBook()
    entry = command.MeasureEntry((SEQUENCE_SCALING,), ("1M",), broken)
    command.run_measure(entry, model_without_params("1M"), Plan(), book)
    (finding,) = book.findings
    assert finding.verdict == "missed"
    assert finding.found == "RuntimeError: no such"


def test_verdicts_follow_the_targets():
    book = ResultsBook()
    book.add_at_least(LOOP_EFFICIENCY, "m", "x", 0.9, 0.8)
    book.add_at_most(DECODE_MEMORY, "m", "x", 0.9, 0.8)
    book.add(WALL_CLOCK_SPEEDUP, "m", "x", 1.0)
    assert [f.verdict for f in book.findings] == ["met", "missed", "-"]


def test_every_measure_is_taken_and_explained():
    names = {name for entry in command.MEASURES for name in entry.names}
    assert names == set(MEASURE_NAMES)
    text = (command.RESULTS.parents[1] / "docs" / "results.md").read_text(
        encoding="utf-8"
    )
    assert all(f"| `{name}` |" in text for name in MEASURE_NAMES)


def test_stored_codes_are_read_under_the_present_names(capsys):
    findings = stored_results.read_findings(command.RESULTS)
    assert {finding.measure for finding in findings} == set(MEASURE_NAMES)
    command.main(["--show"])
    assert "loop-efficiency" in capsys.readouterr().out


WHOLE_RUN = json.dumps({"findings": [], "points": {}})


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A folder with the results of a whole run, and measures that cost nothing."""

    def add_finding(model, plan, book):
        book.add(LOOP_EFFICIENCY, model.label, "x", 1.0)

    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "bench.json").write_text(WHOLE_RUN)
    entries = [
        command.MeasureEntry((name,), ("demo", "1M"), add_finding)
        for name in (LOOP_EFFICIENCY, DECODE_MEMORY)
    ]
    monkeypatch.setattr(command, "MEASURES", entries)
    monkeypatch.setattr(command, "RESULTS", folder)
    monkeypatch.setattr(command, "default_sizes", lambda: ("demo", "1M"))
    monkeypatch.setattr(
        "bench.harness.models.bench_model", lambda size, _: model_without_params(size)
    )
    return folder


def num_stored(folder) -> int:
    """Findings of the finished run in a folder."""
    return len(json.loads((folder / "bench.json").read_text())["findings"])


@pytest.mark.parametrize(
    "options",
    [
        ["--only", "loop-efficiency"],
        ["--sizes", "1M"],
        ["--quick"],
        ["--rounds", "1"],
    ],
)
def test_a_partial_run_is_stored_only_where_out_says(
    results, tmp_path, capsys, options
):
    command.main(options)
    assert "| loop-efficiency |" in capsys.readouterr().out
    assert [path.name for path in results.iterdir()] == ["bench.json"]
    assert (results / "bench.json").read_text() == WHOLE_RUN
    command.main([*options, "--out", str(tmp_path / "elsewhere")])
    assert num_stored(tmp_path / "elsewhere") > 0
    assert (results / "bench.json").read_text() == WHOLE_RUN


def test_a_partial_run_cannot_replace_a_whole_one(results, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.main(["--quick", "--out", str(results)])
    assert exit_info.value.code == 2
    assert "keeps the results of whole runs" in capsys.readouterr().err
    assert (results / "bench.json").read_text() == WHOLE_RUN


def test_a_whole_run_replaces_the_results(results):
    command.main([])
    assert num_stored(results) == 4
    assert [path.name for path in results.iterdir()] == ["bench.json"]


def test_a_run_that_is_cut_off_leaves_the_results(results, monkeypatch):
    def interrupt(model, plan, book):
        raise KeyboardInterrupt

    first, second = list(command.MEASURES)
    monkeypatch.setattr(command, "MEASURES", [first, second._replace(run=interrupt)])
    with pytest.raises(KeyboardInterrupt):
        command.main([])
    assert (results / "bench.json").read_text() == WHOLE_RUN
    unfinished = json.loads((results / "unfinished.json").read_text())
    assert len(unfinished["findings"]) == 1


def test_missing_published_files_are_skipped_with_a_remedy(tmp_path, capsys):
    assert convert.find_published(tmp_path / "none") is None
    line = capsys.readouterr().out
    assert line.startswith("skipped: ") and "JetLM/SDAR-4B-Chat" in line
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text("{}")
    assert convert.find_published(tmp_path) == tmp_path
    assert capsys.readouterr().out == ""

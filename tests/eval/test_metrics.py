"""Numbers of an evaluation against values worked out by hand."""

import json

import pytest
from helpers import eval_runs

from jaxdave.eval.report import metrics, report
from jaxdave.eval.report.metrics import Difference
from jaxdave.eval.run import records
from jaxdave.runtime import journal


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # The mirror image, and the interval of a lone success.
        (20, 20, 0.8389, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_intervals(right, count, low, high):
    span = metrics.wilson_interval(right, count)
    assert span.value == right / count
    assert span[1:] == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(("right", "count"), [(0, 0), (2, 1), (-1, 3)])
def test_shares_of_nothing_are_refused(right, count):
    with pytest.raises(ValueError, match="no share"):
        metrics.wilson_interval(right, count)


def test_rates_are_ratios_of_sums():
    tokens, calls = [10, 90], [10, 30]
    span = metrics.ratio_of_sums(tokens, calls)
    assert span.value == 2.5  # the mean of the items' rates is 2
    # Two items drawn anew: twice the first, twice the second, or as they are.
    assert (span.low, span.high) == (1.0, 3.0)
    assert metrics.ratio_of_sums(tokens, calls) == span


def test_gains_are_paired_by_item():
    tokens, fast, slow = [10, 500, 30], [5, 50, 6], [10, 100, 12]
    # Twice on every item: no spread, however much the items differ.
    assert metrics.gain(tokens, fast, tokens, slow) == pytest.approx((2, 2, 2))


def test_rates_of_nothing_are_none_and_json():
    estimate = metrics.gain([0], [3], [0], [3])
    assert estimate == (None, None, None)
    empty = eval_runs.record(token_ids=(), valid_tokens=0)
    json.dumps(metrics.count_metrics([empty]), allow_nan=False)


@pytest.mark.parametrize(
    ("one", "other", "at"),
    [
        (((1, 2), "stop"), ((1, 2), "stop"), None),
        (((1, 2, 3), "stop"), ((1, 4, 3), "stop"), 1),
        (((1, 2), "stop"), ((1, 2, 3), "stop"), 2),
        (((), "stop"), ((9,), "stop"), 0),
        (((1, 2), "stop"), ((1, 2), "length"), 2),
    ],
)
def test_first_difference(one, other, at):
    a, b = (
        eval_runs.record(token_ids=ids, finish_reason=reason)
        for ids, reason in (one, other)
    )
    assert metrics.first_difference(a, b) == metrics.first_difference(b, a) == at
    expected = () if at is None else (Difference("a", at),)
    assert metrics.text_differences([a], {"a": b}) == expected


def test_counts_and_times_are_sums_over_items():
    nfe = {**eval_runs.NFE, "verify": 5, "recheck": 1, "total": 7}
    rows = [
        eval_runs.record("a", compile_seconds=3.0),
        eval_runs.record("b", right=False, nfe=nfe, valid_tokens=8, seconds=1.5),
    ]
    counts = metrics.count_metrics(rows)
    assert (counts["items"], counts["right"], counts["accuracy"]["value"]) == (
        2,
        1,
        0.5,
    )
    assert counts["nfe"] == {
        "prefill": 2, "verify": 8, "commit": 0, "refresh": 0, "recheck": 1, "total": 11
    }  # fmt: skip
    assert counts["tokens_per_nfe"]["value"] == pytest.approx(11 / 11)
    assert counts["decoded_tokens_per_nfe"]["value"] == pytest.approx(8 / 11)
    assert (counts["rows"], counts["reference_nfe"]) == (50, 12)
    assert (counts["proposed_drafts"], counts["accepted_drafts"]) == (12, 6)
    assert counts["hit_rate"] == 0.5
    assert counts["ended"] == {"stop": 2, "length": 0}
    times = metrics.timing_metrics(rows)
    assert times["tokens_per_second"]["value"] == pytest.approx(11 / 2)
    assert (times["seconds"], times["compile_seconds"]) == (2.0, 3.0)


# Records on the disk.

HEADER = {"format": records.FORMAT, "numerics": "guarded"}


def test_records_come_back_as_they_were(tmp_path):
    path = tmp_path / "r.jsonl"
    all_records = [eval_runs.record(id, memory={"program": 3}) for id in "abc"]
    assert records.read_records(path, HEADER) == {}
    for part in (all_records[:2], all_records[2:]):
        with records.record_writer(path, HEADER) as write_record:
            for record in part:
                write_record(record)
    assert list(records.read_records(path, HEADER).values()) == all_records
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize("cut", [1, 2, 40, 10_000])
def test_a_torn_last_line_is_dropped_and_made_again(tmp_path, cut):
    """However much of the last line, or of the header, a kill has left."""
    path = tmp_path / "r.jsonl"
    with records.record_writer(path, HEADER) as write_record:
        for id in "ab":
            write_record(eval_runs.record(id))
    whole = path.read_bytes()
    header, last = whole.index(b"\n") + 1, whole.rindex(b"\n", 0, -1) + 1
    path.write_bytes(whole[: max(last, len(whole) - cut)])
    intact = records.read_records(path, HEADER)
    assert list(intact) == ["a"]
    with records.record_writer(path, HEADER) as write_record:
        write_record(eval_runs.record("b"))
    assert path.read_bytes() == whole
    path.write_bytes(whole[: header - 3])
    assert records.read_records(path, HEADER) == {}
    with records.record_writer(path, HEADER) as write_record:
        write_record(eval_runs.record("a"))
        write_record(eval_runs.record("b"))
    assert path.read_bytes() == whole


def test_records_are_on_the_disk_before_the_next(tmp_path, monkeypatch):
    path, contents = tmp_path / "r.jsonl", []
    sync = journal.os.fsync
    monkeypatch.setattr(
        journal.os, "fsync", lambda fd: (contents.append(path.read_bytes()), sync(fd))
    )
    with records.record_writer(path, HEADER) as write_record:
        write_record(eval_runs.record("a"))
        assert len(contents) == 2 and contents[1] == path.read_bytes()
        write_record(eval_runs.record("b"))
    assert contents[2] == path.read_bytes() != contents[1]


def test_records_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    with records.record_writer(path, HEADER) as write_record:
        write_record(eval_runs.record())
    before = path.read_bytes()
    for other in ({**HEADER, "numerics": "exact"}, {**HEADER, "seed": 1}, {}):
        with pytest.raises(ValueError, match="choose another --out"):
            with records.record_writer(path, other) as write_record:
                raise AssertionError("must not come this far")
    assert path.read_bytes() == before


@pytest.mark.parametrize("broken", [b"\x00\x00\n", b"[]\n", b'{"id": \n'])
def test_records_broken_in_the_middle_are_refused(tmp_path, broken):
    path = tmp_path / "r.jsonl"
    with records.record_writer(path, HEADER) as write_record:
        write_record(eval_runs.record("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + broken + whole.splitlines()[1] + b"\n")
    with pytest.raises(ValueError, match="line 3: broken JSON"):
        records.read_records(path, HEADER)


def test_stable_drops_what_is_measured_and_nothing_else():
    value = {"a": [{"timing": 1, "b": {"memory": 2, "c": 3}}], "machine": 4}
    assert report.reproducible_part(value) == {"a": [{"b": {"c": 3}}]}


def test_same_texts_are_counted_and_others_named():
    base = {id: eval_runs.record(id) for id in "abcd"}
    others = [base["a"], eval_runs.record("b", token_ids=(5, 9, 7)), base["c"]]
    assert report._same_text(others, base) == {
        "items": 2, "share": 2 / 3, "different": [{"id": "b", "at": 1}]
    }  # fmt: skip

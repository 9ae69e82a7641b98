"""`bench.constrained_tuning`: what it trains on, and how it sums up."""

import pytest

import jaxdave
from bench import constrained_tuning as bench
from bench.harness.tuning_problems import pack
from jaxdave.demo_tasks.mixture import training_problem


def test_answers_end_and_fill_their_last_block():
    codec = jaxdave.load("sdar-1m").codec
    problems = [training_problem(0, index) for index in range(5)]
    batch = pack(codec, problems, 96)
    for row, problem in enumerate(problems):
        prompt = codec.encode_prompt(problem.prompt)
        own_T = batch.sample_BT[row] == 0
        size, end = int(own_T.sum()), codec.encode_answer(problem.answer)
        tokens = batch.tokens_BT[row, :size].tolist()
        assert size % 4 == 0 and size - len(prompt) - len(end) in range(4)
        assert tokens[: len(prompt) + len(end)] == [*prompt, *end]
        assert end[-1] in codec.stop_ids and end[-2] not in codec.stop_ids
        assert set(tokens[len(prompt) + len(end) :]) <= {codec.pad_id}
        assert batch.is_answer_BT[row].sum() == size - len(prompt)


def test_intervals_are_of_student_s_t():
    # Deviations -1, 0, 1: the standard error is 1 / sqrt(3).
    assert bench.with_interval([1.0, 2.0, 3.0]) == "2.000 +- 2.484"
    assert bench.with_interval([1.0, 2.0], 1) == "1.5 +- 6.4"
    assert bench.with_interval([1.5]) == "1.500"


def test_a_violation_is_what_exceeds_the_start_by_more_than_the_margin():
    def made(old: list[float]) -> dict:
        return {
            "method": "A",
            "new": [1.0, 0.5],
            "old": old,
            "multiplier": [0.0, 2.0],
            "resets": 1,
            "right": {"words_long": 0.5},
            "cpu_seconds_per_step": 0.25,
        }

    (row,) = bench.summarise([made([0.1, 0.2, 0.1]), made([0.2, 0.1, 0.25])])
    assert row["violation at the end"].startswith(f"{(0 + 0.04) / 2:.3f}")
    assert row["highest"].startswith(f"{(0.09 + 0.04) / 2:.3f}")
    assert row["resets"] == "1 1" and row["words_long"].startswith("0.50")


def test_a_file_of_other_constants_is_not_gone_on_with(tmp_path, monkeypatch):
    file = tmp_path / "runs.jsonl"
    calls = []

    def found(name, seed, steps, problems):
        calls.append((name, seed))
        return {"method": name, "seed": seed, "new": [0.0], "old": [0.0]}

    monkeypatch.setattr(bench, "run", found)
    assert len(bench.all_runs((0,), 20, file)) == len(bench.METHODS)
    # What is there is kept, and the rest is run.
    assert len(bench.all_runs((0, 1), 20, file)) == 2 * len(bench.METHODS)
    assert len(calls) == len(set(calls)) == 2 * len(bench.METHODS)
    monkeypatch.setattr(bench, "MARGIN", 0.5)
    with pytest.raises(ValueError, match="is of a run with constants="):
        bench.all_runs((0,), 20, file)

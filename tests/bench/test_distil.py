"""The distillation experiment: its intervals, its runs that go on, its own answers."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import distil
from bench.harness import distil_arms, paired
from jaxdave.demo_tasks.mixture import kind_of
from jaxdave.engine.trajectory import Trajectory
from jaxdave.models.presets import preset
from jaxdave.training.demo.block_batches import GROUPS
from jaxdave.training.demo.recipes import Recipe


def test_the_ratio_is_that_of_sums_and_its_interval_that_of_resamples():
    rng = np.random.default_rng(1)
    before, after = rng.integers(5, 15, 40), rng.integers(3, 10, 40)
    found = paired.ratio_of_sums(before, after)
    assert found.value == pytest.approx(before.sum() / after.sum())
    ratios = []
    for _ in range(4000):
        drawn = rng.integers(0, 40, 40)
        ratios.append(before[drawn].sum() / after[drawn].sum())
    low, high = np.quantile(ratios, (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)
    # Of one ratio everywhere nothing is uncertain.
    same = paired.ratio_of_sums(2 * after, after)
    assert same.low == pytest.approx(2.0) and same.high == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("before", "after", "change", "low", "high"),
    [
        # 100 problems; cells with half an observation each: 0.5 lost, 0.5 gained.
        ([True] * 100, [True] * 100, 0.0, -0.019215, 0.019215),
        # Five lost, one gained: -4 / 102 and 1.96 sqrt(7 - 16 / 102) / 102.
        (
            [True] * 95 + [False] * 5,
            [False] * 5 + [True] * 91 + [False] * 4,
            -0.04,
            -0.089477,
            0.011046,
        ),
    ],
)
def test_the_change_of_accuracy_is_agresti_and_mins(before, after, change, low, high):
    found = paired.accuracy_change(before, after)
    assert found == pytest.approx((change, low, high), abs=1e-5)


@jax.numpy_dtype_promotion("standard")  # optax counts steps as it likes
def test_an_arm_that_is_interrupted_ends_where_it_would_have(tmp_path, monkeypatch):
    monkeypatch.setattr(distil_arms, "SAVE_EVERY", 2)

    def loss(params, teacher, batches, key, share):
        noise = jax.random.normal(key, (3,))
        away = params["bias"] - teacher["bias"] + batches["x"] + noise
        return share * jnp.sum(away**2) + jnp.sum(params["kernel"] ** 2)

    arm = distil_arms.Arm(
        name="toy",
        steps=5,
        loss=loss,
        batches=lambda step: {"x": np.float32(step) * np.ones(3, np.float32)},
    )
    recipe = Recipe(
        config=preset("llada-1m"), steps=5, warmup_steps=1, decay_steps=2, seed=3
    )
    params = {"bias": jnp.ones(3), "kernel": jnp.ones((1, 2, 2))}
    whole, row = distil_arms.train_arm(arm, recipe, params, tmp_path / "whole")
    assert row["steps"] == 5 and row["CPU seconds"] >= 0
    assert np.isfinite(row["loss"])
    with pytest.raises(RuntimeError, match="interrupted"):
        cut = dataclasses.replace(arm, batches=interrupted_at(4, arm.batches))
        distil_arms.train_arm(cut, recipe, params, tmp_path / "cut")
    rest, _ = distil_arms.train_arm(arm, recipe, params, tmp_path / "cut")
    for name in params:
        np.testing.assert_array_equal(rest[name], whole[name])
        assert (whole[name] != params[name]).any(), "its teacher stays"
    # One that has ended is not trained again.
    ended = dataclasses.replace(arm, batches=interrupted_at(0, arm.batches))
    again, once_more = distil_arms.train_arm(ended, recipe, params, tmp_path / "whole")
    np.testing.assert_array_equal(again["bias"], whole["bias"])
    assert once_more == row


def interrupted_at(last, batches):
    def make(step):
        if step >= last:
            raise RuntimeError("interrupted")
        return batches(step)

    return make


def test_batches_hold_the_answers_of_a_stream_again_and_again():
    config = preset("llada-1m")
    recipe = Recipe(config=config, steps=2, batch_size=32)
    answers = [
        None
        if index == 5
        else ([index], Trajectory((0, 1), (index, 7), (1, 0), (0, 0), (0.0, 0.0)))
        for index in range(32)
    ]
    batches = distil_arms.batches_of_answers(answers, recipe, pad_id=9)
    laid_out = batches(0)
    for name, batch in laid_out.items():
        members = [i for i in range(32) if GROUPS[kind_of(i)] == name]
        assert len(batch.tokens_BT) == len(members)
        held = {int(row[answer][0]) for row, answer in zip(
            batch.tokens_BT, batch.is_answer_BT, strict=True
        )}  # fmt: skip
        assert held == set(members) - {5}
        later = batches(1)[name]
        np.testing.assert_array_equal(later.tokens_BT, batch.tokens_BT)


def test_a_log_forgets_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "results.jsonl"
    distil.Log(path, {}).add({"arm": "a", "calls": [1]})
    with path.open("a") as file:
        file.write('{"arm": "b", "ca')
    log = distil.Log(path, {})
    assert log.find(arm="a") == {"arm": "a", "calls": [1]} and log.find(arm="b") is None
    log.add({"arm": "b"})
    assert distil.Log(path, {}).rows == log.rows
    with pytest.raises(ValueError, match="seed=None, and this one has 1"):
        distil.Log(path, {"seed": 1})


@pytest.mark.slow
def test_the_experiment_runs_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "bench.distil", "--quick", "--work", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "holds: drafts change no text" in first.stdout
    lines = (tmp_path / "results.jsonl").read_text()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "results.jsonl").read_text() == lines
    table = "Calls of an answer before and after"
    ends = [
        run.stdout.partition(table)[2].partition("Training")[0]
        for run in (first, again)
    ]
    assert ends[0] and ends[0] == ends[1]

"""`bench.curvature_in_training`: its coefficients by their definition; it runs."""

import numpy as np
import pytest

from bench import curvature_in_training
from bench.harness import correlation


def figures(seed: int):
    """Two figures that are alike, of 2 runs, 4 steps and 5 prompts, with ties."""
    rng = np.random.default_rng(seed)
    first = np.round(rng.normal(size=(2, 4, 5)), 1)
    return first, first + rng.normal(size=first.shape)


def joined(values):
    return np.concatenate(list(values), axis=1)


def mean_over_shifts(pair, steps, prompts):
    """By its definition: numpy's coefficient at every shift."""
    first, second = pair
    found = [
        np.corrcoef(
            first.ravel(), np.roll(second, (step, prompt), axis=(0, 1)).ravel()
        )[0, 1]
        for step in steps
        for prompt in prompts
    ]
    return np.mean(found)


@pytest.mark.parametrize("seed", range(3))
def test_coefficients_by_their_definition(seed):
    first, second = figures(seed)
    found = correlation.correlate(first, second)
    raw = joined(first), joined(second)
    centred = [joined(one - one.mean(axis=2, keepdims=True)) for one in (first, second)]
    size = raw[0].shape[1]
    for got, want in (
        (found.raw.value, mean_over_shifts(raw, [0], [0])),
        (found.same_step.value, mean_over_shifts(centred, [0], [0])),
        (found.other_step.value, mean_over_shifts(centred, [1, 2, 3], [0])),
        (found.unrelated, mean_over_shifts(raw, [1, 2, 3], range(1, size))),
    ):
        np.testing.assert_allclose(got, want, atol=1e-12)
    assert found.same_step.low < found.same_step.value < found.same_step.high


def test_ranks_see_order_alone():
    first, _ = figures(0)
    found = correlation.correlate(first, np.exp(3 * first))
    np.testing.assert_allclose(found.ranks.value, 1.0)
    assert found.same_step.value < 0.95


def test_a_constant_has_no_coefficient():
    first, _ = figures(0)
    assert np.isnan(correlation.correlate(first, np.ones_like(first)).raw.value)


@pytest.mark.slow
def test_the_quick_run_goes_on(tmp_path, capsys, monkeypatch):
    runs = tmp_path / "runs.jsonl"
    curvature_in_training.main(["--quick", "--runs", str(runs)])
    first = capsys.readouterr().out
    lines = runs.read_text()
    # The network's run is there: it is not made again.
    monkeypatch.setattr(curvature_in_training, "run", None)
    curvature_in_training.main(["--quick", "--runs", str(runs)])
    assert runs.read_text() == lines
    table = lambda out: out.partition("Network: curv")[2].partition("load")[0]  # noqa: E731
    assert "spectral norm" in table(first)
    assert table(capsys.readouterr().out) == table(first)

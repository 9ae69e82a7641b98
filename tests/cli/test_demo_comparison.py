"""What follows from the demo's measurements: moments, ratios, words."""

import dataclasses

import pytest
from helpers.demo_comparisons import FREEDAVE, STATIC, comparison

from jaxdave.cli import demo_comparison
from jaxdave.cli.demo_comparison import Score


def test_calls_take_their_share_of_the_measured_time():
    ends = demo_comparison.call_ends([0.6, 0.2, 0.2], 3, 0.010)
    assert ends == pytest.approx((0.006, 0.008, 0.010)) and ends[-1] == 0.010
    # Fewer timings than calls: a recheck ran with the call before it.
    ends = demo_comparison.call_ends([0.6, 0.4], 4, 0.010)
    assert ends == pytest.approx((0.0025, 0.005, 0.0075, 0.010))
    assert demo_comparison.call_ends([], 1, 0.5) == (0.5,)
    assert demo_comparison.call_ends([0.0], 1, 0.5) == (0.5,)


def test_tokens_appear_when_their_call_has_ended():
    assert [STATIC.calls_until(s) for s in (0.0, 0.004, 0.0055, 1.0)] == [0, 1, 2, 7]
    assert [view.call for view in FREEDAVE.views(2)] == [0, 1, 1, 1, None, None, None]
    assert [view.text for view in FREEDAVE.views(0)] == list(FREEDAVE.texts)
    moments = comparison().moments()
    assert moments == sorted(set(moments)) and len(moments) == 7


@pytest.mark.parametrize(
    ("speed", "seconds", "factor", "words"),
    [
        (None, 0.0172, 400, "shown 400 times slower"),
        (None, 0.05, 150, "shown 150 times slower"),
        (None, 20.0, 1, "shown at the measured speed"),
        (None, 0.0, 8e6, "shown 8000000 times slower"),
        (0.1, 1.0, 10, "shown 10 times slower"),
        (1, 1.0, 1, "shown at the measured speed"),
        (4, 1.0, 0.25, "shown 4 times faster"),
        (1e-5, 1.0, 1e5, "shown 100000 times slower"),
    ],
)
def test_speeds(speed, seconds, factor, words):
    found = demo_comparison.slowdown(speed, seconds)
    assert found == pytest.approx(factor)
    assert demo_comparison.speed_words(found) == words


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf"), 1e-9])
def test_speeds_that_are_none(speed):
    with pytest.raises(ValueError, match="speed=.* must be in .*; try 0.01"):
        demo_comparison.slowdown(speed, 1.0)


def test_the_table_has_every_number_and_its_ratio():
    rows = {row.name: row for row in demo_comparison.rows(comparison())}
    calls, seconds = rows["network calls"], rows["seconds"]
    assert (calls.static, calls.freedave) == ("14", "6")
    assert calls.ratio == "2.33 times fewer"
    assert (seconds.static, seconds.freedave) == ("0.020", "0.016")
    assert seconds.ratio == "1.25 times faster"
    assert rows["tokens per call"].ratio == "2.33 times more"
    assert rows["milliseconds per call"].ratio == "1.87 times as long"
    right = rows["answers right"]
    assert (right.static, right.freedave) == ("2 of 2", "1 of 2")
    assert rows["texts equal to static's"].freedave == "2 of 2"


def test_the_explanation_is_of_what_was_measured():
    equal, saved = demo_comparison.explanation(comparison())
    assert "the same texts as static" in equal
    assert "2.33 times fewer" in saved and "1.25 times faster" in saved
    assert "it takes 2.67 ms, one of static 1.43 ms (1.87 times as long)" in saved
    assert "Few cores" in saved
    _, saved = demo_comparison.explanation(comparison(is_cpu=False, machine="H200"))
    assert "Few cores" not in saved and "H200" in saved


def test_a_loss_is_called_a_loss():
    slow = Score(states=8, right=2, tokens=12, calls=6, seconds=0.030)
    made = comparison(freedave_score=slow, num_equal=1)
    equal, saved = demo_comparison.explanation(made)
    assert "another text than static for 1 of 2" in equal
    assert "1.50 times slower" in saved
    same = dataclasses.replace(slow, calls=14, seconds=0.020)
    _, saved = demo_comparison.explanation(comparison(freedave_score=same))
    assert saved == "Both made as many network calls: no draft was accepted."

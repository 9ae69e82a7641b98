"""Policies by name, from text, and parameters that are refused."""

import math

import pytest

from jaxdave import policies
from jaxdave.policies.registry import makers

MAKERS = makers()


@pytest.mark.parametrize("name", MAKERS)
def test_a_name_alone_and_a_name_with_defaults_are_the_policy(name):
    (entry,) = [e for e in policies.listing() if e.name == name]
    assert entry.summary.endswith(".") and entry.lossless == MAKERS[name]().lossless
    assert policies.parse(name).name == MAKERS[name]().name
    given = ",".join(f"{k}={v}" for k, v in entry.parameters.items())
    assert policies.parse(f"{name}:{given}" if given else name).name == entry_name(
        entry
    )
    for key, value in entry.parameters.items():
        other = {"entropy": "confidence", "cosine": "exp"}.get(value)
        other = other or (0.5 if isinstance(value, float) else 3)
        changed = MAKERS[name](**{key: other}).name
        assert changed != MAKERS[name]().name, "decoders are cached by the name"
        assert policies.parse(f"{name}: {key} = {other}").name == changed


def entry_name(entry) -> str:
    return MAKERS[entry.name](**entry.parameters).name


def test_small_blocks_can_be_asked_of_any_policy():
    made = policies.parse("threshold:small_blocks=8,threshold=0.8")
    assert made.name == policies.small_blocks(policies.threshold(0.8), 8).name


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "policy '' is unknown; use one of static"),
        ("best", "policy 'best' is unknown; use one of static"),
        ("static:", "ends in ':'"),
        ("static:n=2", "'static' has no parameter 'n'; it takes tokens_per_step"),
        ("static:2", "'2' must read key=value"),
        (
            "static:tokens_per_step=two",
            "'two' must be a whole number; 1 is the default",
        ),
        ("static:tokens_per_step=1.5", "'1.5' must be a whole number"),
        ("static:tokens_per_step=0", "tokens_per_step=0 must be a whole number of at"),
        ("static:tokens_per_step=1,tokens_per_step=2", "given twice"),
        ("static:small_blocks=0", "small_blocks=0 must be"),
        ("static:small_blocks=x", "small_blocks='x' must be a whole number"),
        ("first_hitting:steps=2", "no parameter 'steps'"),
        ("threshold:threshold=high", "'high' must be a number; 0.9 is the default"),
        ("threshold:threshold=1.5", "threshold=1.5 must be in 0..1; 0.9 is the usual"),
        ("threshold:threshold=nan", "threshold=nan must be in 0..1"),
        ("factor:factor=-1", "factor=-1.0 must be 0 or more; 1.0 is the usual"),
        ("factor:factor=inf", "factor=inf must be 0 or more"),
        ("low_confidence:steps=0", "steps=0"),
        ("random:steps=-3", "steps=-3"),
        ("origin:eps=0", "eps=0.0 must be above 0 and below 1"),
        ("entropy:eps=1", "eps=1.0"),
        ("maskgit_plus:alg_temp=-1", "alg_temp=-1.0"),
        ("topk_margin:steps=0", "steps=0"),
        ("sequential:steps=0", "steps=0"),
        ("low_confidence_static:steps=0", "steps=0"),
        ("low_confidence_dynamic:threshold=2", "threshold=2.0"),
        ("entropy_bounded:eb_threshold=-1", "eb_threshold=-1.0"),
        ("eb_sampler:gamma=nan", "gamma=nan"),
        ("eb_sampler:proxy=margin", "proxy='margin' is unknown; use one of entropy"),
        ("hierarchical:low_threshold=-1", "low_threshold=-1.0"),
        ("local_leap:radius=0", "radius=0"),
        ("deferred:window=0", "window=0"),
        ("deferred:max_window=0", "max_window=0"),
        ("credit:kept=0", "kept=0"),
        ("credit:beta=1.5", "beta=1.5"),
        ("credit:alpha=-1", "alpha=-1.0"),
        ("klass:kl_threshold=-1", "kl_threshold=-1.0"),
        ("klass:kl_history_length=0", "kl_history_length=0"),
        ("sched:mode=cubic", "mode='cubic' is unknown; use one of cosine"),
        ("sched:tau_low=-1", "tau_low=-1.0"),
        ("sched:min_progress=2", "min_progress=2.0"),
        ("prophet:answer_start=-2", "answer_start=-2"),
        ("prophet:answer_length=0", "answer_length=0"),
        ("prophet:late=-1", "late=-1.0"),
        ("saber:n=0", "n=0"),
        ("wino:threshold=1.5", "threshold=1.5 must be in 0..1; 0.6 is the usual"),
        ("wino:threshold_back=-1", "threshold_back=-1.0 must be in 0..1"),
        ("wino:threshold_back=nan", "threshold_back=nan"),
    ],
)
def test_bad_policies_are_refused_in_one_line(text, named):
    with pytest.raises(ValueError) as caught:
        policies.parse(text)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_makers_and_wrappers_refuse_what_they_cannot_do():
    for tau in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"threshold={tau}"):
            policies.threshold(tau)
    for make in (policies.static, policies.left_to_right):
        with pytest.raises(ValueError, match="tokens_per_step=0"):
            make(0)
    with pytest.raises(ValueError, match="ids is empty"):
        policies.demote(policies.static(), [])

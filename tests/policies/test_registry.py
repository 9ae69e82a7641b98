"""The registry of policies: names, parsing, entry points, and what is refused."""

import functools
import math
import sys
import types
from importlib import metadata

import jax.numpy as jnp
import pytest
from helpers import fake_model
from helpers.fake_model import VARIANTS, prompts_of, texts, weights

from jaxdave import policies
from jaxdave.core.policy_api import CandidateScoring, Policy
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.policies import common
from jaxdave.policies.memoize import memoized
from jaxdave.policies.registry import makers
from jaxdave.policies.validation import check_policy

MAKERS = makers()


@pytest.mark.parametrize("name", MAKERS)
def test_a_name_alone_and_a_name_with_defaults_are_the_policy(name):
    (entry,) = [e for e in policies.listing() if e.name == name]
    assert entry.summary.endswith(".") and entry.lossless == MAKERS[name]().lossless
    assert policies.parse(name).name == MAKERS[name]().name
    text = ",".join(f"{k}={v}" for k, v in entry.parameters.items())
    parsed = policies.parse(f"{name}:{text}" if text else name)
    assert parsed.name == entry_name(entry)
    for key, value in entry.parameters.items():
        other = {"entropy": "confidence", "cosine": "exp"}.get(value)
        other = other or (0.5 if isinstance(value, float) else 3)
        changed = MAKERS[name](**{key: other}).name
        assert changed != MAKERS[name]().name, "names tell parameters"
        assert policies.parse(f"{name}: {key} = {other}").name == changed


def entry_name(entry) -> str:
    return MAKERS[entry.name](**entry.parameters).name


def test_small_blocks_can_be_asked_of_any_policy():
    policy = policies.parse("threshold:small_blocks=8,threshold=0.8")
    assert policy.name == policies.small_blocks(policies.threshold(0.8), 8).name


@pytest.mark.parametrize(
    ("text", "message"),
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
        ("cad:threshold=2", "threshold=2.0"),
        ("cad:min_tokens=0", "min_tokens=0"),
        ("cad:min_tokens=3,max_tokens=2", "max_tokens=2 must be at least min_tokens=3"),
        ("factor:factor=-1", "factor=-1.0 must be 0 or more; 1.0 is the usual"),
        ("factor:factor=inf", "factor=inf must be 0 or in 1e-30.."),
        ("leftmost_run:threshold=2", "threshold=2.0"),
        ("leftmost_run:tokens_per_step=0", "tokens_per_step=0"),
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
        ("entropy_threshold:threshold=-1", "threshold=-1.0 must be 0 or more; 0.4 is"),
        ("multi_block:length=0", "length=0 must be a whole number of at least 1"),
        ("multi_block:threshold=nan", "threshold=nan"),
        (
            "multi_block:block_add_threshold=2",
            "block_add_threshold=2.0 must be in 0..1",
        ),
        (
            "dilated:base=0",
            "base=0 must be a whole number of at least 1; 2 is the usual",
        ),
        ("dilated:base=1.5", "base='1.5' must be a whole number; 2 is the default"),
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
def test_bad_policies_are_refused_in_one_line(text, message):
    with pytest.raises(ValueError) as caught:
        policies.parse(text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_makers_and_wrappers_refuse_what_they_cannot_do():
    for tau in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"threshold={tau}"):
            policies.threshold(tau)
    for make in (policies.static, policies.left_to_right):
        with pytest.raises(ValueError, match="tokens_per_step=0"):
            make(0)
    with pytest.raises(ValueError, match="ids is empty"):
        policies.demote(policies.static(), [])


LENGTH, NEW_TOKENS = 4, 16


def scored_policy(name: str, score_of) -> Policy:
    """A policy from outside the package: the open position of the highest score."""

    def step(view, memory):
        chosen_W = common.best_positions(view, 1, score_of(view))
        return common.fill_positions(view, chosen_W), memory

    return Policy(name, step)


def freedave_over(policy: Policy):
    """FreeDave over a policy on the hash network."""
    return decoders.freedave(
        fake_model.CONFIG,
        policy,
        draft_steps=2,
        block_length=LENGTH,
        max_new_tokens=NEW_TOKENS,
        numerics="exact",
        network=fake_model.network(LENGTH),
    )


def test_two_policies_of_one_name_decode_as_themselves():
    """The second one of a notebook cell that was edited and run again, for instance."""

    def from_left(view):
        return jnp.zeros_like(view.pred.score)

    def by_confidence(view):
        return view.pred.score

    scores = (from_left, by_confidence)
    namesakes = [scored_policy("mine", score) for score in scores]
    others = [scored_policy(f"mine {i}", score) for i, score in enumerate(scores)]
    first, second = map(freedave_over, namesakes)
    assert first.spec is not second.spec
    assert first.spec.policy is namesakes[0]
    assert second.spec.policy is namesakes[1]
    net, prompts = weights(3, **VARIANTS["chaotic"]), prompts_of([5, 9], 3)
    decoded = [
        generate(freedave_over(policy), net, prompts)
        for policy in (*namesakes, *others)
    ]
    assert texts(decoded[0]) == texts(decoded[2])
    assert texts(decoded[1]) == texts(decoded[3])
    assert texts(decoded[0]) != texts(decoded[1])
    # A decoder of equal parts still shares its compiled programs.
    assert freedave_over(namesakes[0]).spec is first.spec


@pytest.fixture
def entry_points(monkeypatch):
    """Install entry points: a function of name -> value."""

    def install(**values: str) -> None:
        points = [
            metadata.EntryPoint(name, value, "jaxdave.policies")
            for name, value in values.items()
        ]

        def entry_points(*, group: str):
            return metadata.EntryPoints(points).select(group=group)

        monkeypatch.setattr(metadata, "entry_points", entry_points)
        makers.cache_clear()

    yield install
    monkeypatch.undo()
    makers.cache_clear()


def leftmost(tokens_per_step: int = 2) -> Policy:
    """The leftmost tokens, from outside the package."""
    return policies.left_to_right(tokens_per_step)._replace(name="leftmost")


def test_an_entry_point_adds_a_policy(entry_points, monkeypatch):
    monkeypatch.setattr(math, "leftmost", leftmost, raising=False)
    entry_points(leftmost="math:leftmost")
    assert list(makers())[:2] == ["static", "left_to_right"]
    assert policies.parse("leftmost:tokens_per_step=3").name == "leftmost"
    assert policies.parse("leftmost") is policies.parse("leftmost:tokens_per_step=2")
    (entry,) = [e for e in policies.listing() if e.name == "leftmost"]
    assert entry.parameters == {"tokens_per_step": 2}
    assert entry.summary == "The leftmost tokens, from outside the package."


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mine", "no_such_module:maker", r"No module named 'no_such_module'"),
        ("mine", "math:no_such_maker", "no_such_maker"),
        ("mine", "math:pi", "is not a callable"),
        ("static", "math:exp", "name of a policy that is known; rename it"),
        ("mine", "test_helper:POLICY", "it is a Policy; name a function that returns"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named(
    entry_points, monkeypatch, name, value, message
):
    module = types.SimpleNamespace(POLICY=policies.static(1))
    monkeypatch.setitem(sys.modules, "test_helper", module)
    entry_points(**{name: value})
    for use in (makers, policies.listing, functools.partial(policies.parse, "static")):
        with pytest.raises(ValueError, match=message) as caught:
            use()
        text = str(caught.value)
        assert f"entry point {name!r} of jaxdave.policies ({value})" in text
        assert "\n" not in text


def without_default(count):
    """A maker that cannot be called by name alone."""


def of_a_flag(flag: bool = True):
    """A maker whose parameter cannot be told from text."""


def of_nothing():
    """A maker that forgets to return."""


def of_one_argument():
    """A maker of a policy whose step has lost its memory."""
    return Policy("mine", lambda view: view.tokens_W)  # pyright: ignore


def raising():
    """A maker that fails, in several lines."""
    raise KeyError("first\nsecond")


@pytest.mark.parametrize(
    ("maker", "message"),
    [
        (without_default, "parameter count needs a default of type int, float or str"),
        (of_a_flag, "parameter flag needs a default of type int, float or str"),
        (of_nothing, "gives no policy for its defaults .*None has no 'name'"),
        (of_one_argument, r"step=.* must be a function of \(view, memory\)"),
        (raising, "gives no policy for its defaults .KeyError: .*; mend the maker"),
    ],
)
def test_a_maker_that_cannot_be_used_is_named(
    entry_points, monkeypatch, maker, message
):
    module = types.SimpleNamespace(maker=maker)
    monkeypatch.setitem(sys.modules, "test_helper", module)
    entry_points(mine="test_helper:maker")
    assert policies.parse("static").name == "static(1)"
    for use in (policies.listing, functools.partial(policies.parse, "mine")):
        with pytest.raises(ValueError, match=f"policy 'mine': .*{message}") as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            lambda view, memory: view.tokens_W,
            r"policy 'mine': its step must return \(tokens_W, memory\) and gave",
        ),
        (lambda view, memory: (view.tokens_W, memory), "no token was committed in"),
    ],
)
def test_a_step_that_breaks_the_protocol_is_named(step, message):
    with pytest.raises(ValueError, match=message) as caught:
        generate(freedave_over(Policy("mine", step)), weights(0), prompts_of([5], 0))
    assert "\n" not in str(caught.value)


def test_a_maker_is_memoized_by_its_arguments_and_their_types():
    calls = []

    @memoized
    def maker(a: float = 1, ids=()) -> Policy:
        """A policy."""
        calls.append((a, ids))
        return Policy(f"maker({a})", policies.static(1).step)

    assert maker() is maker(1) is maker(a=1, ids=())
    assert maker(ids=[3, 4]) is maker(1, ids=[3, 4]) is not maker()
    assert calls == [(1, ()), (1, [3, 4])]
    # Equal, but the policies have other names.
    assert maker(1.0) is not maker(1) and maker(1.0).name == "maker(1.0)"
    assert maker(True) is not maker(1)
    assert (maker.__name__, maker.__doc__) == ("maker", "A policy.")
    assert policies.static(2) is policies.static(tokens_per_step=2)
    assert policies.threshold(1) is not policies.threshold(1.0)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (policies.static, r"policy=<function static .*> has no 'name'; give a Policy"),
        (jnp.zeros((3, 3)), r"policy=Array.* has no 'name'; give a Policy"),
        (
            Policy("mine", None),  # pyright: ignore
            r"policy 'mine': step=None must be a function; make it with Policy\(name",
        ),
        (
            policies.static(1)._replace(step="best"),
            r"policy 'static\(1\)': step='best' must be a function; .*step=\.\.\.\)",
        ),
        (policies.static(1)._replace(init=()), r"init=\(\) must be a function"),
        (
            policies.static(1)._replace(is_certain=True),
            "is_certain=True must be a function, or None",
        ),
        (
            policies.static(1)._replace(scoring=4),
            "scoring=4 must be a CandidateScoring with a score_fn, or None",
        ),
        (
            policies.lopa()._replace(scoring=CandidateScoring(8, None)),  # pyright: ignore
            r"scoring=CandidateScoring\(.*\) must be a CandidateScoring with",
        ),
    ],
)
def test_a_policy_that_cannot_be_decoded_with_is_refused(policy, message):
    for build in (
        check_policy,
        functools.partial(decoders.freedave, fake_model.TINY, lossy=True),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            build(policy)
        assert "\n" not in str(caught.value)


def test_a_policy_without_a_step_is_refused():
    class Stepless:
        name = "mine"

        def __repr__(self) -> str:
            return "Stepless()"

    with pytest.raises(ValueError, match=r"policy=Stepless\(\) has no 'step'; give"):
        decoders.freedave(fake_model.TINY, Stepless())  # pyright: ignore


@pytest.mark.parametrize("name", MAKERS)
def test_every_policy_is_one_that_can_be_decoded_with(name):
    check_policy(MAKERS[name]())
    check_policy(policies.small_blocks(MAKERS[name](), 4))

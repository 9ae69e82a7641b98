"""`Policy.sure`: what it accepts, no numbers as near can turn into another step.

Every number of a second step is pushed about by up to its error: each two towards and
past each other, all one way, and at random corners.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import replays
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.core.prediction import ErrorBound, Prediction

pytestmark = pytest.mark.usefixtures("quick_compiles")

WIDE, CASES, PUSHES, END = 6, 48, 65, 12
MANY = CASES * PUSHES
KNOWN = ("score", "gap", "margin", "entropy")
TIMED = (
    "low_confidence:steps=3", "random:steps=3", "origin:steps=4",
    "sequential:steps=3", "low_confidence_static:steps=3",
    "low_confidence_dynamic:steps=3,threshold=0.7",
    *(f"{n}:steps=3" for n in ("maskgit_plus", "topk_margin", "entropy")),
    *(
        f"{n}:steps=3,alg_temp=0.5" for n in ("maskgit_plus", "topk_margin", "entropy")
    ),
    "prophet:steps=4,early=2,mid=1.5,late=1",
    "prophet:steps=4,early=2,mid=1.5,late=1,answer_start=1,answer_length=3",
    "sched:steps=4,tau_high=2,tau_low=1,max_change_ratio=1",
)  # fmt: skip
PLAIN = (
    "static:tokens_per_step=2", "left_to_right", "threshold:threshold=0.7",
    "threshold:threshold=0.7,small_blocks=3", "factor",
    "entropy_bounded:eb_threshold=0.5",
    "eb_sampler:gamma=0.33", "eb_sampler:gamma=0.33,proxy=confidence",
    "hierarchical:threshold=0.9,low_threshold=0.5", "local_leap:radius=1",
    "first_hitting", "deferred:window=3,threshold=0.7",
)  # fmt: skip
RULES = [policies.parse(text) for text in (*PLAIN, *TIMED)]
RULES += [
    policies.demote(policies.parse("topk_margin:steps=3"), (END,)),
    policies.demote(policies.parse("entropy:steps=3"), (END,)),
    policies.first_alone(policies.parse("low_confidence:steps=3")),
]
BLIND = ("left_to_right", "first_hitting", "random", "origin", "sequential")
SIGHTED = [p for p in RULES if not p.name.startswith(BLIND)]
named = pytest.mark.parametrize("policy", RULES, ids=lambda p: p.name)
of_sighted = pytest.mark.parametrize("policy", SIGHTED, ids=lambda p: p.name)


class Outcome(NamedTuple):
    """Of every case: whether it is sure, also of half the errors, and whether some
    push leads to another step."""

    is_certain: np.ndarray
    bold: np.ndarray
    moved: np.ndarray


@functools.cache
def decider(policy):
    """(numbers of two steps, what is open in the second, errors) -> that step's
    tokens and memory, whether it is sure, and whether it were of half the errors."""

    def act(first, second, open_W, doubt):
        everywhere = jnp.ones(WIDE, bool)
        memory = policy.step(view_of(first, everywhere, 3), policy.init(WIDE, 6))[1]
        view = view_of(second, open_W, 4)
        half = jax.tree.map(lambda a: a / 2, doubt)
        sures = (policy.is_certain(view, memory, d) for d in (doubt, half))
        return *policy.step(view, memory), *sures

    return jax.jit(jax.vmap(act, in_axes=(0, 0, 0, None)))


def view_of(numbers, open_W, n: int):
    """A block some of which is open, whose tokens are beyond doubt."""
    tokens_W = jnp.where(open_W, replays.MASK, 7).astype(jnp.int32)
    token_W = jnp.arange(WIDE, dtype=jnp.int32) + 10
    lead_W = jnp.full(WIDE, 99.0)
    pred = Prediction(token_W, *numbers, runner_up=-token_W, lead=lead_W)
    return replays.view_of(
        pred, jnp.zeros((WIDE, 6)), tokens_W, jnp.int32(0), jnp.int32(WIDE),
        jnp.int32(n), replays.key_of(0, n),
    )  # fmt: skip


def doubt_of(error: float) -> ErrorBound:
    sizes = {"score": 1.0, "lead": 1.0, "gap": 2.0, "margin": 0.5, "entropy": 1.0}
    return ErrorBound(**{k: jnp.float32(error * v) for k, v in sizes.items()})


def close_calls(rng, error: float) -> list[np.ndarray]:
    """Numbers [CASES, W] near each other and near what rules compare them with."""
    levels = {
        "score": [-1.0, 0.0, 0.847, 1.0986, 2.197, 4.0], "gap": [0.5, 1.0, 2.0],
        "margin": [0.3, 1.0, 2.0], "entropy": [0.1, 0.2, 0.3, 0.5],
    }  # fmt: skip
    spread = lambda of: rng.normal(0, 2 * error, (CASES, WIDE)) * of  # noqa: E731
    sizes = doubt_of(1.0)
    return [
        np.abs(rng.choice(v, (CASES, WIDE)) + spread(float(getattr(sizes, k))))
        * (1 if min(v) > 0 else rng.choice([-1, 1, 1], (CASES, WIDE)))
        for k, v in levels.items()
    ]


def clear_calls(rng, error: float) -> list[np.ndarray]:
    """Numbers that lie far apart, and far from what rules compare them with."""
    del error
    shuffled = lambda values: rng.permuted(np.tile(values, (CASES, 1)), axis=1)  # noqa: E731
    return [
        shuffled([-3.0, -1.5, 0.6, 1.7, 3.0, 4.5]), shuffled([0.2, 0.4, 0.8, 3, 6, 9]),
        shuffled([0.1, 0.4, 0.9, 1.6, 2.6, 4.0]),
        shuffled([0.04, 0.11, 0.25, 0.47, 0.8, 1.3]),
    ]  # fmt: skip


def pushes(rng) -> np.ndarray:
    """Directions [pushes, numbers, W] within -1..1; what is surer has less entropy."""
    found = [np.zeros(WIDE), np.ones(WIDE), -np.ones(WIDE)]
    for i, j in itertools.permutations(range(WIDE), 2):
        found.append(np.eye(WIDE)[i] - np.eye(WIDE)[j])
    alike = np.stack(found)[:, None] * np.array([1, 1, 1, -1])[None, :, None]
    corners = rng.choice([-1.0, 1.0], (24, len(KNOWN), WIDE))
    inside = rng.uniform(-1, 1, (8, len(KNOWN), WIDE))
    found = np.concatenate([alike, corners, inside])
    assert len(found) == PUSHES
    return found


def outcome(policy, seed: int, error: float, numbers=close_calls) -> Outcome:
    rng, doubt = np.random.default_rng(seed), doubt_of(error)
    first, second = (np.stack(numbers(rng, error), axis=1) for _ in range(2))
    open_CW = rng.random((CASES, WIDE)) < 0.75
    open_CW[:, 2] |= ~open_CW.any(axis=1)
    way_PFW = pushes(rng)
    # A little less than the error, as sums are rounded to float32.
    size_F = 0.999 * np.array([float(getattr(doubt, name)) for name in KNOWN])
    way_PFW = size_F[:, None] * way_PFW
    near = second[:, None] + way_PFW[None]
    near[:, :, 3] = second[:, None, 3] * (1 + size_F[3]) ** (way_PFW[:, 3] / size_F[3])
    many = lambda a: np.repeat(a, len(way_PFW), axis=0)  # noqa: E731
    split = lambda a: tuple(np.moveaxis(a, 1, 0).astype(np.float32))  # noqa: E731
    told = split(many(first)), split(near.reshape(-1, len(KNOWN), WIDE)), many(open_CW)
    *step, sure, bold = jax.device_get(decider(policy)(*told, doubt))
    moved_C = np.zeros(CASES, bool)
    for part in jax.tree.leaves(step):
        assert part.dtype.kind in "ib", "a memory of numbers would need errors, too"
        by_case = part.reshape(CASES, len(way_PFW), -1)
        moved_C |= (by_case != by_case[:, :1]).any(axis=(1, 2))
    pick = lambda a: a.reshape(CASES, -1)[:, 0]  # noqa: E731
    return Outcome(pick(sure), pick(bold), moved_C)


def test_every_policy_that_can_tell_is_asked_here():
    asked = {p.name.partition("(")[0] for p in RULES}
    made = [policies.parse(e.name) for e in policies.listing()]
    assert {p.name.partition("(")[0] for p in made if p.is_certain} <= asked
    exact = {p.name.partition("(")[0] for p in made if not p.is_certain}
    assert exact == {"credit", "klass", "saber", "info_gain", "lopa", "wino"}


@named
@settings(max_examples=6)
@given(st.integers(0, 999), st.sampled_from([1e-3, 0.02, 0.1]))
def test_what_is_sure_no_push_can_change(policy, seed, error):
    found = outcome(policy, seed, error)
    assert not (found.is_certain & found.moved).any()


@of_sighted
def test_half_the_errors_would_not_do(policy):
    found = [outcome(policy, seed, 0.05) for seed in range(6)]
    assert sum(np.sum(one.bold & one.moved) for one in found)


@named
def test_most_of_what_no_push_changes_is_sure(policy):
    found = outcome(policy, 1, 1e-3, clear_calls)
    assert np.mean(found.is_certain) > 0.9
    close = [outcome(policy, seed, 0.02) for seed in range(4)]
    calm = sum(np.sum(~one.moved) for one in close)
    # Of eb_sampler by confidence only what keeps its order; of others nearly all.
    assert sum(np.sum(one.is_certain) for one in close) > 0.5 * calm


@of_sighted
@pytest.mark.parametrize("error", [np.inf, np.nan])
def test_of_errors_that_nobody_knows_nothing_is_sure(policy, error):
    numbers = split_of([[0.1] * WIDE, [0.2] * WIDE, [0.3] * WIDE, [0.1] * WIDE])
    open_W = np.ones((MANY, WIDE), bool)
    *_, sure, bold = decider(policy)(numbers, numbers, open_W, doubt_of(error))
    # Alone, a first token is committed whatever is said of it.
    alone = policy.name.startswith("first_alone")
    assert alone or not (sure.any() or bold.any())


@pytest.mark.parametrize(
    "policy",
    [p for p in SIGHTED if not ("first_alone" in p.name or "alg_temp=0.5" in p.name)],
    ids=lambda p: p.name,
)
def test_equals_are_not_sure(policy):
    even = split_of([[0.5] * WIDE, [1.5] * WIDE, [0.3] * WIDE, [0.2] * WIDE])
    open_W = np.ones((MANY, WIDE), bool)
    *_, sure, _ = decider(policy)(even, even, open_W, doubt_of(1e-4))
    assert not sure.any()


def split_of(rows):
    """The same numbers [MANY, W] for all, in the shape that is compiled already."""
    return tuple(np.tile(np.float32(row), (MANY, 1)) for row in rows)


def test_numbers_of_a_known_position_are_not_sure_with_its_token():
    # Its token decides whether `demote` hides its gap, which the answer's mean is of.
    rule = policies.prophet(4, 2, 1.5, 1, answer_start=1, answer_length=3)
    policy, open_W = policies.demote(rule, (END,)), jnp.arange(WIDE) != 3
    numbers = [jnp.arange(WIDE, dtype=jnp.float32)] * len(KNOWN)

    @jax.jit
    def is_certain(lead_W):
        view = view_of(numbers, open_W, 3)
        view = view._replace(pred=view.pred._replace(lead=lead_W))
        assert policy.is_certain is not None
        return policy.is_certain(view, policy.init(WIDE, 6), doubt_of(1e-3))

    lead_W = jnp.full(WIDE, 99.0)
    assert is_certain(lead_W) and not is_certain(lead_W.at[3].set(0.0))


@pytest.mark.parametrize(
    "rule", ["entropy:steps=3", "eb_sampler", "entropy_bounded", TIMED[-1]]
)
def test_what_a_float_loses_of_an_entropy_turns_no_step(rule):
    """Of three nearly certain positions one program says 0, and another 1e-36."""
    lost_CW = np.zeros((4, WIDE), np.float32)
    lost_CW[1, 0], lost_CW[2, 1], lost_CW[3, 2] = 1.1e-36, 2e-31, 5e-38
    lost_CW[:, 3:] = 0.7
    others = [jnp.ones((4, WIDE), jnp.float32)] * 3
    told, open_CW = [*others, jnp.asarray(lost_CW)], jnp.ones((4, WIDE), bool)
    tokens_CW, _, sure, _ = decider(policies.parse(rule))(
        told, told, open_CW, doubt_of(2e-4)
    )
    assert (np.asarray(tokens_CW) == np.asarray(tokens_CW)[:1]).all()
    assert sure.all() or not rule.startswith("entropy:")

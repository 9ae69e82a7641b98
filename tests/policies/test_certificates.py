"""`Policy.is_certain`: where it is True, no error within the bound changes the step.

Every number of a second step is perturbed by up to its error bound: each two towards
and past each other, all one way, and at random corners.
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

WIDE, CASES, DIRECTIONS, END = 6, 48, 65, 12
MANY = CASES * DIRECTIONS
FIELDS = ("score", "gap", "margin", "entropy")
TIMED = (
    "low_confidence:steps=3",
    "random:steps=3",
    "origin:steps=4",
    "sequential:steps=3",
    "low_confidence_static:steps=3",
    "low_confidence_dynamic:steps=3,threshold=0.7",
    *(f"{n}:steps=3" for n in ("maskgit_plus", "topk_margin", "entropy")),
    *(f"{n}:steps=3,alg_temp=0.5" for n in ("maskgit_plus", "topk_margin", "entropy")),
    "prophet:steps=4,early=2,mid=1.5,late=1",
    "prophet:steps=4,early=2,mid=1.5,late=1,answer_start=1,answer_length=3",
    "sched:steps=4,tau_high=2,tau_low=1,max_change_ratio=1",
)
PLAIN = (
    "static:tokens_per_step=2",
    "left_to_right",
    "leftmost_run:threshold=0.7",
    "leftmost_run:threshold=0.7,tokens_per_step=2",
    "threshold:threshold=0.7",
    "threshold:threshold=0.7,small_blocks=3",
    "cad:threshold=0.7,max_tokens=2",
    "cad:threshold=0.7,min_tokens=2,max_tokens=3",
    "factor",
    "entropy_bounded:eb_threshold=0.5",
    "eb_sampler:gamma=0.33",
    "entropy_threshold:threshold=0.1",
    "multi_block:length=2,threshold=0.1,block_add_threshold=0.5",
    "dilated",
    "eb_sampler:gamma=0.33,proxy=confidence",
    "hierarchical:threshold=0.9,low_threshold=0.5",
    "local_leap:radius=1",
    "first_hitting",
    "deferred:window=3,threshold=0.7",
)
RULES = [policies.parse(text) for text in (*PLAIN, *TIMED)]
RULES += [
    policies.demote(policies.parse("topk_margin:steps=3"), (END,)),
    policies.demote(policies.parse("entropy:steps=3"), (END,)),
    policies.first_alone(policies.parse("low_confidence:steps=3")),
]
LISTED = {policy.name.partition("(")[0] for policy in RULES}
"""Policies whose certificates must also say yes often enough, at settings of theirs."""
OTHERS = [
    policy
    for policy in (policies.parse(entry.name) for entry in policies.listing())
    if policy.is_certain and policy.name.partition("(")[0] not in LISTED
]
"""Policies that are registered and listed nowhere; what they call sure must be so."""
UNABLE = {"credit", "klass", "saber", "info_gain", "lopa", "wino"}
"""Policies without a certificate, which are decoded under exact."""
BLIND = ("left_to_right", "dilated", "first_hitting", "random", "origin", "sequential")
SIGHTED = [p for p in RULES if not p.name.startswith(BLIND)]
named = pytest.mark.parametrize("policy", RULES, ids=lambda p: p.name)
of_sighted = pytest.mark.parametrize("policy", SIGHTED, ids=lambda p: p.name)


def test_which_policies_have_no_certificate():
    listed = (policies.parse(entry.name) for entry in policies.listing())
    assert {p.name.partition("(")[0] for p in listed if not p.is_certain} == UNABLE


class Outcome(NamedTuple):
    """Results for every case, bool [CASES].

    Attributes:
        is_certain: The certificate under the error bound.
        half_certain: The certificate under half the error bound.
        changed: Some perturbation leads to another step.
    """

    is_certain: np.ndarray
    half_certain: np.ndarray
    changed: np.ndarray


@functools.cache
def decider(policy):
    """A compiled function of two steps' numbers, of many cases at once.

    (numbers of two steps, open positions of the second, error bound) -> the second
    step's tokens and memory, and its certificate under the bound and under half of it.
    """

    def decide(first, second, open_W, bound):
        everywhere = jnp.ones(WIDE, bool)
        memory = policy.step(view_of(first, everywhere, 3), policy.init(WIDE, 6))[1]
        view = view_of(second, open_W, 4)
        half = jax.tree.map(lambda a: a / 2, bound)
        certain = (policy.is_certain(view, memory, d) for d in (bound, half))
        return *policy.step(view, memory), *certain

    return jax.jit(jax.vmap(decide, in_axes=(0, 0, 0, None)))


def view_of(numbers, open_W, n: int):
    """A block some of which is open, whose tokens are beyond bound."""
    tokens_W = jnp.where(open_W, replays.MASK, 7).astype(jnp.int32)
    token_W = jnp.arange(WIDE, dtype=jnp.int32) + 10
    lead_W = jnp.full(WIDE, 99.0)
    pred = Prediction(token_W, *numbers, runner_up=-token_W, lead=lead_W)
    return replays.view_of(
        pred,
        jnp.zeros((WIDE, 6)),
        tokens_W,
        start=jnp.int32(0),
        max_new_tokens=jnp.int32(WIDE),
        n=jnp.int32(n),
        key=replays.key_of(0, n),
    )


def bounds_of(error: float) -> ErrorBound:
    """An error bound with another size for each field."""
    sizes = {"score": 1.0, "lead": 1.0, "gap": 2.0, "margin": 0.5, "entropy": 1.0}
    sizes |= {"router": 0.0}
    return ErrorBound(**{k: jnp.float32(error * v) for k, v in sizes.items()})


def close_calls(rng, error: float) -> list[np.ndarray]:
    """Numbers [CASES, W] near each other and near what rules compare them with."""
    levels = {
        "score": [-1.0, 0.0, 0.847, 1.0986, 2.197, 4.0],
        "gap": [0.5, 1.0, 2.0],
        "margin": [0.3, 1.0, 2.0],
        "entropy": [0.1, 0.2, 0.3, 0.5],
    }

    def spread(size):
        return rng.normal(0, 2 * error, (CASES, WIDE)) * size

    sizes = bounds_of(1.0)
    return [
        np.abs(rng.choice(v, (CASES, WIDE)) + spread(float(getattr(sizes, k))))
        * (1 if min(v) > 0 else rng.choice([-1, 1, 1], (CASES, WIDE)))
        for k, v in levels.items()
    ]


def clear_calls(rng, error: float) -> list[np.ndarray]:
    """Numbers that lie far apart, and far from what rules compare them with."""
    del error

    def shuffled(values):
        return rng.permuted(np.tile(values, (CASES, 1)), axis=1)

    return [
        shuffled([-3.0, -1.5, 0.6, 1.7, 3.0, 4.5]),
        shuffled([0.2, 0.4, 0.8, 3, 6, 9]),
        shuffled([0.1, 0.4, 0.9, 1.6, 2.6, 4.0]),
        shuffled([0.04, 0.11, 0.25, 0.47, 0.8, 1.3]),
    ]


def directions_of(rng) -> np.ndarray:
    """Directions [DIRECTIONS, fields, W] in -1..1; a higher score has less entropy."""
    directions = [np.zeros(WIDE), np.ones(WIDE), -np.ones(WIDE)]
    for i, j in itertools.permutations(range(WIDE), 2):
        directions.append(np.eye(WIDE)[i] - np.eye(WIDE)[j])
    alike = np.stack(directions)[:, None] * np.array([1, 1, 1, -1])[None, :, None]
    corners = rng.choice([-1.0, 1.0], (24, len(FIELDS), WIDE))
    inside = rng.uniform(-1, 1, (8, len(FIELDS), WIDE))
    directions = np.concatenate([alike, corners, inside])
    assert len(directions) == DIRECTIONS
    return directions


def outcome(policy, seed: int, error: float, numbers=close_calls) -> Outcome:
    """The certificates of random cases, and the effect of perturbations on them."""
    rng, bound = np.random.default_rng(seed), bounds_of(error)
    first, second = (np.stack(numbers(rng, error), axis=1) for _ in range(2))
    open_CW = rng.random((CASES, WIDE)) < 0.75
    open_CW[:, 2] |= ~open_CW.any(axis=1)
    way_PFW = directions_of(rng)
    # A little less than the error, as sums are rounded to float32.
    size_F = 0.999 * np.array([float(getattr(bound, name)) for name in FIELDS])
    way_PFW = size_F[:, None] * way_PFW
    near = second[:, None] + way_PFW[None]
    near[:, :, 3] = second[:, None, 3] * (1 + size_F[3]) ** (way_PFW[:, 3] / size_F[3])

    def many(a):
        return np.repeat(a, len(way_PFW), axis=0)

    def split(a):
        return tuple(np.moveaxis(a, 1, 0).astype(np.float32))

    args = split(many(first)), split(near.reshape(-1, len(FIELDS), WIDE)), many(open_CW)
    *step, certain, half = jax.device_get(decider(policy)(*args, bound))
    changed_C = np.zeros(CASES, bool)
    for part in jax.tree.leaves(step):
        assert part.dtype.kind in "ib", "a memory of numbers would need errors, too"
        by_case = part.reshape(CASES, len(way_PFW), -1)
        changed_C |= (by_case != by_case[:, :1]).any(axis=(1, 2))
    # The first direction is none at all.
    certain_C, half_C = (a.reshape(CASES, -1)[:, 0] for a in (certain, half))
    return Outcome(certain_C, half_C, changed_C)


@pytest.mark.parametrize("policy", RULES + OTHERS, ids=lambda p: p.name)
@settings(max_examples=6)
@given(st.integers(0, 999), st.sampled_from([1e-3, 0.02, 0.1]))
def test_what_is_sure_no_push_can_change(policy, seed, error):
    result = outcome(policy, seed, error)
    assert not (result.is_certain & result.changed).any()


@of_sighted
def test_half_the_errors_would_not_do(policy):
    results = [outcome(policy, seed, 0.05) for seed in range(6)]
    assert sum(np.sum(one.half_certain & one.changed) for one in results)


@named
def test_most_of_what_no_push_changes_is_sure(policy):
    result = outcome(policy, 1, 1e-3, clear_calls)
    assert np.mean(result.is_certain) > 0.9
    close = [outcome(policy, seed, 0.02) for seed in range(4)]
    calm = sum(np.sum(~one.changed) for one in close)
    # Of eb_sampler by confidence only what keeps its order; of others nearly all.
    assert sum(np.sum(one.is_certain) for one in close) > 0.5 * calm


@of_sighted
@pytest.mark.parametrize("error", [np.inf, np.nan])
def test_of_errors_that_nobody_knows_nothing_is_sure(policy, error):
    numbers = split_of([[0.1] * WIDE, [0.2] * WIDE, [0.3] * WIDE, [0.1] * WIDE])
    open_W = np.ones((MANY, WIDE), bool)
    *_, certain, half = decider(policy)(numbers, numbers, open_W, bounds_of(error))
    # Alone, a first token is committed whatever is said of it.
    alone = policy.name.startswith("first_alone")
    assert alone or not (certain.any() or half.any())


ORDERED = [
    p
    for p in SIGHTED
    if not any(word in p.name for word in ("first_alone", "alg_temp=0.5", "leftmost"))
]
"""Policies that rank positions by the numbers alone."""


@pytest.mark.parametrize("policy", ORDERED, ids=lambda p: p.name)
def test_equals_are_not_sure(policy):
    even = split_of([[0.5] * WIDE, [1.5] * WIDE, [0.3] * WIDE, [0.2] * WIDE])
    open_W = np.ones((MANY, WIDE), bool)
    *_, sure, _ = decider(policy)(even, even, open_W, bounds_of(1e-4))
    assert not sure.any()


def split_of(rows):
    """The same numbers [MANY, W] for all, in the shape that is compiled already."""
    return tuple(np.tile(np.float32(row), (MANY, 1)) for row in rows)


def test_numbers_of_a_known_position_are_not_sure_with_its_token():
    # Its token decides whether `demote` hides its gap, which the answer's mean is of.
    rule = policies.prophet(4, 2, 1.5, 1, answer_start=1, answer_length=3)
    policy, open_W = policies.demote(rule, (END,)), jnp.arange(WIDE) != 3
    numbers = [jnp.arange(WIDE, dtype=jnp.float32)] * len(FIELDS)

    @jax.jit
    def is_certain(lead_W):
        view = view_of(numbers, open_W, 3)
        view = view._replace(pred=view.pred._replace(lead=lead_W))
        assert policy.is_certain is not None
        return policy.is_certain(view, policy.init(WIDE, 6), bounds_of(1e-3))

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
    numbers, open_CW = [*others, jnp.asarray(lost_CW)], jnp.ones((4, WIDE), bool)
    tokens_CW, _, sure, _ = decider(policies.parse(rule))(
        numbers, numbers, open_CW, bounds_of(2e-4)
    )
    assert (np.asarray(tokens_CW) == np.asarray(tokens_CW)[:1]).all()
    assert sure.all() or not rule.startswith("entropy:")

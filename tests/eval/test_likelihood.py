"""Log-likelihoods: what they are by definition, on tables and on every family."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import checkpoint_folders, fake_model

from jaxdave.core.model_api import ModelFns
from jaxdave.eval.likelihood import masks
from jaxdave.eval.likelihood.batching import (
    Question,
    greedy_texts,
    log_likelihoods,
)
from jaxdave.eval.likelihood.score import Scorer, log_probabilities, make_scorer
from jaxdave.models.forward import forward
from jaxdave.models.presets import preset

IDS, MASK = 3, 3
ORDERS = list(itertools.permutations(range(3)))
TARGETS = list(itertools.product(range(IDS), repeat=3))
CONTEXT = (1, 0)


def values(scorer, params, questions, rule, **settings) -> np.ndarray:
    """The log-likelihoods, in the order of their questions."""
    by_index = dict(log_likelihoods(scorer, params, questions, rule, **settings))
    return np.array([by_index[index] for index in range(len(questions))])


# A model that is a table: logits of every state of three tokens at every position.


@functools.cache
def table() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(4, 4, 4, 3, 5)).astype(np.float32) * 2


def unused(*args):
    raise NotImplementedError


def table_model() -> ModelFns:
    """Full attention over five rows of vocabulary, read two at a time.

    One row is the mask id, one is padding.
    """

    def forward(params, tokens_KL, start, end, cache):
        at = jnp.arange(tokens_KL.shape[1], dtype=jnp.int32)[None, :, None]
        at = jnp.broadcast_to(at, (*tokens_KL.shape, 1))
        state = jnp.broadcast_to(tokens_KL[:, None, :3], (*tokens_KL.shape, 3))
        return jnp.concatenate([state, at], axis=-1), None

    def prefill(params, tokens_T, begin, start, end, window, prompt):
        return jnp.zeros((window, 4), jnp.int32), None

    def logits(params, hidden_RE, first):
        a, b, c, at = hidden_RE.T
        ids = first + jnp.arange(2, dtype=jnp.int32)
        logits_RV = params[a, b, c, jnp.minimum(at, 2)]
        return logits_RV[:, ids]

    return ModelFns(forward, prefill, logits, unused, 5, 4, (MASK,), 2)


TABLE = Scorer(table_model(), None, False, MASK, 64)


def log_probs(state, place) -> np.ndarray:
    """Log-probabilities of the ids at a place of a state, in double precision."""
    logits = table()[(*state, place)][:IDS].astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def chain(target, order) -> float:
    state, total = [MASK] * 3, 0.0
    for place in order:
        total += float(log_probs(tuple(state), place)[target[place]])
        state[place] = target[place]
    return total


def test_every_order_of_the_table_is_a_distribution():
    for order in ORDERS:
        assert math.isclose(sum(math.exp(chain(x, order)) for x in TARGETS), 1)


def test_the_exact_rules_are_the_mean_of_all_orders_and_the_chain():
    questions = [Question(CONTEXT, target) for target in TARGETS]
    params = jnp.asarray(table())
    bound = values(TABLE, params, questions, masks.bound(7))
    exact = values(TABLE, params, questions, masks.chain)
    chains = np.array([[chain(x, order) for order in ORDERS] for x in TARGETS])
    np.testing.assert_allclose(bound, chains.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(exact, chains[:, ORDERS.index((0, 1, 2))], atol=1e-5)
    assert math.isclose(np.exp(exact).sum(), 1, rel_tol=1e-5)
    # What an any-order model says of a text: any order, each as likely.
    any_order = np.log(np.exp(chains).mean(axis=1))
    assert np.all(bound <= any_order + 1e-5) and np.exp(bound).sum() < 1
    assert (any_order - bound).max() > 0.1


def by_confidence(target, log_probs_of) -> tuple[float, bool]:
    """The chain that reveals what is most confident first, and if it is greedy.

    log_probs_of: (state, place) -> log-probabilities of the ids.
    """
    state, total, is_greedy = [MASK] * len(target), 0.0, True
    while MASK in state:
        left = [place for place in range(len(target)) if state[place] == MASK]
        said = {place: log_probs_of(tuple(state), place) for place in left}
        place = max(left, key=lambda place: said[place].max())
        total += float(said[place][target[place]])
        is_greedy &= int(said[place].argmax()) == target[place]
        state[place] = target[place]
    return total, is_greedy


def test_other_orders_of_the_table():
    """Right to left, all at once, each given the others, most confident first."""
    questions = [Question(CONTEXT, target) for target in TARGETS]
    params = jnp.asarray(table())
    reverse = [chain(x, (2, 1, 0)) for x in TARGETS]
    all_masks = (MASK,) * 3
    one_pass = [sum(log_probs(all_masks, i)[x[i]] for i in range(3)) for x in TARGETS]
    others = lambda x, i: (*x[:i], MASK, *x[i + 1 :])  # noqa: E731
    pseudo = [sum(log_probs(others(x, i), i)[x[i]] for i in range(3)) for x in TARGETS]
    confident = [by_confidence(x, log_probs) for x in TARGETS]
    want = {
        "reverse": reverse,
        "one_pass": one_pass,
        "pseudo": pseudo,
        "confidence": [value for value, _ in confident],
    }
    for name, expected_values in want.items():
        actual = values(TABLE, params, questions, masks.RULES[name](0), batch_size=27)
        np.testing.assert_allclose(actual, expected_values, atol=1e-5, err_msg=name)
        # One process, one distribution; of pseudo-likelihoods there is none.
        total = np.exp(actual).sum()
        assert math.isclose(total, 1, rel_tol=1e-5) == (name != "pseudo")
    assert np.abs(np.subtract(want["confidence"], want["reverse"])).max() > 0.1
    greedy = dict(greedy_texts(TABLE, params, questions, batch_size=27))
    assert [greedy[i] for i in range(27)] == [is_greedy for _, is_greedy in confident]
    assert sum(greedy.values()) == 1


def test_samples_converge_to_the_exact_bound():
    questions = [Question(CONTEXT, target) for target in TARGETS]
    params, rounds = jnp.asarray(table()), 60
    exact = values(TABLE, params, questions, masks.bound(7))
    drawn = np.stack(
        [
            values(TABLE, params, questions, masks.bound(3), seed=seed, batch_size=32)
            for seed in range(rounds)
        ]
    )
    error = drawn.std(axis=0) / math.sqrt(rounds)
    assert error.min() > 1e-3  # there is something to converge
    away = (drawn.mean(axis=0) - exact) / error
    assert np.abs(away).max() < 4.5 and np.abs(away.mean()) < 0.5


# Every family, by the model over the whole canvas.

SMALL = dict(
    num_layers=2, hidden=16, inter=24, heads=4, head_dim=8, rotary_dim=8,
    vocab_rows=50, vocab_size=48, mask_id=47, pad_id=46, stop_ids=(45,),
)  # fmt: skip
FAMILIES = {
    "sdar": preset("sdar-1m", block_length=4, **SMALL),
    "fast-dllm-v2": preset(
        "fast-dllm-v2-1.5b", block_length=4, **SMALL | {"kv_heads": 2}
    ),
    "llada": preset("llada-1m", **SMALL),
    "dream": preset("dream-1m", **SMALL),
}


@functools.cache
def logits_by_forward(family: str):
    config = FAMILIES[family]
    forward_fn = jax.jit(forward(config))
    params = checkpoint_folders.random(config, 3)

    def logits(canvas):
        return np.asarray(
            forward_fn(params, jnp.asarray([canvas], jnp.int32))[0], np.float64
        )

    return logits


def expected(family: str, question: Question, stretch, end, known, guidance=0.0):
    """The mean over all orders of one stretch, by definition."""
    text = question.context + question.target
    total = 0.0
    for size in range(1, len(stretch) + 1):
        for hidden in itertools.combinations(stretch, size):
            canvas = [
                text[p] if p < known else FAMILIES[family].mask_id for p in range(end)
            ]
            canvas = [47 if p in hidden else x for p, x in enumerate(canvas)]
            logits = logits_by_forward(family)(canvas)[:, :47]
            if guidance:
                prompt = len(question.context)
                unconditional = logits_by_forward(family)(
                    [47] * prompt + canvas[prompt:]
                )[:, :47]
                logits = unconditional + (guidance + 1) * (logits - unconditional)
            log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            share = 1 / (size * math.comb(len(stretch), size))
            total += share * sum(log_probs[p, text[p]] for p in hidden)
    return total


@pytest.mark.parametrize("family", ["sdar", "fast-dllm-v2"])
def test_blocks_are_scored_after_the_clean_text_before_them(family):
    """A context that ends inside a block, past a tile; a target that ends in one."""
    text = fake_model.prompts_of([71], most=45)[0]
    question = Question(tuple(text[:66]), tuple(text[66:]))
    blocks = [range(66, 68), range(68, 71)]
    expected_value = sum(
        expected(family, question, block, end, block[-1] + 1)
        for block, end in zip(blocks, (68, 72), strict=True)
    )
    scorer, params = (
        make_scorer(FAMILIES[family]),
        checkpoint_folders.random(FAMILIES[family], 3),
    )
    actual = values(scorer, params, [question], masks.bound(16))
    np.testing.assert_allclose(actual, expected_value, atol=2e-4)


@pytest.mark.parametrize(("family", "guidance"), [("llada", 0.5), ("dream", 0.0)])
def test_full_attention_scores_the_target_as_one_stretch(family, guidance):
    text = fake_model.prompts_of([14], most=45)[0]
    question = Question(tuple(text[:10]), tuple(text[10:]))
    expected_value = expected(family, question, range(10, 14), 14, 14, guidance)
    config = FAMILIES[family]
    scorer, params = (
        make_scorer(config, guidance=guidance),
        checkpoint_folders.random(config, 3),
    )
    actual = values(scorer, params, [question], masks.bound(16))
    np.testing.assert_allclose(actual, expected_value, atol=2e-4)


def stated(family: str, question: Question, kind: str, guidance: float) -> float:
    """A likelihood in plain numpy, from logits over the whole canvas."""
    mask = FAMILIES[family].mask_id
    begin, text = len(question.context), question.context + question.target
    stop, whole = len(text), (*text, *question.suffix)
    is_causal = FAMILIES[family].attention == "block_causal"
    length = FAMILIES[family].block_length if is_causal else len(whole)
    edges = sorted({begin, stop, *range(0, stop, length)} - set(range(begin)))

    def log_probs_of(first, end, state, place):
        """At a place of a stretch, which ends at `end` for the model."""
        canvas = [*whole[:first], *state, *whole[first + len(state) : end]]
        canvas += [mask] * (end - len(canvas))
        logits = logits_by_forward(family)(canvas)[first + place, :47]
        if guidance:
            is_target = [begin <= p < stop for p in range(len(canvas))]
            bare = [x if t else mask for x, t in zip(canvas, is_target, strict=True)]
            without = logits_by_forward(family)(bare)[first + place, :47]
            logits = without + (guidance + 1) * (logits - without)
        return logits - np.log(np.exp(logits).sum())

    total = 0.0
    for first, stretch_end in itertools.pairwise(edges):
        target = whole[first:stretch_end]
        end = -(-stretch_end // length) * length if is_causal else len(whole)
        at = functools.partial(log_probs_of, first, end)
        count = len(target)
        hidden = lambda *shown: tuple(  # noqa: E731
            x if i in shown else mask
            for i, x in enumerate(target)  # noqa: B023
        )
        if kind == "confidence":
            state = [mask] * count
            while mask in state:
                left = [i for i in range(count) if state[i] == mask]
                said = {i: at(tuple(state), i) for i in left}
                best = max(left, key=lambda i: said[i].max())  # noqa: B023
                total += said[best][target[best]]
                state[best] = target[best]
            continue
        for i in range(count):
            shown = {
                "chain": range(i),
                "reverse": range(i + 1, count),
                "one_pass": (),
                "pseudo": [j for j in range(count) if j != i],
            }[kind]
            total += at(hidden(*shown), i)[target[i]]
    return float(total)


KINDS = ("chain", "reverse", "one_pass", "pseudo", "confidence")


@pytest.mark.parametrize(
    ("family", "guidance"),
    [("llada", 0.7), ("dream", 0.0), ("sdar", 0), ("dream", 2.0)],
)
def test_every_order_is_what_it_is_by_definition(family, guidance):
    """Full attention with text behind the target, too: a context before its target."""
    text = tuple(fake_model.prompts_of([13], most=45)[0])
    questions = [Question(text[:6], text[6:11])]
    if family != "sdar":
        questions.append(Question(text[:2], text[2:5], text[5:13]))
    scorer = make_scorer(FAMILIES[family], guidance=guidance)
    params = checkpoint_folders.random(FAMILIES[family], 3)
    found = {}
    for kind in KINDS:
        actual = values(scorer, params, questions, masks.RULES[kind](0))
        want = [stated(family, question, kind, guidance) for question in questions]
        np.testing.assert_allclose(actual, want, atol=3e-4, err_msg=kind)
        found[kind] = actual[0]
    assert len({round(float(value), 2) for value in found.values()}) == len(KINDS)


def test_a_suffix_is_seen_by_the_bound_and_masked_for_guidance():
    text = tuple(fake_model.prompts_of([9], most=45)[0])
    one = Question((), text[:1], text[1:])
    for guidance in (0.0, 0.5):
        scorer = make_scorer(FAMILIES["llada"], guidance=guidance)
        params = checkpoint_folders.random(FAMILIES["llada"], 3)
        (actual,) = values(scorer, params, [one], masks.bound(1))
        want = stated("llada", one, "one_pass", guidance)
        np.testing.assert_allclose(actual, want, atol=2e-4)
        (alone,) = values(scorer, params, [one._replace(suffix=())], masks.bound(1))
        assert abs(alone - actual) > 1e-2


@pytest.mark.parametrize("family", ["sdar", "dream"])
def test_answers_depend_on_neither_batch_nor_order(family):
    scorer, params = (
        make_scorer(FAMILIES[family]),
        checkpoint_folders.random(FAMILIES[family], 3),
    )
    texts = fake_model.prompts_of([11, 12, 11, 12, 12], most=45)
    questions = [Question(tuple(x[:7]), tuple(x[7:])) for x in texts]
    rule = masks.bound(5)
    alone = values(scorer, params, questions, rule, batch_size=1)
    together = values(scorer, params, questions, rule, batch_size=8)
    turned = values(scorer, params, questions[::-1], rule, batch_size=8)[::-1]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(turned, alone, atol=1e-4)
    other = values(scorer, params, questions, rule, batch_size=8, seed=1)
    assert np.abs(other - alone).min() > 1e-3


def test_certain_and_hopeless_tokens_keep_their_logs():
    """Neither end saturates: log p is -exp(-gap) or -gap."""

    def logits(params, hidden_RE, first):
        return hidden_RE

    model = ModelFns(unused, unused, logits, unused, 2, 2, (), 2)
    hidden = jnp.asarray([[80.0, 0.0], [80.0, 0.0]])
    actual = log_probabilities(model, None, hidden, jnp.asarray([0, 1]))
    np.testing.assert_allclose(actual, [-math.exp(-80), -80], rtol=1e-5)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (Question((1,), ()), "target 0 is empty"),
        (Question((1, 3), (1,)), "holds the mask id 3"),
        (Question((1,) * 60, (1,) * 5), "has 65 tokens, but the model allows 64"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(question, words):
    with pytest.raises(ValueError, match=words) as caught:
        values(TABLE, jnp.asarray(table()), [question], masks.chain)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "guidance", "words"),
    [
        (
            "sdar",
            0.5,
            "guidance=0.5 needs full attention, and 'sdar-1m' is block-causal",
        ),
        ("llada", -0.5, "guidance=-0.5 must be 0"),
        ("llada", math.nan, "guidance=nan must be 0"),
        ("llada", math.inf, "guidance=inf must be 0"),
    ],
)
def test_a_guidance_that_cannot_be_is_refused_in_one_line(family, guidance, words):
    with pytest.raises(ValueError, match=words) as caught:
        make_scorer(FAMILIES[family], guidance=guidance)
    assert "\n" not in str(caught.value)


def test_an_unknown_rule_and_a_suffix_of_blocks_are_refused_in_one_line():
    params, question = jnp.asarray(table()), Question((1,), (2,), (0,))
    with pytest.raises(ValueError, match="rule='random' is unknown; use 'confidence'"):
        values(TABLE, params, [question], "random")
    scorer = make_scorer(FAMILIES["sdar"])
    with pytest.raises(ValueError, match="question 0 has a suffix, which a block-caus"):
        values(scorer, None, [question], masks.chain)

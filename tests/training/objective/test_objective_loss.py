"""Losses of the published objectives, against plain statements of their formulas.

The plain statement evaluates each sample by itself, and each masked block in a call of
its own behind clean text, and adds up cross entropies in numpy.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoint_folders import random

from jaxdave.models.forward import forward
from jaxdave.models.presets import preset
from jaxdave.training.data.token_batch import align_answers, pack_samples
from jaxdave.training.objective.answer_views import (
    coupled_views,
    diffucoder,
    trajectory_views,
    view_log_probs,
)
from jaxdave.training.objective.editing import Editing
from jaxdave.training.objective.masking import Masking
from jaxdave.training.objective.objective_loss import (
    corrupt,
    corrupted_loss,
    make_objective_loss,
)
from jaxdave.training.objective.objectives import OBJECTIVES, Objective, check_model
from jaxdave.training.objective.sequence_model import transformer_nats

SMALL = {"num_layers": 2, "hidden": 16, "inter": 24, "head_dim": 8, "rotary_dim": 8}
# The network's own attention and shift do not matter here: the objective says both.
CAUSAL = preset("sdar-1m", block_length=2, **SMALL)
FULL = preset("llada-1m", **SMALL)
SAMPLES = [([5, 6, 7], [8, 9]), ([3], [4, 10]), ([], [11, 12, 13, 14, 15])]
PACKED = pack_samples(
    [SAMPLES[:2], SAMPLES[2:]], length=8, pad_id=CAUSAL.pad_id, block_length=2
)
# Prompts of whole blocks, so that blocks counted from the answer are those counted
# from the beginning; other lengths are in the test of the mask.
ALIGNED = align_answers(
    [([1, 2, 3, 4], [5, 6, 7]), ([8, 9], [10])],
    prompt_columns=4,
    answer_columns=4,
    pad_id=CAUSAL.pad_id,
    block_length=2,
)
PLAIN_ROWS = 32


@functools.cache
def network(config):
    """Parameters, nats over a layout, and logits of plain rows with valid tokens."""
    return random(config), jax.jit(transformer_nats(config)), jax.jit(forward(config))


def sample_columns(batch):
    """(row, columns) of every sample of a batch."""
    sample_BT = np.asarray(batch.sample_BT)
    for row, sample_T in enumerate(sample_BT):
        for sample in np.unique(sample_T[sample_T >= 0]):
            yield row, np.flatnonzero(sample_T == sample)


def plain_nats(objective: Objective, batch, noisy_BT, config) -> np.ndarray:
    """Cross entropies [B, T] of every token; NaN where none is predicted."""
    params, _, plain_logits = network(config)
    block, length = objective.block_length, noisy_BT.shape[1]
    rows, valid, places = [], [], []
    for row, columns in sample_columns(batch):
        clean, noisy = batch.tokens_BT[row, columns], noisy_BT[row, columns]
        steps = range(0, len(columns), block) if block else [0]
        for begin in steps:
            end = min(begin + block, len(columns)) if block else len(columns)
            seen = np.zeros(length, np.int32)
            seen[:end] = [*clean[:begin], *noisy[begin:end]]
            rows.append(seen)
            valid.append(np.arange(length) < end)
            places.append((row, columns, begin, end))
    padding = PLAIN_ROWS - len(rows)
    logits = plain_logits(
        params,
        jnp.asarray(np.pad(rows, ((0, padding), (0, 0)))),
        jnp.asarray(np.pad(valid, ((0, padding), (0, 0)), constant_values=True)),
    )
    nats = np.full(noisy_BT.shape, np.nan)
    for logits_TV, (row, columns, begin, end) in zip(logits, places, strict=False):
        logits_TV = np.asarray(logits_TV, np.float64)
        log_z_T = np.log(np.exp(logits_TV).sum(-1))
        for source in range(begin, end):
            place = source + objective.shift
            if place < len(columns):
                token = batch.tokens_BT[row, columns[place]]
                nats[row, columns[place]] = log_z_T[source] - logits_TV[source, token]
    return nats


def keep_first(batch):
    """The batch without the first token of each sample among its answers."""
    is_answer_BT = batch.is_answer_BT.copy()
    for row, columns in sample_columns(batch):
        is_answer_BT[row, columns[0]] = False
    return batch._replace(is_answer_BT=is_answer_BT)


def masked_over_ratio(nats, view):
    return np.where(view.is_masked, nats / np.maximum(view.ratio, 1e-30), 0)


def by_answer_tokens(batch, nats, views):
    return sum(
        masked_over_ratio(n, v).sum() for n, v in zip(nats, views, strict=True)
    ) / maskable_count(batch, views)


def maskable_count(batch, views):
    return batch.is_answer_BT.sum() * len(views)


def by_tokens(batch, nats, views):
    return masked_over_ratio(nats[0], views[0]).sum() / (batch.sample_BT >= 0).sum()


def by_answers(batch, nats, views):
    losses = masked_over_ratio(nats[0], views[0])
    means = [
        losses[row, columns].sum() / batch.is_answer_BT[row, columns].sum()
        for row, columns in sample_columns(batch)
    ]
    return np.mean(means)


def by_masked(batch, nats, views):
    masked = [n[v.is_masked] for n, v in zip(nats, views, strict=True)]
    return np.concatenate(masked).mean()


def by_columns(batch, nats, views):
    losses = np.where(views[0].is_masked, nats[0], 0)
    return np.mean(losses[:, 4:].sum(axis=1) / 4)


def with_cart(p, batch, nats, views):
    total, masked = 0.0, views[0].is_masked
    for row, columns in sample_columns(batch):
        for i in columns:
            weight = sum(
                0.5 * p * (1 - p) ** max(abs(i - j) - 1, 0)
                for j in columns
                if j != i and not masked[row, j]
            )
            total += weight * nats[0][row, i] if masked[row, i] else 0
    return total / batch.is_answer_BT.sum()


def with_edits(weight, keep_weight, batch, nats, views):
    view = views[0]
    seen_wrong = ~view.is_masked & (view.noisy != batch.tokens_BT)
    kept = batch.is_answer_BT & ~view.is_masked & ~seen_wrong
    total = nats[0][view.is_masked].sum() + weight * nats[0][seen_wrong].sum()
    count = view.is_masked.sum() + seen_wrong.sum()
    if keep_weight:
        total, count = total + keep_weight * nats[0][kept].sum(), count + kept.sum()
    return total / count


@dataclasses.dataclass
class View:
    """One masking of a batch, as numpy arrays."""

    noisy: np.ndarray
    is_masked: np.ndarray
    ratio: np.ndarray


EDITING = Editing(ratio=0.6, weight=0.5)
KEEPING = dataclasses.replace(EDITING, keep_weight=0.25)
CASES = {
    "llada-pretrain": (OBJECTIVES["llada-pretrain"](), by_tokens),
    "llada-sft": (OBJECTIVES["llada-sft"](), by_answers),
    "mdlm": (OBJECTIVES["mdlm"](), by_answer_tokens),
    "dream": (OBJECTIVES["dream"](), functools.partial(with_cart, 0.3)),
    "dream-0.1": (OBJECTIVES["dream"](0.1), functools.partial(with_cart, 0.1)),
    "bd3lm": (OBJECTIVES["bd3lm"](2, low=0.3, high=0.9), by_answer_tokens),
    "sdar": (OBJECTIVES["sdar"](2), by_answer_tokens),
    "a2d": (OBJECTIVES["a2d"](2), by_answer_tokens),
    "a2d-shift": (OBJECTIVES["a2d"](2, shift=True), by_answer_tokens),
    "fast-dllm-v2": (OBJECTIVES["fast-dllm-v2"](2), by_masked),
    "llada2": (OBJECTIVES["llada2"](2), by_masked),
    "llada2-editing": (
        OBJECTIVES["llada2-editing"](2, EDITING),
        functools.partial(with_edits, 0.5, 0),
    ),
    "llada2-keeping": (
        OBJECTIVES["llada2-editing"](2, KEEPING),
        functools.partial(with_edits, 0.5, 0.25),
    ),
    "dllm-rl-full": (OBJECTIVES["dllm-rl-full"](shift=False), by_masked),
    "dllm-rl-shift": (OBJECTIVES["dllm-rl-full"](shift=True), by_masked),
    "dllm-rl-block": (OBJECTIVES["dllm-rl-block"](2, 4), by_columns),
}


KEEPING_FIRST = {"bd3lm", "dream", "dream-0.1", "a2d-shift", "fast-dllm-v2"}
KEEPING_FIRST |= {"dllm-rl-shift"}


def test_every_objective_has_a_case():
    assert set(OBJECTIVES) <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_loss_is_its_formula(name):
    objective, statement = CASES[name]
    config = CAUSAL if objective.block_length else FULL
    batch = ALIGNED if objective.layout == "clean_first" else PACKED
    params, nats_fn, _ = network(config)
    ids = {"vocab_size": config.vocab_size, "mask_id": config.mask_id}
    corruption = corrupt(objective, batch, jax.random.key(3), **ids)
    sums = corrupted_loss(objective, nats_fn, params, batch, corruption)
    noisy, masked = map(np.asarray, corruption[:2])
    views = [
        View(*parts)
        for parts in zip(
            *(
                np.split(a, len(noisy) // 2)
                for a in (noisy, masked, np.asarray(corruption.ratio_BT))
            ),
            strict=True,
        )
    ]
    assert masked.any()
    nats = [plain_nats(objective, batch, view.noisy, config) for view in views]
    if name in KEEPING_FIRST:
        batch = keep_first(batch)
    assert not masked[~np.tile(batch.is_answer_BT, (len(views), 1))].any()
    expected = statement(batch, nats, views)
    np.testing.assert_allclose(float(sums.mean()), expected, rtol=1e-4)


def test_the_loss_of_a_model_masks_and_evaluates():
    objective = OBJECTIVES["sdar"](2)
    params, nats_fn, _ = network(CAUSAL)
    key = jax.random.key(5)
    ids = {"vocab_size": CAUSAL.vocab_size, "mask_id": CAUSAL.mask_id}
    corruption = corrupt(objective, PACKED, key, **ids)
    expected = corrupted_loss(objective, nats_fn, params, PACKED, corruption)
    loss = jax.jit(make_objective_loss(CAUSAL, objective))
    sums = loss(params, PACKED, key)
    np.testing.assert_allclose(float(sums.total), float(expected.total), rtol=1e-5)
    assert float(sums.divisor) == float(expected.divisor) == 9
    other = loss(params, PACKED, jax.random.key(6))
    assert float(other.total) != float(expected.total)
    empty = PACKED._replace(is_answer_BT=np.zeros_like(PACKED.is_answer_BT))
    assert float(loss(params, empty, key).mean()) == 0


def test_a_chunked_head_gives_the_same_loss_and_gradient():
    params, _, _ = network(CAUSAL)
    key = jax.random.key(5)

    def value_and_grad(columns_at_once):
        objective = OBJECTIVES["a2d"](2)
        loss = make_objective_loss(CAUSAL, objective, columns_at_once)
        mean = jax.value_and_grad(lambda p: loss(p, PACKED, key).mean())
        return jax.jit(mean)(params)

    (value, grads), (chunked, chunked_grads) = map(value_and_grad, (None, 3))
    np.testing.assert_allclose(chunked, value, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
    jax.tree.map(close, chunked_grads, grads)


def test_a_head_of_no_columns_is_refused():
    with pytest.raises(ValueError, match="columns_at_once=0"):
        transformer_nats(CAUSAL, 0)


def test_coupled_log_probs_are_the_weighted_sum_of_three_views():
    objective = diffucoder(shift=True)
    params, nats_fn, _ = network(FULL)
    key, mask_id = jax.random.key(2), FULL.mask_id
    views, weight = coupled_views(objective, PACKED, key, mask_id=mask_id)
    found = view_log_probs(objective, nats_fn, params, PACKED, views, weight)
    answer = keep_first(PACKED).is_answer_BT
    ids = {"vocab_size": FULL.vocab_size, "mask_id": mask_id}
    ratio = np.asarray(corrupt(objective, PACKED, key, **ids).ratio_BT)[:2]
    noisy = np.split(np.asarray(views), 3)
    full, drawn, rest = (part == mask_id for part in noisy)
    assert (full == answer).all() and (drawn ^ rest == answer).all()
    nats = [plain_nats(objective, PACKED, part, FULL) for part in noisy]
    one_view = np.where(drawn, nats[1] / ratio, nats[2] / (1 - ratio))
    expected = np.where(answer, -(nats[0] + one_view) / 2, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    with pytest.raises(ValueError, match="complementary=False"):
        coupled_views(Objective(), PACKED, key, mask_id=mask_id)


def test_log_probs_of_a_trajectory_are_those_at_its_states():
    objective = OBJECTIVES["sdar"](2)
    params, nats_fn, _ = network(CAUSAL)
    step = np.random.default_rng(0).integers(0, 2, PACKED.tokens_BT.shape)
    views, weight = trajectory_views(
        objective, PACKED, jnp.asarray(step), steps=2, mask_id=CAUSAL.mask_id
    )
    found = view_log_probs(objective, nats_fn, params, PACKED, views, weight)
    answer = PACKED.is_answer_BT
    expected = np.zeros(step.shape)
    for now in range(2):
        noisy = np.where(answer & (step >= now), CAUSAL.mask_id, PACKED.tokens_BT)
        nats = plain_nats(objective, PACKED, noisy, CAUSAL)
        expected -= np.where(answer & (step == now), nats, 0)
    assert (expected < 0).sum() == answer.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layout": "sideways"}, "layout='sideways' must be one of"),
        ({"weight": "two"}, "weight='two' must be one of"),
        ({"normalise": "batch"}, "normalise='batch' must be one of"),
        ({"cart_p": 0}, "cart_p=0"),
        ({"block_length": 0}, "block_length=0"),
        ({"layout": "noisy_first"}, "give block_length"),
        ({"masking": Masking(per="block")}, "give block_length"),
        ({"answer_start": 3}, "answer_start=3 with layout='in_place'"),
        ({"layout": "clean_first", "block_length": 2}, "answer_start=None"),
        (
            {"layout": "clean_first", "block_length": 2, "answer_start": 0},
            "answer_start=0 must be at least 1",
        ),
        (
            {
                "layout": "clean_first",
                "block_length": 2,
                "answer_start": 2,
                "shift": True,
            },
            "use 'noisy_first'",
        ),
        (
            {"layout": "noisy_first", "block_length": 2, "weight": "cart"},
            "use 'in_place'",
        ),
        ({"normalise": "answer_columns"}, "use layout='clean_first'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        Objective(**settings)
    assert "\n" not in str(error.value)


def test_an_objective_of_another_model_is_refused():
    with pytest.raises(ValueError, match="take an objective with shift=False"):
        make_objective_loss(FULL, OBJECTIVES["dream"]())
    with pytest.raises(ValueError, match="block_length=4 but sdar-1m .*=2;"):
        make_objective_loss(CAUSAL, OBJECTIVES["sdar"](4))
    with pytest.raises(ValueError, match="full attention, block_length=None"):
        make_objective_loss(FULL, OBJECTIVES["llada2"](4))
    check_model(OBJECTIVES["dream"](), preset("dream-1m"))


def test_an_objective_is_a_setting_of_jit():
    objective = OBJECTIVES["mdlm"]()
    assert jax.tree.leaves(objective) == []
    assert hash(objective) == hash(OBJECTIVES["mdlm"]())

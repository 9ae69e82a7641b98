"""The chunked head: chunks, scores that do not saturate, filters, keyed noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.core.config import NOISE_CHUNK, SamplingConfig
from jaxdave.core.prediction import NEG_INF
from jaxdave.sampling.chunked_head import Head, sample_and_score
from jaxdave.sampling.noise import gumbel, position_keys, request_key

ROWS, SIZE = 12, 48


def keys(rows=ROWS, seed=0, request=0, step=0):
    position = jnp.arange(rows, dtype=jnp.int32)
    key = request_key(jnp.uint32(seed), jnp.uint32(request))
    return position_keys(key, jnp.full(rows, step, jnp.int32), position)


def sample(logits_RV, chunk, sampling, key_R=None):
    """`sample_and_score` of explicit logits [R, V], cut into chunks."""
    key_R = keys(logits_RV.shape[0]) if key_R is None else key_R
    return _jitted_sample(jnp.asarray(logits_RV, jnp.float32), key_R, chunk, sampling)


def head_of(table_RV, chunk, unrolled_chunks=1):
    """A head whose logits are those of a table."""

    def logits(index):
        return jax.lax.dynamic_slice_in_dim(table_RV, index * chunk, chunk, axis=1)

    return Head(logits, table_RV.shape[1] // chunk, chunk, unrolled_chunks)


def sample_table(table_RV, key_R, chunk, sampling, unrolled_chunks=1):
    head = head_of(table_RV, chunk, unrolled_chunks)
    return sample_and_score(head, sampling, key_R)


_jitted_sample = jax.jit(sample_table, static_argnums=(2, 3))


def random_logits(seed=0, scale=3.0):
    return np.random.default_rng(seed).normal(size=(ROWS, SIZE)).astype("f") * scale


def log_odds(logits_RV, token_R):
    """log p - log(1 - p) in float64, summed over the other tokens."""
    wide = logits_RV.astype(np.float64)
    rows = np.arange(len(wide))
    chosen = wide[rows, token_R]
    wide[rows, token_R] = -np.inf
    return -np.log(np.exp(wide - chosen[:, None]).sum(axis=1))


@pytest.mark.parametrize("chunk", [8, 16, 48])
def test_best_token_and_score_by_chunks(chunk):
    table = random_logits()
    token, score = sample(table, chunk, SamplingConfig())[:2]
    np.testing.assert_array_equal(token, table.argmax(axis=1))
    np.testing.assert_allclose(score, log_odds(table, np.asarray(token)), atol=2e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 6.0, 30.0, 400.0])
@pytest.mark.parametrize("chunk", [8, 16, 48])
def test_features_are_those_of_the_unfiltered_distribution(chunk, scale, temperature):
    """Gap, margin and entropy in float64; sharp distributions, suppressed ids."""
    table = random_logits(1, scale)
    table[:, 8:16] = table[:, 40] = NEG_INF  # a whole chunk of 8 among them
    pred = sample(
        table, chunk, SamplingConfig(temperature, top_k=3 if temperature else 0)
    )
    z = np.where(table > NEG_INF, table.astype(np.float64), -np.inf)
    z = np.sort(z / (temperature or 1.0), axis=1)[:, ::-1]
    weight = np.exp(z - z[:, :1])
    rest = weight[:, 1:].sum(axis=1)
    np.testing.assert_allclose(pred.gap, z[:, 0] - z[:, 1], rtol=2e-5, atol=2e-5)
    # From the second best on, whose own weight is too small for a float64.
    later = np.exp(z[:, 1:] - z[:, 1:2]).sum(axis=1)
    margin = np.log1p(rest) + z[:, 0] - z[:, 1] - np.log1p(later)
    np.testing.assert_allclose(pred.margin, margin, rtol=2e-5, atol=2e-5)
    below = np.where(np.isfinite(z), z[:, :1] - z, 0.0)
    entropy = np.log1p(rest) + (weight * below).sum(axis=1) / (1 + rest)
    np.testing.assert_allclose(pred.entropy, entropy, rtol=2e-4, atol=1e-30)


@pytest.mark.parametrize("chunk", [8, 48])
def test_ties_go_to_the_lowest_id(chunk):
    table = np.zeros((ROWS, SIZE), "f")
    table[:, [7, 20, 41]] = 2.0
    token, _ = sample(table, chunk, SamplingConfig())[:2]
    np.testing.assert_array_equal(token, 7)


@pytest.mark.parametrize("chunk", [8, 16, 48])
@pytest.mark.parametrize("values", [3, 40])
def test_the_runner_up_is_the_best_of_the_rest(chunk, values):
    """Many ties inside and across chunks: the lowest id first, then the next one."""
    table = np.random.default_rng(values).integers(0, values, (ROWS, SIZE)).astype("f")
    table[:, 8:16] = NEG_INF
    pred = sample(table, chunk, SamplingConfig())
    order = np.argsort(-table, axis=1, kind="stable")
    np.testing.assert_array_equal(pred.token, order[:, 0])
    np.testing.assert_array_equal(pred.runner_up, order[:, 1])


@pytest.mark.parametrize("chunk", [8, 48])
def test_the_runner_up_is_what_would_be_drawn_without_the_token(chunk):
    table = random_logits()
    pred = sample(table, chunk, SamplingConfig(0.9))
    table[np.arange(ROWS), pred.token] = NEG_INF
    again = sample(table, chunk, SamplingConfig(0.9))
    np.testing.assert_array_equal(pred.runner_up, again.token)


def test_there_may_be_no_runner_up():
    table = random_logits()
    np.testing.assert_array_equal(
        sample(table, 16, SamplingConfig(1.0, top_k=1)).runner_up, -1
    )
    table[:, 1:] = NEG_INF
    for sampling in (SamplingConfig(), SamplingConfig(1.0)):
        np.testing.assert_array_equal(sample(table, 16, sampling).runner_up, -1)


@pytest.mark.parametrize("gap", [20.0, 25.0, 40.0, 60.0])
def test_scores_do_not_saturate(gap):
    table = np.zeros((2, SIZE), "f")
    table[0, 3], table[1, 3] = gap, gap + 0.5
    assert float(jax.nn.softmax(jnp.asarray(table[0]))[3]) > 0.9999999
    _, score = sample(table, 16, SamplingConfig())[:2]
    assert score[1] > score[0]
    np.testing.assert_allclose(score[1] - score[0], 0.5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_suppressed_ids_never_come_out(temperature):
    table = random_logits(scale=0.1)
    table[:, 10:] = NEG_INF
    # All steps in one call: 20 rows of keys for every row of the table.
    key_R = jnp.concatenate([keys(step=step) for step in range(20)])
    table = np.tile(table, (20, 1))
    token, score = sample(table, 16, SamplingConfig(temperature), key_R)[:2]
    assert (np.asarray(token) < 10).all() and np.isfinite(score).all()


@pytest.mark.parametrize("chunk", [8, 48])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.5])
def test_plain_confidences_are_those_of_temperature_1(temperature, chunk):
    """The token is drawn as ever; top-k looks at what it is drawn from."""
    table = random_logits(seed=4)
    for top_k in (0, 3):
        tempered = SamplingConfig(temperature, top_k=top_k)
        plain = SamplingConfig(temperature, top_k=top_k, plain_confidence=True)
        want, got = sample(table, chunk, tempered), sample(table, chunk, plain)
        for name in ("token", "runner_up", "lead"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
        token = np.asarray(got.token)
        np.testing.assert_allclose(got.score, log_odds(table, token), atol=2e-5)
        first, second = np.sort(table, axis=1)[:, :-3:-1].T
        np.testing.assert_allclose(got.gap, first - second, atol=2e-5)
        is_same = np.allclose(got.score, want.score, atol=1e-3)
        assert is_same == (temperature == 0)


@pytest.mark.parametrize("chunk", [8, 48])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_unscored_ids_come_out_and_count_in_no_confidence(temperature, chunk):
    table, left_out = random_logits(seed=4), (3, 20)
    table[:4, 20] += 20
    sampling = SamplingConfig(temperature)

    head = head_of(table, chunk)
    got = sample_and_score(head, sampling, keys(), unscored_ids=left_out)
    plain = sample(table, chunk, sampling)
    for name in ("token", "runner_up", "lead"):
        np.testing.assert_allclose(getattr(got, name), getattr(plain, name), rtol=1e-6)
    token = np.asarray(got.token)
    assert (token[:4] == 20).all() and not np.isin(token[4:], left_out).any()
    assert (np.asarray(got.score)[:4] < -1e29).all()
    wide = np.delete(table.astype(np.float64), left_out, axis=1)[4:]
    wide /= temperature or 1
    own = (token - np.sum(token[:, None] > np.array(left_out), axis=1))[4:]
    np.testing.assert_allclose(got.score[4:], log_odds(wide, own), atol=2e-5)
    first, second = np.sort(wide, axis=1)[:, :-3:-1].T
    np.testing.assert_allclose(got.gap[4:], first - second, atol=2e-5)
    share = np.exp(wide - first[:, None])
    share /= share.sum(axis=1, keepdims=True)
    entropy = -np.sum(share * np.log(share), axis=1)
    np.testing.assert_allclose(got.entropy[4:], entropy, atol=2e-5)


def test_top_one_is_the_best_token_with_its_own_confidence():
    table = random_logits()
    best, plain = sample(table, 16, SamplingConfig())[:2]
    token, score = sample(table, 16, SamplingConfig(1.0, top_k=1))[:2]
    np.testing.assert_array_equal(token, best)
    np.testing.assert_allclose(score, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(3, 1.0), (0, 0.5), (5, 0.6), (0, 0.01), (40, 0.9)]
)
def test_filters_keep_exactly_their_tokens(top_k, top_p):
    table = random_logits(seed=3, scale=1.5)[:2]
    sampling = SamplingConfig(0.7, top_k, top_p)
    rows = 4000
    seen = sample(np.repeat(table, rows, 0), 16, sampling, keys(2 * rows, seed=5))[0]
    for row, tokens in enumerate(np.asarray(seen).reshape(2, rows)):
        z = np.sort(table[row].astype(np.float64) / 0.7)[::-1]
        z = z[: top_k or None]
        share = np.exp(z) / np.exp(z).sum()
        kept = int((np.cumsum(share) - share < top_p).sum())
        allowed = set(np.argsort(-table[row])[:kept].tolist())
        assert set(tokens.tolist()) <= allowed
        likely = {t for t, s in zip(np.argsort(-table[row]), share, strict=False)
                  if s > 0.01} & allowed  # fmt: skip
        assert likely <= set(tokens.tolist())


def test_samples_follow_the_tempered_distribution():
    table = random_logits(seed=1, scale=1.0)[:1, :16]
    rows = 20000
    token, _ = sample(
        np.repeat(table, rows, 0), 8, SamplingConfig(0.8), keys(rows, seed=2)
    )[:2]
    share = np.exp(table[0].astype(np.float64) / 0.8)
    expected = share / share.sum() * rows
    seen = np.bincount(np.asarray(token), minlength=16)
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert chi_square < 37.7  # 15 degrees of freedom, p = 0.001


def test_noise_depends_on_seed_request_step_and_position_alone():
    flat = np.zeros((ROWS, SIZE), "f")
    base = np.asarray(sample(flat, 16, SamplingConfig(1.0), keys())[0])
    again = sample(flat[:5], 16, SamplingConfig(1.0), keys()[:5])[0]
    np.testing.assert_array_equal(again, base[:5])
    for other in (keys(seed=1), keys(request=1), keys(step=1)):
        assert (
            np.asarray(sample(flat, 16, SamplingConfig(1.0), other)[0]) != base
        ).any()
    assert len(set(base.tolist())) > 1


@pytest.mark.parametrize(
    ("values", "named"),
    [((-0.1, 0, 1.0), "-0.1"), ((1.0, -1, 1.0), "-1"), ((1.0, 0, 0.0), "0.0"),
     ((1.0, 0, 1.5), "1.5"), ((float("nan"), 0, 1.0), "nan")],
)  # fmt: skip
def test_values_out_of_range_are_refused(values, named):
    with pytest.raises(ValueError, match=named):
        SamplingConfig(*values)


def test_noise_does_not_depend_on_how_much_is_drawn_at_once():
    key_R = keys(2)
    twice = gumbel(key_R, jnp.int32(1), 2 * NOISE_CHUNK)
    parts = [gumbel(key_R, jnp.int32(index), NOISE_CHUNK) for index in (2, 3)]
    np.testing.assert_array_equal(twice, np.concatenate(parts, axis=1))


@pytest.mark.as_shipped
@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(0.7, top_k=5)])
def test_chunks_spelled_out_are_read_as_chunks_in_a_loop(sampling):
    table, results = jnp.asarray(random_logits()), []
    for limit in (0, SIZE):
        fresh = functools.partial(
            sample_table, chunk=8, sampling=sampling, unrolled_chunks=limit
        )
        results.append(jax.jit(fresh)(table, keys()))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)

"""From hidden vectors to sampled tokens and scores, chunk by chunk of the vocabulary.

Logits of R positions over 150,000 ids would be larger than the layers' activations.
Everything that is needed of them (the sampled token, its runner-up, log-sum-exp, gap,
entropy, KL) can be folded over chunks, so logits never exist for more than one.

A `Head` stands for the output layer throughout: its logits of R positions as a function
of the chunk, float32 [R, X], X the size of a chunk; `NEG_INF` is the logit of an id
that may not be predicted or that belongs to another chunk.

On a mesh each device folds over the chunks of its own rows, and the devices exchange
what they have found: a few numbers for each position.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdave.core.config import SamplingConfig, confidence_scale, logit_scale
from jaxdave.core.model_api import ModelFns
from jaxdave.core.prediction import NEG_INF, NO_TOKEN, HeadSummary, Prediction
from jaxdave.core.shards import WHOLE_MODEL, ModelShards
from jaxdave.sampling.distribution import (
    DistributionStats,
    distribution_stats,
    gap_margin_entropy,
    max_and_argmax,
    merge_stats,
)
from jaxdave.sampling.noise import gumbel, gumbel_of_ids

TOP_P_CANDIDATES = 1024
"""Top-p without top-k looks at this many of the best tokens."""

ChunkLogitsFn = Callable[[jax.Array], jax.Array]
"""Chunk index, int32 scalar -> logits, float32 [R, X]."""


class Head(NamedTuple):
    """The output layer at R positions.

    Attributes:
        logits: The logits of a chunk; `NEG_INF` where an id may not be predicted.
            Column x of chunk i is id first_id + i * chunk_size + x.
        num_chunks: Chunks that the vocabulary is read in.
        chunk_size: Ids per chunk, X.
        unrolled_chunks: Folds over at most so many chunks are unrolled.
        first_id: The first id that this device has the row of, int32.
        vocab_rows: Rows of the vocabulary on all devices.
        shards: The devices that it is split over.
        summarize: What is needed of the logits of all ids of this device, where there
            is no noise; None: it has to be folded over the chunks.
    """

    logits: ChunkLogitsFn
    num_chunks: int
    chunk_size: int
    unrolled_chunks: int = 1
    first_id: jax.Array | int = 0
    vocab_rows: int = 0
    shards: ModelShards = WHOLE_MODEL
    summarize: Callable[[], HeadSummary] | None = None

    def ids(self, index: jax.Array) -> jax.Array:
        """The ids of a chunk.

        Args:
            index: The chunk, int32 scalar.

        Returns:
            int32 [X].
        """
        first = self.first_id + index * self.chunk_size
        return first + jnp.arange(self.chunk_size, dtype=jnp.int32)

    def noise(self, key_R: jax.Array, index: jax.Array) -> jax.Array:
        """The noise of a chunk.

        Args:
            key_R: Keys of positions, uint32 [R, 2].
            index: The chunk, int32 scalar.

        Returns:
            float32 [R, X].
        """
        if self.shards.is_whole:
            return gumbel(key_R, index, self.chunk_size)
        first = self.first_id + index * self.chunk_size
        return gumbel_of_ids(key_R, first, self.chunk_size, self.vocab_rows)


def head_at(model: ModelFns, params, hidden_RE) -> Head:
    """The output layer of a model at some positions.

    Args:
        model: The model.
        params: Its parameters.
        hidden_RE: Hidden vectors [R, E].

    Returns:
        The head.
    """
    chunk, rows = model.head_chunk, model.shards.vocab_rows(model.vocab_rows)
    first_id = model.shards.first_id(model.vocab_rows)
    id_X = jnp.arange(chunk, dtype=jnp.int32)

    def logits(index):
        # The last chunk is moved back to fit; ids that it repeats do not count again.
        first = jnp.minimum(index * chunk, rows - chunk)
        ids = first_id + first + id_X
        raw = model.logits(params, hidden_RE, first)
        is_suppressed = (first + id_X < index * chunk) | (ids >= model.vocab_size)
        is_suppressed |= jnp.isin(ids, jnp.asarray(model.suppressed_ids, jnp.int32))
        masked = jnp.where(is_suppressed[None], NEG_INF, raw)
        # Rolled, so that columns of a chunk that was moved back stand for their ids.
        is_even = rows % chunk == 0
        return masked if is_even else jnp.roll(masked, first - index * chunk, axis=1)

    def summarize() -> HeadSummary:
        assert model.summarize_head is not None
        return model.summarize_head(
            params,
            hidden_RE,
            vocab_size=model.vocab_size,
            suppressed_ids=model.suppressed_ids,
        )

    return Head(
        logits=logits,
        num_chunks=-(-rows // chunk),
        chunk_size=chunk,
        unrolled_chunks=model.unrolled_chunks,
        first_id=first_id,
        vocab_rows=model.vocab_rows,
        shards=model.shards,
        summarize=summarize if model.summarize_head else None,
    )


def token_log_odds(head: Head, scale: float, ids_R: jax.Array) -> jax.Array:
    """Log of the odds of given ids against all others.

    The log-sum-exp runs over the other ids only, so that the odds of a token that is
    nearly certain do not saturate, as log p - log(1 - p) would.

    Args:
        head: The output layer at R positions.
        scale: What logits are multiplied by (1 / temperature).
        ids_R: One id per position, int32 [R].

    Returns:
        log(p / (1 - p)), float32 [R].
    """

    def fold(index, carry):
        raw = head.logits(index)
        z = jnp.where(raw > NEG_INF, raw * scale, NEG_INF)
        is_id = head.ids(index)[None] == ids_R[:, None]
        own = jnp.max(jnp.where(is_id, z, NEG_INF), axis=1)
        others = jax.nn.logsumexp(jnp.where(is_id, NEG_INF, z), axis=1)
        return jnp.maximum(carry[0], own), jnp.logaddexp(carry[1], others)

    def merge(a, b):
        return jnp.maximum(a[0], b[0]), jnp.logaddexp(a[1], b[1])

    low = jnp.full(ids_R.shape, NEG_INF)
    folded = fold_chunks(head, 0, fold, (low, low))
    own, others = head.shards.merge(folded, merge)
    return own - others


def kl_divergence(head: Head, scale: float) -> jax.Array:
    """KL divergence between two sets of distributions, KL(p || q) in nats.

    With z and y the logits of p and q: sum p (z - y) - logsumexp(z) + logsumexp(y).

    Args:
        head: The output layer at 2R positions: those of p, then those of q.
        scale: What logits are multiplied by (1 / temperature).

    Returns:
        float32 [R], not below 0.
    """

    def tempered_halves(index):
        raw = head.logits(index)
        z = jnp.where(raw > NEG_INF, raw * scale, NEG_INF)
        return jnp.split(z, 2)

    def fold(index, carry):
        # Running maximum of z, and sums of exp(z - max) and exp(z - max) (z - y), as
        # in online softmax; log-sum-exp of y.
        top, total, cross, q_logsumexp = carry
        p_z, q_z = tempered_halves(index)
        new_top = jnp.maximum(top, jnp.max(p_z, axis=1))
        rescale = jnp.exp(top - new_top)
        weight = jnp.exp(p_z - new_top[:, None])
        difference = jnp.where(p_z > NEG_INF, p_z - q_z, 0.0)
        total = total * rescale + jnp.sum(weight, axis=1)
        cross = cross * rescale + jnp.sum(weight * difference, axis=1)
        q_logsumexp = jnp.logaddexp(q_logsumexp, jax.nn.logsumexp(q_z, 1))
        return new_top, total, cross, q_logsumexp

    def merge(a, b):
        top = jnp.maximum(a[0], b[0])
        a_scale, b_scale = jnp.exp(a[0] - top), jnp.exp(b[0] - top)
        total, cross = (a[i] * a_scale + b[i] * b_scale for i in (1, 2))
        return top, total, cross, jnp.logaddexp(a[3], b[3])

    size = jax.eval_shape(tempered_halves, jnp.int32(0))[0].shape[0]
    low, zero = jnp.full((size,), NEG_INF), jnp.zeros((size,), jnp.float32)
    folded = fold_chunks(head, 0, fold, (low, zero, zero, low))
    top, total, cross, q_logsumexp = head.shards.merge(folded, merge)
    return jnp.maximum(cross / total - (top + jnp.log(total)) + q_logsumexp, 0.0)


def sample_and_score(
    head: Head,
    sampling: SamplingConfig,
    key_R: jax.Array,
    unscored_ids: tuple[int, ...] = (),
) -> Prediction:
    """The token that each position would take, and how sure the model is.

    Sampling is by the Gumbel-max trick: the token with the largest logit + noise. Equal
    values go to the lowest id.

    Args:
        head: The output layer at R positions.
        sampling: Temperature and filters.
        key_R: PRNG keys of (request, step, position), uint32 [R, 2]; unused at
            temperature 0.
        unscored_ids: Ids that can be the token and that no score counts; a token that
            is one of them has a score of about `NEG_INF`.

    Returns:
        Arrays [R]. Scores are those of the unfiltered distribution, tempered or plain.
    """
    noisy = sampling.noisy
    scale, plain_scale = logit_scale(sampling), confidence_scale(sampling)

    def scaled(raw, factor: float):
        return jnp.where(raw > NEG_INF, raw * factor, NEG_INF)

    def tempered(index):
        return scaled(head.logits(index), scale)

    rows = key_R.shape[0]
    floor_R = jnp.full((rows,), NEG_INF, jnp.float32)
    if sampling.filtered:
        floor_R = _filter_floor(head, tempered, rows, sampling)

    def summarize(index) -> _Summary:
        # z decides confidence, y (with noise, filtered) decides the token: [R, X] each.
        raw = head.logits(index)
        y = t = scaled(raw, scale)
        z = t if plain_scale == scale else scaled(raw, plain_scale)
        if noisy:
            noise = head.noise(key_R, index)
            y = jnp.where(t >= floor_R[:, None], t + noise, -jnp.inf)
            y = jnp.where(t > NEG_INF, y, -jnp.inf)
        if unscored_ids:
            unscored = jnp.asarray(unscored_ids, jnp.int32)
            is_unscored_X = jnp.isin(head.ids(index), unscored)
            z = jnp.where(is_unscored_X[None], NEG_INF, z)
        return _Summary(_best_of_chunk(y, z, head.ids(index)), distribution_stats(z))

    if head.summarize is not None and not (noisy or unscored_ids):
        summary = _from_head_summary(head.summarize())
    else:
        summary = summarize(jnp.int32(0))
        summary = fold_chunks(
            head, 1, lambda index, carry: _merge(carry, summarize(index)), summary
        )
    best, stats = head.shards.merge(summary, _merge)
    runner_R = jnp.where(best.runner_y > NEG_INF, best.runner_up, NO_TOKEN)
    gap, margin, entropy = gap_margin_entropy(stats)
    # A row of scores without one finite number (overflow, broken weights) has no best
    # token. NaN compares as false, so its logits count as suppressed above.
    has_token = (best.y > NEG_INF) & (best.y < jnp.inf)
    # Without noise the lead is the gap, unless the gap leaves out ids that can lead.
    lead = best.y - best.runner_y if noisy or unscored_ids else gap
    return Prediction(
        token=jnp.where(has_token, best.token, NO_TOKEN),
        score=best.z - best.others,
        gap=gap,
        margin=margin,
        entropy=entropy,
        runner_up=runner_R,
        lead=lead,
    )


def fold_chunks(
    head: Head, first: int, fold: Callable[[jax.Array, Any], Any], carry: Any
) -> Any:
    """Fold a function over chunks, unrolled where that is faster.

    In an unrolled fold each chunk's place is known when the program is compiled, and a
    GPU reads the table there instead of from a copy. XLA:CPU would copy all the same,
    and all chunks at once, except those that are arrays of their own
    (`numerics.matmul.ChunkedTable`), which any index can pick.

    Args:
        head: The output layer.
        first: The first chunk.
        fold: (chunk index, carry) -> carry.
        carry: The initial carry.

    Returns:
        The carry after the last chunk.
    """
    if head.num_chunks > head.unrolled_chunks:
        return jax.lax.fori_loop(first, head.num_chunks, fold, carry)
    for index in range(first, head.num_chunks):
        carry = fold(jnp.int32(index), carry)
    return carry


class _Best(NamedTuple):
    """The best token of some chunks and its runner-up, arrays [R].

    Attributes:
        y: Noisy logit of the best token.
        token: Its id.
        z: Its logit as confidences count it, without noise.
        others: Log-sum-exp of such logits of all other ids.
        runner_y: Noisy logit of the runner-up.
        runner_up: Its id.
    """

    y: jax.Array
    token: jax.Array
    z: jax.Array
    others: jax.Array
    runner_y: jax.Array
    runner_up: jax.Array


class _Summary(NamedTuple):
    """All that a fold over the vocabulary carries."""

    best: _Best
    stats: DistributionStats


def _best_of_chunk(y, z, id_X) -> _Best:
    """y: noisy logits [R, X], -inf where filtered; z: logits of confidences [R, X]."""
    size = y.shape[1]
    top_R, local_R = max_and_argmax(y)
    is_best = jnp.arange(size, dtype=jnp.int32)[None] == local_R[:, None]
    others_R = jax.nn.logsumexp(jnp.where(is_best, NEG_INF, z), axis=1)
    # Without noise the best value is the logit; a masked maximum picks it otherwise,
    # which XLA fuses, where a gather would need the whole chunk in memory.
    z_R = jnp.max(jnp.where(is_best, z, -jnp.inf), axis=1) if y is not z else top_R
    runner_y, runner_R = max_and_argmax(jnp.where(is_best, -jnp.inf, y))
    ids = id_X[0] + local_R, id_X[0] + runner_R
    return _Best(top_R, ids[0], z_R, others_R, runner_y, ids[1])


def _from_head_summary(summary: HeadSummary) -> _Summary:
    """What a fold over all chunks gives where there is no noise."""
    token, runner_up, top, second, rest, moment = summary
    # `rest` is relative to the second best, whose own part of it is 1.
    others = jnp.where(rest > 0, second + jnp.log(rest), NEG_INF)
    best = _Best(top, token, top, others, second, runner_up)
    return _Summary(best, DistributionStats(top, second, rest, moment))


def _merge(a: _Summary, b: _Summary) -> _Summary:
    """Two parts of the vocabulary as one; `a` has the lower ids, and wins ties."""
    return _Summary(_merge_best(a.best, b.best), merge_stats(a.stats, b.stats))


def _merge_best(a: _Best, b: _Best) -> _Best:
    a_wins = a.y >= b.y
    y, token, z = (jnp.where(a_wins, x, w) for x, w in zip(a[:3], b[:3], strict=True))
    loser = jnp.where(a_wins, b.z, a.z)
    others = jnp.logaddexp(jnp.logaddexp(a.others, b.others), loser)
    # The runner-up is the loser's best or the winner's second. Ids of `a` are lower, so
    # that it wins ties here too.
    from_a = jnp.where(a_wins, a.runner_y >= b.y, a.y >= b.runner_y)
    of_a = jnp.where(a_wins, a.runner_y, a.y), jnp.where(a_wins, a.runner_up, a.token)
    of_b = jnp.where(a_wins, b.y, b.runner_y), jnp.where(a_wins, b.token, b.runner_up)
    runner = (jnp.where(from_a, x, w) for x, w in zip(of_a, of_b, strict=True))
    return _Best(y, token, z, others, *runner)


def _filter_floor(
    head: Head, tempered: ChunkLogitsFn, rows: int, sampling: SamplingConfig
):
    """The lowest tempered logit that passes the filters, [R]."""
    num_ids = head.num_chunks * head.chunk_size * head.shards.count
    num_candidates = min(sampling.top_k or TOP_P_CANDIDATES, num_ids)

    def gather(index, carry):
        top_RM, total_R = carry
        z = tempered(index)
        total_R = jnp.logaddexp(total_R, jax.nn.logsumexp(z, axis=1))
        # The best M of all chunks so far, [R, M],
        # against those of this one, [R, M + X].
        candidates = jnp.concatenate([top_RM, z], axis=1)
        return jax.lax.top_k(candidates, num_candidates)[0], total_R

    def merge(a, b):
        candidates = jnp.concatenate([a[0], b[0]], axis=1)
        best = jax.lax.top_k(candidates, num_candidates)[0]
        return best, jnp.logaddexp(a[1], b[1])

    empty = jnp.full((rows, num_candidates), NEG_INF), jnp.full((rows,), NEG_INF)
    top_RM, total_R = head.shards.merge(fold_chunks(head, 0, gather, empty), merge)
    if sampling.top_k:
        # Top-p then works on the distribution that top-k has left.
        total_R = jax.nn.logsumexp(top_RM, axis=1)
    share_RM = jnp.exp(top_RM - total_R[:, None])
    before_RM = jnp.cumsum(share_RM, axis=1) - share_RM
    # The mass before a token decides: the best one always passes, and the last one that
    # does is the one that crosses top_p.
    passes_RM = (before_RM < sampling.top_p) & (top_RM > NEG_INF)
    return jnp.min(jnp.where(passes_RM, top_RM, jnp.inf), axis=1)

"""Decoding from predictions that are fixed beforehand, with a policy or a plain rule.

`run_policy` runs a policy as the decode loop does, under jit and vmap, over two blocks;
`run_rule` runs a rule written in plain Python. A `PredictionTrace` holds what is
predicted at every step, so that neither a model nor a draft is needed.
"""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdave.core.policy_api import ModelQueries, Policy, PolicyView
from jaxdave.core.prediction import Prediction

WIDE, VOCAB, MASK, PROMPT, FIRST_STEP = 12, 6, 9, 7, 5


class PredictionTrace(NamedTuple):
    """Predictions of N decodes ("cases") at S steps of a block of W positions.

    Attributes:
        token: Predicted tokens, int32 [N, S, W]; this and the next four fields are
            those of `Prediction`.
        score: float32 [N, S, W].
        gap: float32 [N, S, W].
        margin: float32 [N, S, W].
        entropy: float32 [N, S, W].
        logits: float32 [N, S, W, V].
        prompt: Positions of the first block that the prompt takes, int [N].
        max_new_tokens: Positions after the prompt, int [N].
    """

    token: np.ndarray
    score: np.ndarray
    gap: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray
    logits: np.ndarray
    prompt: np.ndarray
    max_new_tokens: np.ndarray


def random_trace(
    kind: str, cases: int = 24, steps: int = 30, seed: int = 0
) -> PredictionTrace:
    """Random predictions: "grid" (full of ties), "sure" (saturated), "logits".

    "apart": as "grid", but some positions are saturated in all steps, so that no two
    changes of a probability differ by less than float32 can tell. "shadows": surer than
    "grid", with the log-odds of shadow predictions for logits.
    """
    rng = np.random.default_rng([seed, len(kind)])
    shape = (cases, steps, WIDE)
    prompt = rng.integers(0, 4, cases)
    max_new_tokens = rng.integers(WIDE + 1, 2 * WIDE + 4, cases)
    if kind == "logits":
        # Positions converge at speeds of their own, so that steps come to agree.
        limit = rng.normal(0, 3, (cases, 1, WIDE, VOCAB))
        peak = rng.choice([0.0, 4.0, 45.0], (cases, 1, WIDE, 1), p=[0.5, 0.3, 0.2])
        limit += peak * (
            np.arange(VOCAB) == rng.integers(0, VOCAB, (*limit.shape[:3], 1))
        )
        speed = rng.choice([0.95, 0.6, 0.2], (cases, 1, WIDE, 1))
        fade = speed ** np.arange(steps)[None, :, None, None]
        logits = limit + rng.normal(0, 3, (*shape, VOCAB)) * fade
        return trace_of_logits(logits.astype(np.float32), prompt, max_new_tokens)
    levels = {
        "grid": [-2.0, -1.0, 0.5, 1.5, 3.0],
        "sure": [1.5, 3.0, 17.0, 30.0, 45.0, 60.0],
        "apart": [-2.0, -1.0, 0.5, 1.5, 3.0],
        "shadows": [-2.0, 0.5, 0.5, 1.5, 3.0, 17.0, 60.0],
    }[kind]

    def draw(values):
        return rng.choice(np.array(values, np.float32), shape)

    token = rng.integers(0, VOCAB, (cases, 1, WIDE))
    token = np.where(rng.random(shape) < 0.3, rng.integers(0, VOCAB, shape), token)
    entropies = [1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0]
    gaps = [1.0, 2.5, 5.0, 7.5, 12.0]
    score = draw(levels)
    if kind == "apart":
        always = rng.random((cases, 1, WIDE)) < 0.5
        score = np.where(always, draw([17.0, 60.0]), score)
    features = (score, draw(gaps), draw(levels), draw(entropies))
    logits = np.zeros((*shape, VOCAB), np.float32)
    if kind == "shadows":
        logits = rng.choice(
            np.array([-40, -2, 0, 2, 3, 17, 60], np.float32), logits.shape
        )
    return PredictionTrace(
        token.astype(np.int32), *features, logits, prompt, max_new_tokens
    )


def trace_of_logits(logits: np.ndarray, prompt, max_new_tokens) -> PredictionTrace:
    """The predictions of logits, from the definitions of the statistics in float64."""
    z = logits.astype(np.float64)
    token = np.argmax(z, axis=-1)
    others = np.where(np.arange(VOCAB) == token[..., None], -np.inf, z)
    top, second = z.max(-1), others.max(-1)

    def log_sum(a):
        return np.log(np.sum(np.exp(a - top[..., None]), -1)) + top

    p = np.exp(z - log_sum(z)[..., None])
    # 1 - (p_best - p_second) without the cancellation.
    rest = np.exp(second - log_sum(z)) + (np.exp(log_sum(others) - log_sum(z)))
    log_p = z - log_sum(z)[..., None]
    return PredictionTrace(
        token=token.astype(np.int32),
        score=(top - log_sum(others)).astype(np.float32),
        gap=(top - second).astype(np.float32),
        margin=(-np.log(rest)).astype(np.float32),
        entropy=(-np.sum(p * log_p, -1)).astype(np.float32),
        logits=logits,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
    )


def queries_of(logits_WV: jax.Array) -> ModelQueries:
    """The queries of a model whose hidden vectors are its logits.

    The logits are also the log-odds of each id under the shadow prediction.
    """

    def divergence(before_WV):
        log_p, log_q = jax.nn.log_softmax(logits_WV), jax.nn.log_softmax(before_WV)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    def logits_at(ids_WM):
        return jnp.take_along_axis(logits_WV, ids_WM, axis=-1)

    def shadow_at(ids_W):
        last = logits_WV.shape[1] - 1
        return logits_at(jnp.minimum(ids_W, last)[:, None])[:, 0]

    return ModelQueries(
        hidden_WE=logits_WV,
        logits_at=logits_at,
        divergence=divergence,
        shadow_at=shadow_at,
    )


def key_of(case, n):
    """The key of a case's step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(3), case), n)


def view_of(pred, logits_WV, tokens_W, start, max_new_tokens, n, key) -> PolicyView:
    """What a policy sees of a block whose first position is `start`."""
    position_W = start + jnp.arange(tokens_W.shape[0], dtype=jnp.int32)
    inside_W = (position_W >= 0) & (position_W < max_new_tokens)
    return PolicyView(
        tokens_W=tokens_W,
        open_W=(tokens_W == MASK) & inside_W,
        decoded_W=(position_W >= 0) & (tokens_W != MASK),
        pred=pred,
        position_W=position_W,
        max_new_tokens=max_new_tokens,
        mask_id=jnp.int32(MASK),
        step=n,
        key=key,
        queries=queries_of(logits_WV),
    )


def run_policy(policy: Policy, trace: PredictionTrace) -> np.ndarray:
    """The blocks [N, S, W] that a policy leaves behind after every step."""
    case = jnp.arange(len(trace.prompt), dtype=jnp.int32)
    lengths = (jnp.asarray(a, jnp.int32) for a in (trace.prompt, trace.max_new_tokens))
    run = _compiled_run(policy)
    return np.asarray(run(case, trace[:5], trace.logits, *lengths))


@functools.cache
def _compiled_run(policy: Policy):
    def step(case, max_new_tokens, carry, frame):
        tokens_W, start, memory = carry
        n, pred, logits_WV = frame
        key = key_of(case, n)
        view = view_of(pred, logits_WV, tokens_W, start, max_new_tokens, n, key)
        after = policy.step(view, memory)
        alive = jnp.any(view.open_W)
        after_W, memory = jax.tree.map(
            lambda a, b: jnp.where(alive, a, b), after, (tokens_W, memory)
        )
        inside_W = (view.position_W >= 0) & (view.position_W < max_new_tokens)
        is_complete = ~jnp.any((after_W == MASK) & inside_W)
        moves_on = is_complete & (start + WIDE < max_new_tokens)
        tokens_W = jnp.where(moves_on, jnp.full_like(after_W, MASK), after_W)
        start = jnp.where(moves_on, start + WIDE, start)
        return (tokens_W, start, memory), after_W

    def run(case, features, logits, prompt, max_new_tokens):
        index_W = jnp.arange(WIDE, dtype=jnp.int32)
        tokens_W = jnp.where(index_W < prompt, PROMPT, MASK).astype(jnp.int32)
        n = FIRST_STEP + jnp.arange(logits.shape[0], dtype=jnp.int32)
        carry = tokens_W, -prompt, policy.init(WIDE, VOCAB)
        rest = {"runner_up": -jnp.ones_like(features[0]), "lead": features[2]}
        frames = n, Prediction(*features, **rest), logits
        one_step = functools.partial(step, case, max_new_tokens)
        return jax.lax.scan(one_step, carry, frames)[1]

    return jax.jit(jax.vmap(run))


def run_rule(rule, trace: PredictionTrace) -> np.ndarray:
    """The blocks [N, S, W] that a plain rule leaves behind after every step.

    rule(view, memory) -> {position: token, or MASK to take one back}. view: the
    features of the step as lists, `odds` for the score; open and decoded positions;
    index (steps since the block began), masks (that it began with), start, and end (of
    the answer). memory: a dict of the rule's own, new in every block.
    """
    blocks = np.zeros(trace.token.shape, np.int32)
    for case in range(len(trace.prompt)):
        start, end = -int(trace.prompt[case]), int(trace.max_new_tokens[case])
        block, memory, first = [PROMPT] * -start + [MASK] * (WIDE + start), {}, 0
        for at in range(trace.token.shape[1]):
            inside = [i for i in range(WIDE) if 0 <= start + i < end]
            masked = [i for i in inside if block[i] == MASK]
            if masked:
                first = at if not memory else first
                masks = memory.setdefault("masks", len(masked))
                view = SimpleNamespace(
                    token=trace.token[case, at].tolist(),
                    logits=trace.logits[case, at],
                    odds=trace.score[case, at].tolist(),
                    gap=trace.gap[case, at].tolist(),
                    margin=trace.margin[case, at].tolist(),
                    entropy=trace.entropy[case, at].tolist(),
                    open=masked,
                    masks=masks,
                    decoded=[i for i in inside if block[i] != MASK],
                    index=at - first,
                    start=start,
                    end=end,
                    case=case,
                    n=FIRST_STEP + at,
                    block=list(block),
                )
                for i, token in rule(view, memory).items():
                    block[i] = token
            blocks[case, at] = block
            if all(block[i] != MASK for i in inside) and start + WIDE < end:
                start, block, memory = start + WIDE, [MASK] * WIDE, {}
    return blocks

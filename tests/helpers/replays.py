"""Predictions of many decodes, step by step, and two ways to decode with them.

`play` runs a policy as the decode loop does, under jit and vmap, over two blocks;
`replay` runs a rule written in plain Python. What is predicted at a step is given
beforehand, so it needs no model and no draft.
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


class Film(NamedTuple):
    """Cases N, steps S: features [N, S, W], logits [N, S, W, V], prompt and room [N].

    prompt: how many places of the first block the prompt takes. room: how many there
    are after it.
    """

    token: np.ndarray
    score: np.ndarray
    gap: np.ndarray
    margin: np.ndarray
    entropy: np.ndarray
    logits: np.ndarray
    prompt: np.ndarray
    room: np.ndarray


def film(kind: str, cases: int = 24, steps: int = 30, seed: int = 0) -> Film:
    """Random predictions: "grid" (full of ties), "sure" (saturated), "logits".

    "apart": as "grid", but some positions are saturated in all steps, so that no two
    changes of a probability differ by less than float32 can tell. "shadows": surer than
    "grid", with the odds of a shadow for logits.
    """
    rng = np.random.default_rng([seed, len(kind)])
    shape = (cases, steps, WIDE)
    prompt = rng.integers(0, 4, cases)
    room = rng.integers(WIDE + 1, 2 * WIDE + 4, cases)
    if kind == "logits":
        # Positions settle at speeds of their own, so that steps come to agree.
        home = rng.normal(0, 3, (cases, 1, WIDE, VOCAB))
        peak = rng.choice([0.0, 4.0, 45.0], (cases, 1, WIDE, 1), p=[0.5, 0.3, 0.2])
        home += peak * (
            np.arange(VOCAB) == rng.integers(0, VOCAB, (*home.shape[:3], 1))
        )
        speed = rng.choice([0.95, 0.6, 0.2], (cases, 1, WIDE, 1))
        fade = speed ** np.arange(steps)[None, :, None, None]
        logits = home + rng.normal(0, 3, (*shape, VOCAB)) * fade
        return of_logits(logits.astype(np.float32), prompt, room)
    levels = {
        "grid": [-2.0, -1.0, 0.5, 1.5, 3.0],
        "sure": [1.5, 3.0, 17.0, 30.0, 45.0, 60.0],
        "apart": [-2.0, -1.0, 0.5, 1.5, 3.0],
        "shadows": [-2.0, 0.5, 0.5, 1.5, 3.0, 17.0, 60.0],
    }[kind]
    draw = lambda values: rng.choice(np.array(values, np.float32), shape)  # noqa: E731
    token = rng.integers(0, VOCAB, (cases, 1, WIDE))
    token = np.where(rng.random(shape) < 0.3, rng.integers(0, VOCAB, shape), token)
    spread = [1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0]
    gaps = [1.0, 2.5, 5.0, 7.5, 12.0]
    score = draw(levels)
    if kind == "apart":
        always = rng.random((cases, 1, WIDE)) < 0.5
        score = np.where(always, draw([17.0, 60.0]), score)
    features = (score, draw(gaps), draw(levels), draw(spread))
    logits = np.zeros((*shape, VOCAB), np.float32)
    if kind == "shadows":
        logits = rng.choice(
            np.array([-40, -2, 0, 2, 3, 17, 60], np.float32), logits.shape
        )
    return Film(token.astype(np.int32), *features, logits, prompt, room)


def of_logits(logits: np.ndarray, prompt, room) -> Film:
    """The features of logits, from their definitions."""
    z = logits.astype(np.float64)
    token = np.argmax(z, axis=-1)
    others = np.where(np.arange(VOCAB) == token[..., None], -np.inf, z)
    top, second = z.max(-1), others.max(-1)
    weigh = lambda a: np.log(np.sum(np.exp(a - top[..., None]), -1)) + top  # noqa: E731
    p = np.exp(z - weigh(z)[..., None])
    lead = np.exp(second - weigh(z)) + (np.exp(weigh(others) - weigh(z)))
    log_p = z - weigh(z)[..., None]
    found = top - weigh(others), top - second, -np.log(lead), -np.sum(p * log_p, -1)
    score, gap, margin, entropy = (a.astype(np.float32) for a in found)
    token = token.astype(np.int32)
    return Film(token, score, gap, margin, entropy, logits, prompt, room)


def look_of(logits_WV: jax.Array) -> ModelQueries:
    """A closer look at logits that are their own hidden vectors.

    They are also what the shadows say, as odds of each id.
    """

    def divergence(then_WV):
        log_p, log_q = jax.nn.log_softmax(logits_WV), jax.nn.log_softmax(then_WV)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    at = lambda ids_WM: jnp.take_along_axis(logits_WV, ids_WM, axis=-1)  # noqa: E731
    last = logits_WV.shape[1] - 1
    shadow_at = lambda ids_W: at(jnp.minimum(ids_W, last)[:, None])[:, 0]  # noqa: E731
    return ModelQueries(logits_WV, at, divergence, shadow_at)


def key_of(case, n):
    """The key of a case's step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(3), case), n)


def view_of(pred, logits_WV, tokens_W, start, room, n, key) -> PolicyView:
    """What a policy sees of a block that starts at a place."""
    place_W = start + jnp.arange(tokens_W.shape[0], dtype=jnp.int32)
    masked_W = (tokens_W == MASK) & (place_W >= 0) & (place_W < room)
    decoded_W = (place_W >= 0) & (tokens_W != MASK)
    return PolicyView(
        tokens_W, masked_W, decoded_W, pred, place_W, room, jnp.int32(MASK), n, key,
        look_of(logits_WV),
    )  # fmt: skip


def play(policy: Policy, reel: Film) -> np.ndarray:
    """The blocks [N, S, W] that a policy leaves behind after every step."""
    case = jnp.arange(len(reel.room), dtype=jnp.int32)
    edges = (jnp.asarray(a, jnp.int32) for a in (reel.prompt, reel.room))
    return np.asarray(_player(policy)(case, reel[:5], reel.logits, *edges))


@functools.cache
def _player(policy: Policy):
    def act(case, room, held, frame):
        tokens_W, start, memory = held
        n, pred, logits_WV = frame
        view = view_of(pred, logits_WV, tokens_W, start, room, n, key_of(case, n))
        moved_W, learnt = policy.step(view, memory)
        alive = jnp.any(view.open_W)
        keep = lambda a, b: jnp.where(alive, a, b)  # noqa: E731
        moved_W, memory = jax.tree.map(keep, (moved_W, learnt), (tokens_W, memory))
        inside_W = (view.position_W >= 0) & (view.position_W < room)
        on = ~jnp.any((moved_W == MASK) & inside_W) & (start + WIDE < room)
        tokens_W = jnp.where(on, jnp.full_like(moved_W, MASK), moved_W)
        return (tokens_W, jnp.where(on, start + WIDE, start), memory), moved_W

    def one(case, features, logits, prompt, room):
        at_W = jnp.arange(WIDE, dtype=jnp.int32)
        tokens_W = jnp.where(at_W < prompt, PROMPT, MASK).astype(jnp.int32)
        n = FIRST_STEP + jnp.arange(logits.shape[0], dtype=jnp.int32)
        first = tokens_W, -prompt, policy.init(WIDE, VOCAB)
        rest = {"runner_up": -jnp.ones_like(features[0]), "lead": features[2]}
        frames = n, Prediction(*features, **rest), logits
        return jax.lax.scan(functools.partial(act, case, room), first, frames)[1]

    return jax.jit(jax.vmap(one))


def replay(rule, reel: Film) -> np.ndarray:
    """The same, of a rule: rule(seen, memory) -> {position: token, MASK: taken back}.

    seen: the features of the step as lists, `odds` for the score; open and decoded
    positions; index (steps since the block began), masks (that it began with), start.
    """
    blocks = np.zeros(reel.token.shape, np.int32)
    for case in range(len(reel.room)):
        start, room = -int(reel.prompt[case]), int(reel.room[case])
        block, memory, began = [PROMPT] * -start + [MASK] * (WIDE + start), {}, 0
        for at in range(reel.token.shape[1]):
            inside = [i for i in range(WIDE) if 0 <= start + i < room]
            opened = [i for i in inside if block[i] == MASK]
            if opened:
                began = at if not memory else began
                masks = memory.setdefault("masks", len(opened))
                seen = SimpleNamespace(
                    token=reel.token[case, at].tolist(), logits=reel.logits[case, at],
                    odds=reel.score[case, at].tolist(), gap=reel.gap[case, at].tolist(),
                    margin=reel.margin[case, at].tolist(),
                    entropy=reel.entropy[case, at].tolist(), open=opened, masks=masks,
                    decoded=[i for i in inside if block[i] != MASK], index=at - began,
                    start=start, case=case, n=FIRST_STEP + at, block=list(block),
                )  # fmt: skip
                for i, token in rule(seen, memory).items():
                    block[i] = token
            blocks[case, at] = block
            if all(block[i] != MASK for i in inside) and start + WIDE < room:
                start, block, memory = start + WIDE, [MASK] * WIDE, {}
    return blocks

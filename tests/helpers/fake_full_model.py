"""Full attention in miniature: a hash network under every cache rule, and its oracle.

A position's logits depend on the position and on the sum of the hashes of all tokens
that a call sees there: those of its window as they are, those outside it as they were
when the cache was primed. The oracle says the same from lists of tokens.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from helpers import fake_model
from helpers.fake_model import (
    MASK,
    ROWS,
    Weights,
    as_masked,
    table,
    token_hash,
    vectors,
)
from helpers.oracle import commits, finished

from jaxdave.core.model_api import ModelFns
from jaxdave.engine import decoders

CONFIG = fake_model.CONFIG.__class__(
    **{
        **vars(fake_model.CONFIG),
        "name": "full toy",
        "family": "llada",
        "attention": "full",
    }
)
SHIFTED = CONFIG.__class__(**{**vars(CONFIG), "logits_shift": "full"})


@functools.cache
def network(is_shifted: bool) -> ModelFns:
    """The hash network; its cache is the hash of every position when it was primed."""

    def hidden_of(context_K, place_L, hash_KL):
        # What predicts a position may stand to its left; the first keeps its own.
        said_L = jnp.where(place_L > 0, place_L - np.uint32(is_shifted), place_L)
        gain_KL = as_masked(hash_KL, place_L[None])
        parts = (context_K[:, None], said_L[None], gain_KL)
        return vectors(*(jnp.broadcast_to(part, hash_KL.shape) for part in parts))

    def before(end, place):
        return place < end.astype(jnp.uint32)

    def prefill(params, tokens_T, begin, start, end, window, prompt):
        del begin, prompt
        place_T = jnp.arange(tokens_T.shape[0], dtype=jnp.uint32)
        hash_T = token_hash(tokens_T.astype(jnp.uint32), place_T)
        hash_T = jnp.where(before(end, place_T), hash_T, np.uint32(0))
        context = jnp.sum(hash_T, dtype=jnp.uint32)
        hidden_TE = hidden_of(context[None], place_T, hash_T[None])[0]
        return jax.lax.dynamic_slice_in_dim(hidden_TE, start, window), hash_T[None]

    def forward(params, tokens_KL, start, end, cache):
        size = tokens_KL.shape[1]
        place_L = (start + jnp.arange(size, dtype=jnp.int32)).astype(jnp.uint32)
        place_T = jnp.arange(cache.shape[1], dtype=jnp.int32)
        outside_T = (place_T < start) | (place_T >= start + size)
        old = jnp.sum(jnp.where(outside_T, cache[0], np.uint32(0)), dtype=jnp.uint32)
        new_KL = token_hash(tokens_KL.astype(jnp.uint32), place_L[None])
        new_KL = jnp.where(before(end, place_L)[None], new_KL, np.uint32(0))
        context_K = old + jnp.sum(new_KL, axis=1, dtype=jnp.uint32)
        return hidden_of(context_K, place_L, new_KL), None

    return fake_model.network(4)._replace(
        forward=forward,
        prefill=prefill,
        evaluate_blocks=None,
        recheck=None,
        fast_prefill=None,
    )


def build(policy, draft_steps, length, room, cache, is_shifted=False, **rest):
    """FreeDave on the hash network under a cache rule."""
    return decoders.freedave(
        SHIFTED if is_shifted else CONFIG,
        policy,
        draft_steps=draft_steps,
        block_length=length,
        max_new_tokens=room,
        cache=cache,
        network=network(is_shifted),
        **rest,
    )


class Rule(NamedTuple):
    """A request's geometry: where it begins and ends, its blocks, its cache rule."""

    begin: int
    end: int
    length: int
    cache: str
    is_shifted: bool

    def block(self, canvas) -> int:
        """The first position of the first block that is not complete."""
        return (
            self.begin + (canvas.index(MASK) - self.begin) // self.length * self.length
        )

    def window(self, block: int) -> range:
        """The positions that a call evaluates; the others are frozen."""
        if self.cache == "none":
            return range(self.end)
        return range(block, block + self.length if self.cache == "dual" else self.end)


def logits(net: Weights, rule: Rule, canvas, frozen, block: int, places) -> np.ndarray:
    """What a call says at some positions; frozen: the canvas that the cache is of."""
    inside = rule.window(block)
    seen = [canvas[p] if p in inside else frozen[p] for p in range(rule.end)]
    hashes = token_hash(
        np.asarray(seen, np.uint32), np.arange(len(seen), dtype=np.uint32)
    )
    context = np.full((len(places), 1), np.sum(hashes, dtype=np.uint32))
    asked = np.asarray(places, np.int64)[:, None] - rule.is_shifted
    net = Weights(*(np.asarray(part) for part in net))  # pyright: ignore
    with np.errstate(over="ignore"):
        ids = np.arange(ROWS, dtype=np.uint32)[None]
        rows = asked.astype(np.uint32)
        return table(net, context, rows, ids, lambda a: a.astype(np.float32))


def step(net: Weights, rule: Rule, canvas, source, frozen, policy: str) -> list[int]:
    """The policy's next state of `canvas`, with what is said of `source`."""
    block = rule.block(canvas)
    places = [p for p in range(block, block + rule.length) if canvas[p] == MASK]
    said = logits(net, rule, source, frozen, block, places)
    if rule.is_shifted and rule.cache != "none" and places[0] == block:
        places, said, policy = places[:1], said[:1], "static(1)"
    return commits(canvas, places, said, policy)


class Answer(NamedTuple):
    """The states of a decode, the last one final, and how many blocks were begun."""

    states: list[list[int]]
    refreshes: int
    reason: str


def oracle(
    net: Weights, prompt, room: int, length: int, cache: str, is_shifted, policy
):
    """A policy under a cache rule by definition: one state, one step at a time."""
    rule = Rule(len(prompt), len(prompt) + room, length, cache, is_shifted)
    states, frozen, refreshes = [list(prompt) + [MASK] * room], [], 0
    block = -1
    while not (reason := finished(states[-1], rule.begin, rule.end)):
        now = states[-1]
        if rule.block(now) != block:
            block, frozen, refreshes = rule.block(now), now, refreshes + 1
        states.append(step(net, rule, now, now, frozen, policy))
    return Answer(states, refreshes, reason)


def freedave_calls(net, prompt, room, length, cache, is_shifted, policy, drafts: int):
    """Calls of FreeDave (exact match) on the path of the oracle."""
    rule = Rule(len(prompt), len(prompt) + room, length, cache, is_shifted)
    path = oracle(net, prompt, room, length, cache, is_shifted, policy).states
    at, frozen, calls, block = 0, path[0], 1, rule.block(path[0])
    while at + 1 < len(path) - 1:
        seen, known = path[at], path[at + 1]
        if cache != "none" and rule.block(known) != block:
            at, calls, block, frozen = at + 1, calls + 1, rule.block(known), known
            continue
        chain = [known]
        while len(chain) < drafts:
            last = chain[-1]
            if cache != "none" and rule.block(last) != block:
                break
            ahead = step(net, rule, last, seen, frozen, policy)
            if finished(ahead, rule.begin, rule.end):
                break
            chain.append(ahead)
        calls, at = calls + 1, at + 1
        # A state whose block is complete is evaluated by the refresh, not here.
        while (
            path[at + 1] in chain
            and at + 1 < len(path) - 1
            and (cache == "none" or rule.block(path[at + 1]) == block)
        ):
            at += 1
    return calls

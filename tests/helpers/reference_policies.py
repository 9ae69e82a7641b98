"""The published rules in plain Python, from their formulas and not from our code.

Each maker returns rule(view, memory) -> {position: token}; see `replays.run_rule`.
"""

import functools
import math

import jax
import numpy as np
from helpers.replays import WIDE, key_of


def p(odds: float) -> float:
    """The probability of log-odds."""
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


def best(positions, score, count: int = 1) -> list[int]:
    """The first `count` by (score descending, position); at least one."""
    return sorted(positions, key=lambda i: (-score[i], i))[: max(count, 1)]


def fill(view, positions) -> dict[int, int]:
    """The predicted tokens at some positions."""
    return {i: view.token[i] for i in positions}


def static(count: int):
    return lambda view, memory: fill(view, best(view.open, view.odds, count))


def left_to_right(count: int):
    return lambda view, memory: fill(view, view.open[:count])


def leftmost_run(tau: float, count: int):
    def rule(view, memory):
        run = []
        for i in view.open:
            if p(view.odds[i]) < tau:
                break
            run.append(i)
        return fill(view, run or view.open[:count])

    return rule


def threshold(tau: float):
    def rule(view, memory):
        sure = [i for i in view.open if p(view.odds[i]) >= tau]
        return fill(view, sure or best(view.open, view.odds))

    return rule


def cad(tau: float, least: int, most: int):
    def rule(view, memory):
        sure = [i for i in view.open if p(view.odds[i]) >= tau]
        number = min(max(len(sure), least), most)
        return fill(view, best(view.open, view.odds, number))

    return rule


def factor(f: float):
    def rule(view, memory):
        order, n = best(view.open, view.odds, WIDE), 1
        while n < len(order) and p(view.odds[order[n]]) >= 1 - f / (n + 2):
            n += 1
        return fill(view, order[:n])

    return rule


def split(total: int, steps: int, index: int) -> int:
    """The even split, as the list of all steps; nothing is left after the last one."""
    counts = [total // steps] * steps
    for k in range(total % steps):
        counts[k] += 1
    return counts[index] if index < steps - 1 else total


def low_confidence(steps: int):
    def rule(view, memory):
        count = split(view.masks, steps, view.index)
        return fill(view, best(view.open, view.odds, count))

    return rule


def random_numbers(view, kind: str) -> list[float]:
    """The numbers of (request, step, position) that the interface promises."""
    return np.asarray(_random_numbers(view.case, view.n, view.start, kind)).tolist()


@functools.partial(jax.jit, static_argnames="kind")
def _random_numbers(case, n, start, kind):
    keys = jax.vmap(lambda place: jax.random.fold_in(key_of(case, n), place))
    draw = {
        "uniform": jax.random.uniform,
        "gumbel": functools.partial(jax.random.gumbel, mode="high"),
    }[kind]
    return jax.vmap(draw)(keys(start + np.arange(WIDE, dtype=np.int32)))


def random(steps: int):
    def rule(view, memory):
        count = split(view.masks, steps, view.index)
        return fill(view, best(view.open, random_numbers(view, "uniform"), count))

    return rule


def first_hitting():
    def rule(view, memory):
        return fill(view, best(view.open, random_numbers(view, "uniform")))

    return rule


def times(steps: int, eps: float) -> list[float]:
    """Dream's linear time; the last step ends at 0."""
    return [1 - (1 - eps) * i / steps for i in range(steps)] + [0.0]


def origin(steps: int, eps: float):
    """One draw per position, against the time that passes until one is picked."""
    t = times(steps, eps)

    def rule(view, memory):
        u = random_numbers(view, "uniform")
        now = memory.get("at", 0)
        for at in range(now, steps):
            chosen = [i for i in view.open if u[i] < 1 - t[at + 1] / t[now]]
            if chosen:
                break
        memory["at"] = at + 1
        return fill(view, chosen)

    return rule


def dream_count(view, memory, steps: int, eps: float) -> int:
    """Dream's loop: the steps of the grid one by one, until one commits something."""
    t = times(steps, eps)
    at = memory.get("at", 0)
    while not (count := int(len(view.open) * (1 - t[at + 1] / t[at]))):
        at += 1
    memory["at"] = at + 1
    return count


def dream(kind: str, steps: int, eps: float, alg_temp: float = 0.0):
    def rule(view, memory):
        order = {
            "maskgit_plus": view.odds,
            "topk_margin": view.margin,
            "entropy": [-h for h in view.entropy],
        }[kind]
        if alg_temp:
            noise = random_numbers(view, "gumbel")
            weigh = {
                "maskgit_plus": p,
                "topk_margin": lambda m: 1 - math.exp(-m),
                "entropy": lambda h: h,
            }[kind]
            order = [weigh(c) / alg_temp + noise[i] for i, c in enumerate(order)]
        count = dream_count(view, memory, steps, eps)
        return fill(view, best(view.open, order, count))

    return rule


def sequential(steps: int):
    def rule(view, memory):
        count = max(1, split(WIDE, steps, view.index))
        slots = range(view.open[0], view.open[0] + count)
        return fill(view, [i for i in view.open if i in slots])

    return rule


def low_confidence_static(steps: int):
    def rule(view, memory):
        count = split(WIDE, steps, view.index)
        return fill(view, best(view.open, view.odds, count))

    return rule


def low_confidence_dynamic(steps: int, tau: float):
    def rule(view, memory):
        count = max(1, split(WIDE, steps, view.index))
        high = [i for i in view.open if p(view.odds[i]) > tau]
        enough = len(high) >= count
        return fill(view, high if enough else best(view.open, view.odds, count))

    return rule


def entropy_bounded(bound: float):
    def rule(view, memory):
        order = best(view.open, [-h for h in view.entropy], WIDE)
        sums = np.cumsum([view.entropy[i] for i in order])
        return fill(view, order[: max(1, int(np.searchsorted(sums, bound)))])

    return rule


def entropy_threshold(tau: float):
    def rule(view, memory):
        order = best(view.open, [-h for h in view.entropy], WIDE)
        return fill(view, order[:1] + [i for i in order[1:] if view.entropy[i] < tau])

    return rule


def multi_block(length: int, tau: float, share: float):
    """Small blocks that are added one by one, as published."""

    def rule(view, memory):
        def left(block):
            return [i for i in view.open if i // length == block]

        last = memory.setdefault("last", 0)
        is_begun = 1 - len(left(last)) / length >= share
        if is_begun and (last + 1) * length < WIDE:
            memory["last"] = last = last + 1
        sure = [i for i in view.open if i // length <= last and view.entropy[i] < tau]
        first = left(view.open[0] // length)
        if not set(first) & set(sure):
            sure += best(first, [-h for h in view.entropy])
        return fill(view, sure)

    return rule


def dilated(base: int):
    """Each round from its own set: multiples of a distance that no round has had."""
    rounds, seen, distance = [], set(), WIDE // base
    while distance >= 1:
        rounds.append({k for k in range(WIDE) if k % distance == 0} - seen)
        seen |= rounds[-1]
        distance //= base
    rounds = [r for r in [*rounds, set(range(WIDE)) - seen] if r]
    if len(rounds) > 1 and len(rounds[-1]) < len(rounds[-2]):
        rounds[-2:] = [rounds[-2] | rounds[-1]]

    def rule(view, memory):
        return fill(
            view, next(r for r in rounds if r & set(view.open)) & set(view.open)
        )

    return rule


def eb_sampler(gamma: float, proxy: str):
    def rule(view, memory):
        score = view.odds if proxy == "confidence" else [-h for h in view.entropy]
        order, k = best(view.open, score, WIDE), 1
        for j in range(1, len(order) + 1):
            h = [view.entropy[i] for i in order[:j]]
            k = j if sum(h) - max(h) <= gamma else k
        return fill(view, order[:k])

    return rule


def joint_threshold(tau: float, editing: float, least: int):
    """Fills by one threshold, and replaces what is doubted by another."""

    def rule(view, memory):
        high = [i for i in view.open if p(view.odds[i]) > tau]
        filled = high if len(high) >= least else best(view.open, view.odds, least)
        doubted = [i for i in view.decoded if view.token[i] != view.block[i]]
        doubted = [i for i in doubted if p(view.odds[i]) > editing]
        return fill(view, [*(filled if view.open else []), *doubted])

    return rule


def hierarchical(high: float, low: float):
    def rule(view, memory):
        runs, last = [], None
        for i in view.open:
            runs = [*runs[:-1], [*runs[-1], i]] if i - 1 == last else [*runs, [i]]
            last = i
        heads = [best(run, view.odds)[0] for run in runs]
        chosen = {i for i in heads if p(view.odds[i]) > low}
        chosen |= {i for i in view.open if p(view.odds[i]) > high}
        return fill(view, chosen | set(best(view.open, view.odds)))

    return rule


def local_leap(high: float, low: float, radius: int):
    def rule(view, memory):
        anchors = [i for i in view.open if p(view.odds[i]) >= high]
        near = {j for i in anchors for j in range(i - radius, i + radius + 1)}
        chosen = {i for i in view.open if i in near and p(view.odds[i]) >= low}
        chosen |= set(anchors) | set(best(view.open, view.odds))
        return fill(view, chosen)

    return rule

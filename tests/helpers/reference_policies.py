"""The published rules in plain Python, from their formulas and not from our code.

Each maker returns rule(seen, memory) -> {position: token}; see `policy_films.replay`.
"""

import functools
import math

import jax
import numpy as np
from helpers.replays import WIDE, key_of


def p(odds: float) -> float:
    """The probability of log-odds."""
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0


def best(places, score, count: int = 1) -> list[int]:
    """The first `count` by (score descending, position); at least one."""
    return sorted(places, key=lambda i: (-score[i], i))[: max(count, 1)]


def said(seen, places) -> dict[int, int]:
    return {i: seen.token[i] for i in places}


def static(count: int):
    return lambda seen, memory: said(seen, best(seen.open, seen.odds, count))


def left_to_right(count: int):
    return lambda seen, memory: said(seen, seen.open[:count])


def threshold(tau: float):
    def rule(seen, memory):
        sure = [i for i in seen.open if p(seen.odds[i]) >= tau]
        return said(seen, sure or best(seen.open, seen.odds))

    return rule


def factor(f: float):
    def rule(seen, memory):
        order, n = best(seen.open, seen.odds, WIDE), 1
        while n < len(order) and p(seen.odds[order[n]]) >= 1 - f / (n + 2):
            n += 1
        return said(seen, order[:n])

    return rule


def split(total: int, steps: int, index: int) -> int:
    """S3, written as the list of all steps; nothing is left after the last one."""
    counts = [total // steps] * steps
    for k in range(total % steps):
        counts[k] += 1
    return counts[index] if index < steps - 1 else total


def low_confidence(steps: int):
    def rule(seen, memory):
        count = split(seen.masks, steps, seen.index)
        return said(seen, best(seen.open, seen.odds, count))

    return rule


def drawn(seen, kind: str) -> list[float]:
    """The numbers of (request, step, position) that the interface promises."""
    return np.asarray(_draws(seen.case, seen.n, seen.start, kind)).tolist()


@functools.partial(jax.jit, static_argnames="kind")
def _draws(case, n, start, kind):
    keys = jax.vmap(lambda place: jax.random.fold_in(key_of(case, n), place))
    draw = {
        "uniform": jax.random.uniform,
        "gumbel": functools.partial(jax.random.gumbel, mode="high"),
    }[kind]
    return jax.vmap(draw)(keys(start + np.arange(WIDE, dtype=np.int32)))


def random(steps: int):
    def rule(seen, memory):
        count = split(seen.masks, steps, seen.index)
        return said(seen, best(seen.open, drawn(seen, "uniform"), count))

    return rule


def first_hitting():
    return lambda seen, memory: said(seen, best(seen.open, drawn(seen, "uniform")))


def share(steps: int, eps: float, index: int) -> float:
    """1 - t_{i+1} / t_i of Dream's linear time; 1 from the last step on."""
    t = [1 - (1 - eps) * i / steps for i in range(steps + 1)]
    return 1 - t[index + 1] / t[index] if index < steps - 1 else 1.0


def origin(steps: int, eps: float):
    def rule(seen, memory):
        u = drawn(seen, "uniform")
        taken = [i for i in seen.open if u[i] < share(steps, eps, seen.index)]
        return said(seen, taken or [min(seen.open, key=lambda i: (u[i], i))])

    return rule


def dream(kind: str, steps: int, eps: float, alg_temp: float = 0.0):
    def rule(seen, memory):
        order = {
            "maskgit_plus": seen.odds,
            "topk_margin": seen.margin,
            "entropy": [-h for h in seen.entropy],
        }[kind]
        if alg_temp:
            noise = drawn(seen, "gumbel")
            weigh = {
                "maskgit_plus": p,
                "topk_margin": lambda m: 1 - math.exp(-m),
                "entropy": lambda h: h,
            }[kind]
            order = [weigh(c) / alg_temp + noise[i] for i, c in enumerate(order)]
        count = int(len(seen.open) * share(steps, eps, seen.index))
        return said(seen, best(seen.open, order, count))

    return rule


def sequential(steps: int):
    def rule(seen, memory):
        count = max(1, split(WIDE, steps, seen.index))
        slots = range(seen.open[0], seen.open[0] + count)
        return said(seen, [i for i in seen.open if i in slots])

    return rule


def low_confidence_static(steps: int):
    def rule(seen, memory):
        count = split(WIDE, steps, seen.index)
        return said(seen, best(seen.open, seen.odds, count))

    return rule


def low_confidence_dynamic(steps: int, tau: float):
    def rule(seen, memory):
        count = max(1, split(WIDE, steps, seen.index))
        high = [i for i in seen.open if p(seen.odds[i]) > tau]
        enough = len(high) >= count
        return said(seen, high if enough else best(seen.open, seen.odds, count))

    return rule


def entropy_bounded(bound: float):
    def rule(seen, memory):
        order = best(seen.open, [-h for h in seen.entropy], WIDE)
        sums = np.cumsum([seen.entropy[i] for i in order])
        return said(seen, order[: max(1, int(np.searchsorted(sums, bound)))])

    return rule


def eb_sampler(gamma: float, proxy: str):
    def rule(seen, memory):
        score = seen.odds if proxy == "confidence" else [-h for h in seen.entropy]
        order, k = best(seen.open, score, WIDE), 1
        for j in range(1, len(order) + 1):
            h = [seen.entropy[i] for i in order[:j]]
            k = j if sum(h) - max(h) <= gamma else k
        return said(seen, order[:k])

    return rule


def hierarchical(high: float, low: float):
    def rule(seen, memory):
        runs, last = [], None
        for i in seen.open:
            runs = [*runs[:-1], [*runs[-1], i]] if i - 1 == last else [*runs, [i]]
            last = i
        heads = [best(run, seen.odds)[0] for run in runs]
        taken = {i for i in heads if p(seen.odds[i]) > low}
        taken |= {i for i in seen.open if p(seen.odds[i]) > high}
        return said(seen, taken | set(best(seen.open, seen.odds)))

    return rule


def local_leap(high: float, low: float, radius: int):
    def rule(seen, memory):
        anchors = [i for i in seen.open if p(seen.odds[i]) >= high]
        near = {j for i in anchors for j in range(i - radius, i + radius + 1)}
        taken = {i for i in seen.open if i in near and p(seen.odds[i]) >= low}
        taken |= set(anchors) | set(best(seen.open, seen.odds))
        return said(seen, taken)

    return rule

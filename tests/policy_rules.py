"""The published rules in plain Python, from their formulas and not from our code.

Each maker returns rule(seen, memory) -> {position: token}; see `policy_films.replay`.
"""

import functools
import math
from decimal import Decimal, getcontext

import jax
import numpy as np
from policy_films import MASK, VOCAB, WIDE, key_of

getcontext().prec = 60


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


def deferred(window: int, tau: float, most: int):
    """The window kept as two edges that move with what is committed, as published."""

    def rule(seen, memory):
        left = seen.open[0]
        right = memory.get("right", seen.open[0])
        while right < WIDE and len([i for i in seen.open if i < right]) < window:
            right += 1
        memory["right"] = right = min(right, left + most)
        inside = [i for i in seen.open if i < right]
        sure = [i for i in inside if p(seen.odds[i]) >= tau]
        return said(seen, sure or best(inside, seen.odds))

    return rule


def log_sum(z) -> float:
    top = max(z)
    return top + math.log(sum(math.exp(v - top) for v in z)) if top > -1e300 else top


def credit(tau: float, alpha: float, gamma: float, beta: float):
    def rule(seen, memory):
        held = memory.setdefault("credit", np.zeros((WIDE, VOCAB))) * beta
        for i in seen.open:
            held[i, seen.token[i]] += p(seen.odds[i]) ** gamma
        memory["credit"] = held
        lifted = seen.logits.astype(float) + alpha * np.log(held + 1)
        token = np.argmax(lifted, axis=1).tolist()
        odds = [
            lifted[i, token[i]] - log_sum(np.delete(lifted[i], token[i]).tolist())
            for i in range(WIDE)
        ]
        sure = [i for i in seen.open if p(odds[i]) >= tau] or best(seen.open, odds)
        return {i: token[i] for i in sure}

    return rule


def klass(tau: float, most: float, length: int):
    def rule(seen, memory):
        z = seen.logits.astype(float)
        log_now = np.array([row - log_sum(row.tolist()) for row in z])
        history = memory.setdefault("history", [])
        if "then" in memory:
            apart = np.exp(log_now) * (log_now - memory["then"])
            history.append(np.sum(apart, axis=1))
        memory["then"] = log_now
        recent = history[-length:] if len(history) >= length else [[math.inf] * WIDE]
        ready = [
            i
            for i in seen.open
            if p(seen.odds[i]) > tau and all(kl[i] < most for kl in recent)
        ]
        return said(seen, ready or best(seen.open, seen.odds))

    return rule


def prophet(steps: int, bounds, start: int, length: int):
    def rule(seen, memory):
        places = seen.open
        if start >= 0:
            span = range(start, start + length)
            places = [i for i in range(WIDE) if seen.start + i in span]
            places = places if len(places) == length else []
        progress = seen.index / steps
        phase = 0 if progress < 1 / 3 else 1 if progress < 2 / 3 else 2
        if places and np.mean([seen.gap[i] for i in places]) >= bounds[phase]:
            return said(seen, seen.open)
        return low_confidence(steps)(seen, memory)

    return rule


def sched(steps, high, low, mode, k, progress, patience, ratio, eps):
    def rule(seen, memory):
        t = seen.index / (steps - 1)
        tau = {
            "cosine": low + (high - low) * 0.5 * (1 + math.cos(math.pi * t)),
            "linear": high + (low - high) * t,
            "exp": low + (high - low) * math.exp(-k * t),
        }[mode]
        then = memory.get("then")
        changed = [i for i in seen.open if then is None or seen.token[i] != then[i]]
        memory["then"] = seen.token
        steady = 1 - len(seen.open) / WIDE >= progress
        steady &= len(changed) / len(seen.open) <= ratio
        memory["steady"] = memory.get("steady", 0) + 1 if steady else 0
        clear = np.mean([seen.gap[i] for i in seen.open]) >= tau
        if clear and memory["steady"] > patience:
            return said(seen, seen.open)
        return dream("entropy", steps, eps)(seen, memory)

    return rule


def saber(n: int):
    """In decimals, where no confidence rounds to 1."""

    def rule(seen, memory):
        c = [1 / (1 + (-Decimal(odds)).exp()) for odds in seen.odds]
        last = memory.get("last", [Decimal(0)] * WIDE)
        final, memory["last"] = memory.setdefault("final", {}), c
        taken = []
        if final:
            taken = [i for i in seen.open if sum(c[i] - v for v in final.values()) > 0]
        taken = taken if len(taken) >= n else best(seen.open, c, n)
        final.update({i: c[i] for i in taken})
        moved = said(seen, taken)
        if len(taken) < len(seen.open):
            k = len(taken)
            back = min(k - 1, max(n // 2, math.ceil(k / 8)))
            rise = {i: c[i] - last[i] for i in [*seen.decoded, *taken]}
            order = sorted(rise, key=lambda i: (rise[i], i))
            moved.update({i: MASK for i in order[:back]})
        return moved

    return rule

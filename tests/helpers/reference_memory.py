"""The published rules with memory in plain Python; see `reference_policies`."""

import math
from decimal import Decimal, getcontext

import numpy as np
from helpers.reference_policies import best, fill, low_confidence, p, times
from helpers.replays import MASK, VOCAB, WIDE

getcontext().prec = 60


def deferred(window: int, tau: float, max_window: int):
    """The window as two edges that move with what is committed, as published."""

    def rule(view, memory):
        left = view.open[0]
        right = memory.get("right", view.open[0])
        while right < WIDE and len([i for i in view.open if i < right]) < window:
            right += 1
        memory["right"] = right = min(right, left + max_window)
        inside = [i for i in view.open if i < right]
        sure = [i for i in inside if p(view.odds[i]) >= tau]
        return fill(view, sure or best(inside, view.odds))

    return rule


def log_sum(z) -> float:
    top = max(z)
    return top + math.log(sum(math.exp(v - top) for v in z)) if top > -1e300 else top


def credit(tau: float, alpha: float, gamma: float, beta: float, kept: int = VOCAB):
    """With all ids as published, or with the best few of each position."""

    def rule(view, memory):
        credits = memory.setdefault("credit", np.zeros((WIDE, VOCAB))) * beta
        for i in view.open:
            ids = np.flatnonzero(credits[i])
            if len(ids) == kept and view.token[i] not in ids:
                credits[i, ids[np.argmin(credits[i, ids])]] = 0
            credits[i, view.token[i]] += p(view.odds[i]) ** gamma
        memory["credit"] = credits
        boosted = view.logits.astype(float) + alpha * np.log(credits + 1)
        token = np.argmax(boosted, axis=1).tolist()
        odds = [
            boosted[i, token[i]] - log_sum(np.delete(boosted[i], token[i]).tolist())
            for i in range(WIDE)
        ]
        sure = [i for i in view.open if p(odds[i]) >= tau] or best(view.open, odds)
        return {i: token[i] for i in sure}

    return rule


def klass(tau: float, kl_bound: float, length: int):
    def rule(view, memory):
        z = view.logits.astype(float)
        log_now = np.array([row - log_sum(row.tolist()) for row in z])
        history = memory.setdefault("history", [])
        if "before" in memory:
            kl = np.exp(log_now) * (log_now - memory["before"])
            history.append(np.sum(kl, axis=1))
        memory["before"] = log_now
        recent = history[-length:] if len(history) >= length else [[math.inf] * WIDE]
        ready = [
            i
            for i in view.open
            if p(view.odds[i]) > tau and all(kl[i] < kl_bound for kl in recent)
        ]
        return fill(view, ready or best(view.open, view.odds))

    return rule


def prophet(steps: int, bounds, start: int, length: int):
    def rule(view, memory):
        positions = view.open
        if start >= 0:
            span = range(start, start + length)
            positions = [i for i in range(WIDE) if view.start + i in span]
            positions = positions if len(positions) == length else []
        first = view.start
        while first > 0:
            first -= WIDE
        blocks = math.ceil((view.end - first) / WIDE)
        done = (view.start - first) // WIDE * steps + view.index + 1
        progress = done / (blocks * steps)
        phase = 0 if progress < 0.33 else 1 if progress < 0.67 else 2
        if positions and np.mean([view.gap[i] for i in positions]) >= bounds[phase]:
            return fill(view, view.open)
        return low_confidence(steps)(view, memory)

    return rule


def sched(steps, high, low, mode, k, progress, patience, ratio, eps):
    """SchED's loop: a step of the grid that commits none changes the bound alone."""

    def tau(at: int) -> float:
        t = at / (steps - 1)
        return {
            "cosine": low + (high - low) * 0.5 * (1 + math.cos(math.pi * t)),
            "linear": high + (low - high) * t,
            "exp": low + (high - low) * math.exp(-k * t),
        }[mode]

    def rule(view, memory):
        gap = np.mean([view.gap[i] for i in view.open])
        t = times(steps, eps)
        while True:
            at = memory.get("at", 0)
            memory["at"] = at + 1
            before = memory.get("before")
            changed = [
                i for i in view.open if before is None or view.token[i] != before[i]
            ]
            memory["before"] = view.token
            steady = 1 - len(view.open) / WIDE >= progress
            steady &= len(changed) / len(view.open) <= ratio
            memory["steady"] = memory.get("steady", 0) + 1 if steady else 0
            if gap >= tau(at) and memory["steady"] > patience:
                return fill(view, view.open)
            count = int(len(view.open) * (1 - t[at + 1] / t[at]))
            if count:
                return fill(view, best(view.open, [-h for h in view.entropy], count))

    return rule


def exact(odds) -> Decimal:
    """The probability of log-odds, never rounded to 1."""
    return 1 / (1 + (-Decimal(float(odds))).exp())


def saber(n: int):
    """In decimals, where no confidence rounds to 1."""

    def rule(view, memory):
        c = [exact(odds) for odds in view.odds]
        last = memory.get("last", [Decimal(0)] * WIDE)
        final, memory["last"] = memory.setdefault("final", {}), c
        chosen = []
        if final:
            chosen = [i for i in view.open if sum(c[i] - v for v in final.values()) > 0]
        chosen = chosen if len(chosen) >= n else best(view.open, c, n)
        final.update({i: c[i] for i in chosen})
        filled = fill(view, chosen)
        if len(chosen) < len(view.open):
            k = len(chosen)
            back = min(k - 1, max(n // 2, math.ceil(k / 8)))
            rise = {i: c[i] - last[i] for i in [*view.decoded, *chosen]}
            order = sorted(rise, key=lambda i: (rise[i], i))
            filled.update({i: MASK for i in order[:back]})
        return filled

    return rule


def wino(tau: float, back: float):
    def rule(view, memory):
        last = memory.get("last", 30)
        max_tokens = min(max(int(len(view.open) * 0.7), 5), 20)
        sure = [i for i in view.open if p(view.odds[i]) > tau]
        if len(sure) > max_tokens:
            sure = best(sure, view.odds, max_tokens)
        sure = sure or best(view.open, view.odds)
        memory["last"] = len(sure)
        filled = fill(view, sure)
        if len(sure) > 1:
            shadow = {i: view.logits[i][view.block[i]] for i in view.decoded}
            doubted = [i for i in shadow if exact(shadow[i]) < Decimal(back)]
            if len(doubted) >= last:
                doubted = sorted(shadow, key=lambda i: (shadow[i], i))[: last - 1]
            filled.update({i: MASK for i in doubted})
        return filled

    return rule

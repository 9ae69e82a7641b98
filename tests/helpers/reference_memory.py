"""The rules with memory in plain Python; see `policy_rules`."""

import math
from decimal import Decimal, getcontext

import numpy as np
from helpers.reference_policies import best, dream, low_confidence, p, said
from helpers.replays import MASK, VOCAB, WIDE

getcontext().prec = 60


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


def credit(tau: float, alpha: float, gamma: float, beta: float, kept: int = VOCAB):
    """With all ids as published, or with the best few of each position."""

    def rule(seen, memory):
        held = memory.setdefault("credit", np.zeros((WIDE, VOCAB))) * beta
        for i in seen.open:
            known = np.flatnonzero(held[i])
            if len(known) == kept and seen.token[i] not in known:
                held[i, known[np.argmin(held[i, known])]] = 0
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


def exact(odds) -> Decimal:
    """The probability of log-odds, never rounded to 1."""
    return 1 / (1 + (-Decimal(float(odds))).exp())


def saber(n: int):
    """In decimals, where no confidence rounds to 1."""

    def rule(seen, memory):
        c = [exact(odds) for odds in seen.odds]
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


def wino(tau: float, back: float):
    def rule(seen, memory):
        last = memory.get("last", 30)
        most = min(max(int(len(seen.open) * 0.7), 5), 20)
        sure = [i for i in seen.open if p(seen.odds[i]) > tau]
        if len(sure) > most:
            sure = best(sure, seen.odds, most)
        sure = sure or best(seen.open, seen.odds)
        memory["last"] = len(sure)
        moved = said(seen, sure)
        if len(sure) > 1:
            shadow = {i: seen.logits[i][seen.block[i]] for i in seen.decoded}
            doubted = [i for i in shadow if exact(shadow[i]) < Decimal(back)]
            if len(doubted) >= last:
                doubted = sorted(shadow, key=lambda i: (shadow[i], i))[: last - 1]
            moved.update({i: MASK for i in doubted})
        return moved

    return rule

"""Mixtures of experts as plain NumPy loops, and tiny configs of all kinds of router."""

import dataclasses

import numpy as np

from jaxdave.core.config import ModelConfig
from jaxdave.core.experts_config import ExpertsConfig

QWEN = ExpertsConfig(count=8, per_token=2, inter=12, renormalize=True)
LLADA = ExpertsConfig(
    count=8, per_token=3, inter=12, shared_inter=20, bias="weights", dense_layers=0
)
LLADA2 = ExpertsConfig(
    count=16, per_token=4, inter=8, shared_inter=8, score="sigmoid", bias="choice",
    groups=4, kept_groups=2, renormalize=True, scale=2.5, dense_layers=1,
)  # fmt: skip
KINDS = {"qwen": QWEN, "llada": LLADA, "llada2": LLADA2}
TINY = ModelConfig(
    name="mixture", family="sdar-moe", num_layers=3, hidden=32, inter=48, heads=4,
    kv_heads=2, head_dim=8, rotary_dim=8, vocab_rows=40, vocab_size=37, mask_id=36,
    pad_id=35, stop_ids=(34,), qk_norm=True, max_positions=512, experts=QWEN,
)  # fmt: skip


def tiny(kind: str, **changes) -> ModelConfig:
    """A model of a few thousand weights with a kind of router."""
    return dataclasses.replace(TINY, experts=KINDS[kind], **changes)


def route(logits_SX, bias_X, config: ExpertsConfig):
    """(experts [S, C], weights [S, C]) of router logits, token by token, float32."""
    bias_X = None if bias_X is None else np.asarray(bias_X)
    chosen, weights = [], []
    for logits_X in np.asarray(logits_SX, np.float32):
        if config.score == "softmax":
            power_X = np.exp(logits_X - logits_X.max())
            score_X = power_X / power_X.sum()
        else:
            score_X = 1 / (1 + np.exp(-logits_X))
        rank_X = score_X if bias_X is None else score_X + bias_X
        size = config.count // config.groups
        allowed = range(config.count)
        if config.groups > 1:
            value = [
                np.sort(rank_X[g * size : (g + 1) * size])[-2:].sum()
                for g in range(config.groups)
            ]
            kept = np.argsort(-np.array(value), kind="stable")[: config.kept_groups]
            allowed = [x for x in allowed if x // size in kept]
        best = sorted(allowed, key=lambda x: (-rank_X[x], x))[: config.per_token]
        weight = (score_X if config.bias == "choice" else rank_X)[best]
        if config.renormalize:
            weight = weight / weight.sum()
        chosen.append(best)
        weights.append(weight * config.scale)
    return np.array(chosen), np.array(weights, np.float32)


def mix(x_SE, expert_SC, weight_SC, gate_XEF, up_XEF, down_XFE):
    """The weighted outputs of each token's experts, one product at a time, float64."""
    output_SE = np.zeros_like(np.asarray(x_SE, np.float64))
    arrays = (np.asarray(a, np.float64) for a in (gate_XEF, up_XEF, down_XFE))
    gate_XEF, up_XEF, down_XFE = arrays
    for s, x_E in enumerate(np.asarray(x_SE, np.float64)):
        for x, weight in zip(expert_SC[s], weight_SC[s], strict=True):
            gate_F, up_F = x_E @ gate_XEF[x], x_E @ up_XEF[x]
            inner_F = gate_F / (1 + np.exp(-gate_F)) * up_F
            output_SE[s] += weight * (inner_F @ down_XFE[x])
    return output_SE

"""Rules with the default drafts: their calls, how few an oracle needs, and seconds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.harness.draft_decodes import (
    decode,
    is_lossless,
    make_decoder,
    perfect_draft_calls,
)
from bench.harness.loading import LoadedModel
from bench.harness.oracle_drafts import count_oracle_calls, decode_path, oracle
from bench.harness.paired import ratio_of_sums
from bench.harness.timing import median_with_interval, time_alternately, time_call
from bench.policies import total_calls
from jaxdave import policies
from jaxdave.drafting import tree
from jaxdave.drafting.nested import nested
from jaxdave.engine.decode_config import DraftSteps
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion

SECONDS_DRAFT_STEPS = (2, 3, 4, 6, 8)
RULES = {
    "static": policies.static(1),
    "threshold 0.9": policies.threshold(0.9),
    "entropy bounded": policies.entropy_bounded(),
}
PUBLISHED = (
    {
        "method": "FreeDave, arXiv 2510.00294",
        "models": "Dream",
        "against": "one token a step",
        "reported": "3.78 times fewer calls",
    },
    {
        "method": "SSD, arXiv 2510.04147",
        "models": "not looked up",
        "against": "one token a step",
        "reported": "3.46 times as fast",
    },
    {
        "method": "Spiffy, arXiv 2509.18085 v4",
        "models": "LLaDA, Dream, SDAR",
        "against": "one token a step; wraps a threshold",
        "reported": "up to 8.6 times fewer calls, 6.3 times as fast",
    },
)
"""What their authors report, of their models and tasks."""


def compare_policies(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], draft_steps: Sequence[int]
) -> list[dict[str, Any]]:
    """Count the calls of rules, alone and with drafts, against one token a step.

    Args:
        loaded: the model.
        prompts: token ids of the prompts.
        draft_steps: numbers of drafts.

    Returns:
        Rows of the table.
    """
    is_causal = loaded.config.attention == "block_causal"
    static_calls: list[int] = []
    table = []
    for name, policy in RULES.items():
        plain = decode(loaded, policy, nested, 1, 1, prompts)
        calls = [row.nfe.total for row in plain]
        static_calls = static_calls or calls
        for d in draft_steps:
            rows = _decode_drafted(loaded, policy, prompts, d)
            drafted = [row.nfe.total for row in rows]
            floor = [perfect_draft_calls(loaded, row, d) for row in plain]
            table_row = {
                "policy": name,
                "d": d,
                "alone": sum(calls),
                "drafted": sum(drafted),
                "perfect": sum(floor) if is_causal else "",
                "fewer than static": str(ratio_of_sums(static_calls, drafted)),
                "perfect, fewer": sum(static_calls) / sum(floor) if is_causal else "",
                "same text, none dearer": is_lossless(plain, rows),
            }
            print(table_row, flush=True)
            table.append(table_row)
    return table


def compare_ceilings(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], draft_steps: Sequence[int]
) -> list[dict[str, Any]]:
    """Count the calls of drafts by oracles that know more and more.

    Args:
        loaded: the model.
        prompts: token ids of the prompts.
        draft_steps: numbers of drafts.

    Returns:
        Rows of the table.
    """
    oracles = {"order known": 1, "and runner-ups": 2, "perfect": None}
    table = []
    for name, policy in RULES.items():
        plain = decode(loaded, policy, nested, 1, 1, prompts)
        path_decoder = make_decoder(loaded, policy, nested, max(draft_steps))
        paths = [decode_path(path_decoder, loaded.params, list(p)) for p in prompts]
        for d in draft_steps:
            drafted = _decode_drafted(loaded, policy, prompts, d)
            table_row: dict[str, Any] = {"policy": name, "d": d}
            table_row |= {"alone": total_calls(plain), "default": total_calls(drafted)}
            for label, num_ranks in oracles.items():
                decoder = make_decoder(loaded, policy, oracle(num_ranks), d)
                table_row[label] = calls = sum(
                    count_oracle_calls(decoder, loaded.params, list(prompt), path)
                    for prompt, path in zip(prompts, paths, strict=True)
                )
                table_row[f"{label}, saved"] = f"{1 - calls / table_row['default']:.1%}"
            table_row["same text, none dearer"] = is_lossless(plain, drafted)
            print(table_row, flush=True)
            table.append(table_row)
    return table


def _decode_drafted(
    loaded: LoadedModel, policy, prompts: Sequence[Sequence[int]], num_drafts: int
) -> list[Completion]:
    """Decode with the default draft function, in a program of its own."""
    draft = tree.tree_or_nested(loaded.tables, loaded.config, policy)
    return decode(loaded, policy, draft, num_drafts, num_drafts, prompts)


def compare_seconds(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], rounds: int
) -> list[dict[str, Any]]:
    """Time decodes at batch 1 with fixed numbers of drafts and with "auto".

    Args:
        loaded: the model.
        prompts: token ids of the prompts.
        rounds: timings of each.

    Returns:
        Rows of the table.
    """
    return [
        row
        for name in ("static", "threshold 0.9")
        for row in _seconds_of_rule(loaded, name, prompts, rounds)
    ]


def _seconds_of_rule(
    loaded: LoadedModel, name: str, prompts: Sequence[Sequence[int]], rounds: int
) -> list[dict[str, Any]]:
    policy = RULES[name]
    lengths: tuple[DraftSteps, ...] = (1, *SECONDS_DRAFT_STEPS, "auto")
    draft = tree.tree_or_nested(loaded.tables, loaded.config, policy)

    decoders = [make_decoder(loaded, policy, draft, length) for length in lengths]

    def decode_all(decoder) -> list[Completion]:
        return [generate(decoder, loaded.params, [p]).completions[0] for p in prompts]

    def timer(decoder) -> Callable[[], float]:
        return lambda: time_call(lambda: decode_all(decoder))

    # The first decode compiles, and measures what calls cost.
    rows = [decode_all(decoder) for decoder in decoders]
    seconds = time_alternately([timer(decoder) for decoder in decoders], rounds)
    # [rounds, lengths] -> medians of paired ratios.
    alone_R, auto_R = seconds[:, 0], seconds[:, -1]
    best = 1 + int(np.argmin(np.median(seconds[:, 1:-1], axis=0)))
    return [
        {
            "policy": name,
            "drafts": length,
            "calls": total_calls(rows[index]),
            "as fast as alone": str(median_with_interval(alone_R / seconds[:, index])),
            "time of auto / this": str(
                median_with_interval(auto_R / seconds[:, index])
            ),
            "best fixed": "yes" if index == best else "",
            "same text, none dearer": is_lossless(rows[0], rows[index]),
        }
        for index, length in enumerate(lengths)
    ]

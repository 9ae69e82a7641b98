"""The protocol of the FreeDave paper, and dLLM-RL's, which it says it follows.

Both write the markup of a turn into the prompt instead of using the chat template.

Sources: FreeDave (arXiv 2510.00294) and its evaluation code of October 2025;
Gen-Verse/dLLM-RL.
"""

from collections.abc import Mapping
from typing import Any

from jaxdave.eval.benchmarks import demo
from jaxdave.eval.deviations import (
    DLLM_RL,
    PAPER,
    THINKING,
    ProtocolDeviations,
    confidence_after_top_k,
    prompt_and_answer,
    without_stop_ids,
)
from jaxdave.eval.protocols import prompts
from jaxdave.eval.types import Prompt, Task
from jaxdave.grading.types import Item

Settings = Mapping[str, Any]

PUBLISHED_PROMPT_TOKENS = 200
"""Prompt length, in token ids, after which the paper's evaluation of TraDo cuts."""


_THRESHOLDS = {"sdar": 0.9, "dream": 0.95, "llada": 0.95}
_MAX_NEW_TOKENS = {
    (PAPER, "sdar"): 2048,
    (PAPER, "dream"): 1600,
    (THINKING, "sdar"): 30000,
    (DLLM_RL, "sdar"): 2000,
}


def prompt(
    name: str, as_published: bool, family: str, task: Task, item: Item
) -> Prompt:
    """Return the prompt of an item, with its markup in the text.

    Args:
        name: One of `NAMES`.
        as_published: True for the defects of the paper's evaluation: the markup is
            wrapped in the chat template once more, and TraDo's prompts are cut.
        family: Family of the model, as in `ModelConfig.family`.
        task: Benchmark.
        item: Question of that benchmark.

    Returns:
        The prompt.

    Raises:
        ValueError: The protocol has no markup for the family.
    """
    if task.name in demo.TASKS:
        return demo.PRESETS["demo"].prompt(family, task, item)
    markup = "sdar-thinking" if (name, family) == (THINKING, "sdar") else family
    if markup not in prompts.MARKUP or (name == THINKING and family != "sdar"):
        raise ValueError(
            f"preset {name!r} has no prompt for models of the family {family!r}; use "
            "lm-eval-2026, which asks by the model's own chat template"
        )
    text = prompts.literal_prompt(markup, task.kind, item)
    if as_published and name != DLLM_RL:
        # The published evaluation applies the chat template to a text that has the
        # markup already, and of TraDo's prompts keeps the first 200 tokens only.
        max_tokens = PUBLISHED_PROMPT_TOKENS if family == "sdar" else None
        return Prompt(prompts.messages(text), max_tokens=max_tokens)
    has_prefix = name == DLLM_RL and task.kind == "code"
    return Prompt(text, prompts.code_prefix(item) if has_prefix else "")


def settings(name: str, as_published: bool, family: str, task: Task) -> Settings:
    """Return the decoding settings of the protocol.

    Source: run_exp.sh of FreeDave (October 2025), and the configurations of dLLM-RL.
    The paper's top-k 1 is greedy at any temperature, so the corrected form says
    temperature 0.

    Args:
        name: One of `NAMES`.
        as_published: True for temperature and top-k as the paper's scripts have them.
        family: Family of the model, as in `ModelConfig.family`.
        task: Benchmark.

    Returns:
        Keyword arguments of `DecodeConfig`, and `threshold`.
    """
    if task.name in demo.TASKS:
        return demo.PRESETS["demo"].settings(family, task)
    common = {
        "max_new_tokens": _MAX_NEW_TOKENS.get((name, family), 1024),
        "block_length": 4 if family == "sdar" else 32,
        "threshold": _THRESHOLDS.get(family, 0.9),
        "draft_steps": 8 if family == "sdar" else 4,
        "temperature": 0.0,
    }
    temperature = {"temperature": 1.0 if family == "sdar" else 0.1}
    if name == DLLM_RL:
        filters = {"top_p": 0.95, "top_k": 40} if family == "dream" else {}
        return {**common, **temperature, **filters}
    return {**common, **temperature, "top_k": 1} if as_published else common


def deviations(
    name: str, as_published: bool, family: str, task: Task
) -> ProtocolDeviations:
    """Return what the paper's evaluation does besides its settings.

    Rows with a threshold are sampled (and Dream's have short blocks), confidence is
    read after the top-k filter, and TraDo decodes on after the end token and counts
    its prompt as output.

    Args:
        name: One of `NAMES`.
        as_published: True for these deviations; False for none.
        family: Family of the model, as in `ModelConfig.family`.
        task: Benchmark.

    Returns:
        The deviations.
    """
    if not as_published or name == DLLM_RL or task.name in demo.TASKS:
        return ProtocolDeviations()
    short_blocks = {"block_length": 4} if family == "dream" else {}
    result = ProtocolDeviations(
        method_settings={"threshold": {"top_k": 0, **short_blocks}},
        wrap_policy=confidence_after_top_k,
    )
    if family != "sdar":
        return result
    return result._replace(
        adapt_model=without_stop_ids, extract_output=prompt_and_answer
    )

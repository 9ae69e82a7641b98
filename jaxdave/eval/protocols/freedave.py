"""The paper's protocol, and dLLM-RL's, which it says it follows: literal prompts."""

from collections.abc import Mapping
from typing import Any

from jaxdave.eval.benchmarks import demo
from jaxdave.eval.protocols import prompts
from jaxdave.eval.protocols.deviations import (
    Habits,
    endless,
    filtered_first,
    with_prompt,
)
from jaxdave.eval.types import Prompt, Task
from jaxdave.grading.types import Item

Settings = Mapping[str, Any]

PUBLISHED_LONGEST = 200
"""Token ids of a prompt that the paper's evaluation of TraDo keeps."""
THINKING, DLLM_RL = "paper-2025-thinking", "dllm-rl"

_SURE = {"sdar": 0.9, "dream": 0.95, "llada": 0.95}
_ROOM = {
    ("paper-2025", "sdar"): 2048,
    ("paper-2025", "dream"): 1600,
    (THINKING, "sdar"): 30000,
    (DLLM_RL, "sdar"): 2000,
}


def prompt(
    name: str, as_published: bool, family: str, task: Task, item: Item
) -> Prompt:
    """A prompt with its markup in it.

    Raises ValueError for a family that the protocol has no markup for.
    """
    if task.name in demo.TASKS:
        return demo.PRESETS["demo"].prompt(family, task, item)
    form = "sdar-thinking" if (name, family) == (THINKING, "sdar") else family
    if form not in prompts.MARKUP or (name == THINKING and family != "sdar"):
        raise ValueError(
            f"preset {name!r} has no prompt for models of the family {family!r}; use "
            "lm-eval-2026, which asks by the model's own chat template"
        )
    text = prompts.literal(form, task.kind, item)
    if as_published and name != DLLM_RL:
        # The chat template once more around it, and for TraDo the end cut off.
        longest = PUBLISHED_LONGEST if family == "sdar" else None
        return Prompt(prompts.chat(text), longest=longest)
    opened = name == DLLM_RL and task.kind == "code"
    return Prompt(text, prompts.completed(item) if opened else "")


def settings(name: str, as_published: bool, family: str, task: Task) -> Settings:
    """What run_exp.sh of FreeDave (October 2025), or dLLM-RL's configs, decode with.

    The paper's top-k 1 is greedy at any temperature, so corrected it is temperature 0.
    """
    if task.name in demo.TASKS:
        return demo.PRESETS["demo"].settings(family, task)
    room = _ROOM.get((name, family), 1024)
    common = {
        "max_new_tokens": room,
        "block_length": 4 if family == "sdar" else 32,
        "threshold": _SURE.get(family, 0.9),
        "draft_steps": 8 if family == "sdar" else 4,
        "temperature": 0.0,
    }
    heat = {"temperature": 1.0 if family == "sdar" else 0.1}
    if name == DLLM_RL:
        filters = {"top_p": 0.95, "top_k": 40} if family == "dream" else {}
        return {**common, **heat, **filters}
    return {**common, **heat, "top_k": 1} if as_published else common


def habits(name: str, as_published: bool, family: str, task: Task) -> Habits:
    """What the paper's evaluation does beside its settings, where that is wanted.

    Rows over a threshold are sampled (and Dream's have short blocks), confidence is
    read behind the top-k filter, TraDo decodes on after the end, and its prompt counts.
    """
    if not as_published or name == DLLM_RL or task.name in demo.TASKS:
        return Habits()
    block = {"block_length": 4} if family == "dream" else {}
    rows = {"threshold": {"top_k": 0, **block}}
    made = Habits(rows, filtered_first)
    if family != "sdar":
        return made
    return made._replace(config=endless, output=with_prompt)


NAMES = ("paper-2025", THINKING, DLLM_RL)

"""Protocols that ask in conversations, by the model's own chat template.

lm-eval-2026 is FreeDave's of May 2026; sdar, llada and dream are what the authors of
those models published for their instruct models.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdave.eval.benchmarks import demo, items
from jaxdave.eval.protocols import fewshot, prompts
from jaxdave.eval.types import Prompt, Task
from jaxdave.grading.types import Item

PromptFn = Callable[[Item, Path | None], Prompt]
"""Function (item, folder that few-shot examples are read from) -> prompt."""
Settings = Mapping[str, Any]


def _zero_shot(make_prompt: Callable[[Item], Prompt]) -> PromptFn:
    """A prompt without examples."""
    return lambda item, _: make_prompt(item)


def _mbpp_three_shot(make_prompt: Callable[..., Prompt]) -> PromptFn:
    """A prompt after the three examples that MBPP names for this purpose."""
    return lambda item, folder: make_prompt(item, items.mbpp_examples(folder))


def _gsm8k_five_shot(item: Item, folder: Path | None) -> Prompt:
    shots = fewshot.gsm8k_examples(item.data["index"], folder)
    return prompts.chat_prompt(prompts.gsm8k_question(item.question), shots)


def _minerva_four_shot(item: Item, _: Path | None) -> Prompt:
    shots = fewshot.minerva_math_examples()
    return prompts.chat_prompt(prompts.minerva_question(item.question), shots)


def _minerva_zero_shot(item: Item) -> Prompt:
    return prompts.chat_prompt(prompts.minerva_question(item.question))


_BOXED = _zero_shot(prompts.boxed_steps)
PROMPTS: Mapping[str, Mapping[str, PromptFn]] = {
    "lm-eval-2026": {
        "gsm8k": _gsm8k_five_shot,
        "math500": _minerva_four_shot,
        "mbpp": _mbpp_three_shot(prompts.mbpp_instruct),
        "humaneval": _zero_shot(prompts.humaneval_instruct),
    },
    "sdar": {
        "gsm8k": _BOXED,
        "math500": _BOXED,
        "aime2024": _BOXED,
        "mbpp": _zero_shot(prompts.mbpp_sdar),
        "humaneval": _zero_shot(prompts.humaneval_sdar),
    },
    # LLaDA's four examples for GSM8K are not published, so that task is refused.
    "llada": {
        "math500": _BOXED,
        "mbpp": _mbpp_three_shot(prompts.mbpp_begin),
        "humaneval": _zero_shot(prompts.humaneval_llada),
    },
    "dream": {
        "gsm8k": _zero_shot(prompts.gsm8k_cot),
        "math500": _zero_shot(_minerva_zero_shot),
        "mbpp": _zero_shot(prompts.mbpp_dream),
        "humaneval": _zero_shot(prompts.humaneval_dream),
    },
}
"""By protocol and task, the function that makes prompts."""

# (max_new_tokens, block_length) by task.
_LLADA_LENGTHS = {"math500": (512, 64), "mbpp": (256, 256), "humaneval": (512, 512)}
_LLADA_STOPPING = {
    "mbpp": {"confidence_eos_eot_inf": True},
    "humaneval": {"logits_eos_inf": True},
}
_DREAM_MAX_NEW_TOKENS = {"gsm8k": 256, "math500": 512, "mbpp": 1024, "humaneval": 768}


def prompt(
    name: str, folder: Path | None, family: str, task: Task, item: Item
) -> Prompt:
    """Return the prompt of an item.

    Args:
        name: Key of `PROMPTS`.
        folder: Folder that few-shot examples are read from; None for the Hub.
        family: Family of the model, as in `ModelConfig.family`.
        task: Benchmark.
        item: Question of that benchmark.

    Returns:
        The prompt.

    Raises:
        ValueError: The protocol does not have the task, or its examples cannot be read.
    """
    if task.name in demo.TASKS:
        return demo.PRESETS["demo"].prompt(family, task, item)
    by_task = PROMPTS[name]
    if task.name not in by_task:
        raise ValueError(
            f"preset {name!r} has no text to ask {task.name} with; choose of "
            f"{', '.join(by_task)}, or use --preset paper-2025"
        )
    return by_task[task.name](item, folder)


def settings(name: str, family: str, task: Task) -> Settings:
    """Return the decoding settings of the protocol.

    Block lengths of full-attention models are the protocol's. Those of block-causal
    models are left to the model, which was trained with one.

    Args:
        name: Key of `PROMPTS`.
        family: Family of the model, as in `ModelConfig.family`.
        task: Benchmark.

    Returns:
        Keyword arguments of `DecodeConfig`, and `threshold`.
    """
    if task.name in demo.TASKS:
        return demo.PRESETS["demo"].settings(family, task)
    full_attention = family in ("llada", "dream")
    return _SETTINGS[name](family, full_attention, task.name)


def _lm_eval_settings(family: str, full_attention: bool, _: str) -> Settings:
    """Settings of FreeDave's eval/scripts of May 2026."""
    return {
        "max_new_tokens": 1024,
        "temperature": 0.0,
        "threshold": 0.95 if full_attention else 0.9,
        "draft_steps": 4 if family == "llada" else 8,
        **({"block_length": 32, "cache": "dual"} if full_attention else {}),
    }


def _sdar_settings(family: str, full_attention: bool, _: str) -> Settings:
    return {
        "max_new_tokens": 4096,
        "temperature": 0.0,
        "threshold": 0.95,
        "draft_steps": 8,
        **({"block_length": 32} if full_attention else {}),
    }


def _llada_settings(family: str, full_attention: bool, task: str) -> Settings:
    max_new_tokens, block_length = _LLADA_LENGTHS.get(task, (256, 8))
    blocks = {"block_length": block_length, "cache": "none"}
    return {
        "max_new_tokens": max_new_tokens,
        "temperature": 0.0,
        "threshold": 0.95,
        "draft_steps": 4,
        **(blocks if full_attention else {}),
        **_LLADA_STOPPING.get(task, {}),
    }


def _dream_settings(family: str, full_attention: bool, task: str) -> Settings:
    """Settings of Dream, which decodes without blocks: the whole answer is one."""
    max_new_tokens = _DREAM_MAX_NEW_TOKENS.get(task, 512)
    blocks = {"block_length": max_new_tokens, "cache": "none"}
    return {
        "max_new_tokens": max_new_tokens,
        "temperature": 0.1,
        "top_p": 0.9,
        "threshold": 0.95,
        "draft_steps": 8,
        **(blocks if full_attention else {}),
    }


_SETTINGS = {
    "lm-eval-2026": _lm_eval_settings,
    "sdar": _sdar_settings,
    "llada": _llada_settings,
    "dream": _dream_settings,
}

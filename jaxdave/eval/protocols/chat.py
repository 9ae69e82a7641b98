"""Protocols that ask in conversations, by the model's own chat template.

lm-eval-2026: FreeDave's of May 2026. sdar, llada, dream: what the models' own authors
published for their instruct models.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdave.eval.benchmarks import demo, fewshot, items
from jaxdave.eval.protocols import prompts
from jaxdave.eval.types import Prompt, Task
from jaxdave.grading.types import Item

Ask = Callable[[Item, Path | None], Prompt]
Settings = Mapping[str, Any]


def _plain(ask: Callable[[Item], Prompt]) -> Ask:
    return lambda item, _: ask(item)


def _three(ask: Callable[..., Prompt]) -> Ask:
    return lambda item, folder: ask(item, items.mbpp_shots(folder))


def _gsm8k_five(item: Item, folder: Path | None) -> Prompt:
    told = fewshot.gsm8k(item.data["index"], folder)
    return prompts.asked(prompts.gsm8k_shots(item.question), told)


def _minerva_four(item: Item, _: Path | None) -> Prompt:
    return prompts.asked(prompts.minerva(item.question), fewshot.minerva_math())


def _minerva_none(item: Item) -> Prompt:
    return prompts.asked(prompts.minerva(item.question))


_BOXED = _plain(prompts.boxed_steps)
ASKED: Mapping[str, Mapping[str, Ask]] = {
    "lm-eval-2026": {
        "gsm8k": _gsm8k_five,
        "math500": _minerva_four,
        "mbpp": _three(prompts.mbpp_instruct),
        "humaneval": _plain(prompts.humaneval_instruct),
    },
    "sdar": {
        "gsm8k": _BOXED,
        "math500": _BOXED,
        "aime2024": _BOXED,
        "mbpp": _plain(prompts.mbpp_sdar),
        "humaneval": _plain(prompts.humaneval_sdar),
    },
    # gsm8k: after four examples, whose text is not at hand.
    "llada": {
        "math500": _BOXED,
        "mbpp": _three(prompts.mbpp_begin),
        "humaneval": _plain(prompts.humaneval_llada),
    },
    "dream": {
        "gsm8k": _plain(prompts.gsm8k_cot),
        "math500": _plain(_minerva_none),
        "mbpp": _plain(prompts.mbpp_dream),
        "humaneval": _plain(prompts.humaneval_dream),
    },
}
# Answer tokens and block length by task.
_LLADA = {"math500": (512, 64), "mbpp": (256, 256), "humaneval": (512, 512)}
_LLADA_ENDS = {"mbpp": {"stop_last": True}, "humaneval": {"no_stop": True}}
_DREAM = {"gsm8k": 256, "math500": 512, "mbpp": 1024, "humaneval": 768}


def prompt(
    name: str, folder: Path | None, family: str, task: Task, item: Item
) -> Prompt:
    """What is asked. Raises ValueError for a task that the protocol does not have."""
    if task.name in demo.TASKS:
        return demo.PRESETS["demo"].prompt(family, task, item)
    known = ASKED[name]
    if task.name not in known:
        raise ValueError(
            f"preset {name!r} has no text to ask {task.name} with; choose of "
            f"{', '.join(known)}, or use --preset paper-2025"
        )
    return known[task.name](item, folder)


def settings(name: str, family: str, task: Task) -> Settings:
    """What the protocol decodes with; block lengths are those of the model's family."""
    if task.name in demo.TASKS:
        return demo.PRESETS["demo"].settings(family, task)
    full = family in ("llada", "dream")
    return _SETTINGS[name](family, full, task.name)


def _lm_eval(family: str, full: bool, _: str) -> Settings:
    """FreeDave's eval/scripts of May 2026."""
    block = {"block_length": 32, "cache": "dual"} if full else {}
    return {
        "max_new_tokens": 1024,
        "temperature": 0.0,
        "threshold": 0.95 if full else 0.9,
        "draft_steps": 4 if family == "llada" else 8,
        **block,
    }


def _sdar(family: str, full: bool, _: str) -> Settings:
    return {
        "max_new_tokens": 4096,
        "temperature": 0.0,
        "threshold": 0.95,
        "draft_steps": 8,
        **({"block_length": 32} if full else {}),
    }


def _llada(family: str, full: bool, task: str) -> Settings:
    room, block = _LLADA.get(task, (256, 8))
    return {
        "max_new_tokens": room,
        "temperature": 0.0,
        "threshold": 0.95,
        "draft_steps": 4,
        **({"block_length": block, "cache": "none"} if full else {}),
        **_LLADA_ENDS.get(task, {}),
    }


def _dream(family: str, full: bool, task: str) -> Settings:
    """Without blocks: the whole answer is one."""
    room = _DREAM.get(task, 512)
    return {
        "max_new_tokens": room,
        "temperature": 0.1,
        "top_p": 0.9,
        "threshold": 0.95,
        "draft_steps": 8,
        **({"block_length": room, "cache": "none"} if full else {}),
    }


_SETTINGS = {
    "lm-eval-2026": _lm_eval,
    "sdar": _sdar,
    "llada": _llada,
    "dream": _dream,
}

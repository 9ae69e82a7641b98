"""How the authors of each family decode its models, as far as they ship it.

A command takes these where no option says otherwise. Families without an entry are
decoded greedily, the most confident token first, one a step: that is LLaDA's own loop,
and for Dream, SDAR and Fast-dLLM v2 a choice of ours (their scripts sample, or commit
several tokens a step; docs/models.md names the options that do the same).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jaxdave.core.config import ModelConfig
from jaxdave.core.decode_defaults import NO_DEFAULTS, DecodeDefaults
from jaxdave.io.rope_config import is_instance

GENERATION_FILE = "generation_config.json"

# SDAR's generate.py: every token surer than 0.85, else the best, in as many steps as a
# block has tokens; drawn at temperature 1 where generation_config.json says nothing.
_SDAR = DecodeDefaults(
    policy="low_confidence_dynamic:steps={block_length},threshold=0.85",
    temperature=1.0,
)
# LLaDA2.0's generate: every token surer than 0.95 (strictly), else the best.
_LLADA2 = DecodeDefaults(
    policy="low_confidence_dynamic:steps={block_length},threshold=0.95"
)
# LLaDA's loop without a cache: the most confident token, blocks from left to right.
_LLADA_MOE = DecodeDefaults(cache="none")
# RND1's demo: 256 steps over the whole answer, the lowest entropy first, almost greedy.
# Its time schedule has no epsilon, and it keeps the last position for the end token.
_RND1 = DecodeDefaults(
    policy="entropy:steps=256", cache="none", temperature=0.01, is_one_block=True
)
# Nemotron's generate: every token of 0.9 or surer, else the best, in blocks of 32.
_NEMOTRON = DecodeDefaults(policy="threshold:threshold=0.9")
_DEFAULTS: Mapping[str, DecodeDefaults] = {
    "nemotron": _NEMOTRON,
    "sdar-moe": _SDAR,
    "rnd1": _RND1,
    "llada-moe": _LLADA_MOE,
    "llada2": _LLADA2,
}
_BY_NAME: Mapping[tuple[str, str], DecodeDefaults] = {
    # The arguments of its own `generate`; its README names two modes beside them
    # (`llada2_s`, `llada2_q`).
    ("llada2", r"(?i)llada-?2\.1"): DecodeDefaults(policy="joint_threshold"),
}
"""Family and a pattern that a model's name contains -> what its authors ship in place
of the family's, for models that their files do not tell from others of the family."""

_SAMPLED_FAMILIES = ("sdar-moe",)
"""Families whose generation_config.json is meant: its temperature, top-k and top-p."""

_SAMPLING = {"temperature": float, "top_k": int, "top_p": float}


def decode_defaults(
    config: ModelConfig, generation: Mapping[str, Any]
) -> DecodeDefaults:
    """How a model is decoded where the caller says nothing else.

    Args:
      config: the model; its family and its name decide.
      generation: the content of its generation_config.json; empty without one.

    Returns:
      The defaults.

    Raises:
      ValueError: generation_config.json asks for a sampling that there is not.

    Example:
      >>> from jaxdave.models.presets import preset
      >>> decode_defaults(preset("llada2-mini"), {}).policy
      'low_confidence_dynamic:steps={block_length},threshold=0.95'
    """
    own = _DEFAULTS.get(config.family, NO_DEFAULTS)
    for (family, pattern), named in _BY_NAME.items():
        if config.family == family and re.search(pattern, config.name):
            own = named
    if config.family in _SAMPLED_FAMILIES:
        own = dataclasses.replace(own, **_sampling(generation))
    return own


def _sampling(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Temperature and filters as the file has them; a null says nothing."""
    stated = {
        name: generation[name] for name in _SAMPLING if generation.get(name) is not None
    }
    for name, value in stated.items():
        kind = _SAMPLING[name]
        low, high = (0, 1) if name == "top_p" else (0, 2**31 - 1)
        is_inside = is_instance(value, kind) and low <= value <= high
        if not is_inside or (name == "top_p" and value == 0):
            raise ValueError(
                f"{GENERATION_FILE}: {name}={value!r} must be of type {kind.__name__} "
                f"and in {low}..{high}; mend the file, or leave {name} out of it"
            )
    is_sampled = generation.get("do_sample")
    if is_sampled is not None and not isinstance(is_sampled, bool):
        raise ValueError(
            f"{GENERATION_FILE}: do_sample={is_sampled!r} must be true or false; mend "
            "the file, or leave do_sample out of it"
        )
    if is_sampled is False:
        return {"temperature": 0.0}
    return {name: _SAMPLING[name](value) for name, value in stated.items()}

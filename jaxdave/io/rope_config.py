"""Rotary settings of a config.json, in the forms that files of several years have."""

import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxdave.core.config import RopeScaling, YarnScaling

Scaling = RopeScaling | YarnScaling

_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor"}
_SCALED_BY_FACTOR = ("linear", "dynamic", "yarn")
"""Rotary scalings that a factor of 1 leaves as they are."""


def resolve_rope(
    raw: Mapping[str, Any], rope_types: Collection[str], is_partial: bool = False
) -> tuple[dict[str, Any], Scaling | None, list[str]]:
    """Put the rotary settings where older files have them, and null for no scaling.

    As transformers 5 does: `rope_scaling`, unless empty, takes the place of
    `rope_parameters`, and a base in there goes before `rope_theta`.

    Args:
      raw: the content of config.json.
      rope_types: scalings that the family may have.
      is_partial: the family may rotate a part of a head's features.

    Returns:
      The resolved content of config.json, the scaling if it is one of `rope_types`, and
      what is wrong with it.
    """
    resolved = {**raw, "rope_scaling": None, "rope_parameters": None}
    key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(key) or {}
    if not isinstance(rope, Mapping):
        return resolved, None, [f"{key}={rope!r} must be None or an object"]
    if rope.get("rope_theta") is not None:
        resolved["rope_theta"] = rope["rope_theta"]
    scaling, problems = None, []
    kind = rope.get("rope_type", rope.get("type"))
    is_plain = kind == "default" or (key == "rope_parameters" and kind is None)
    # A factor of 1 scales nothing, unless other keys say more.
    is_plain |= kind in _SCALED_BY_FACTOR and rope.get("factor") == 1
    is_plain &= kind == "default" or set(rope) <= _ROPE_KEYS
    if isinstance(kind, str) and kind in rope_types:
        scaling, problems = _read_scaling(key, kind, rope)
    elif rope and not is_plain:
        problems = [f"{key}={dict(rope)!r} must be None"]
    if is_partial:
        share = rope.get("partial_rotary_factor")
        resolved |= {} if share is None else {"partial_rotary_factor": share}
    for part in () if is_partial else (rope, raw):
        share = part.get("partial_rotary_factor")
        if share is not None and share != 1:
            problems.append(f"partial_rotary_factor={share!r} must be 1")
    return resolved, scaling, problems


def rotary_dim(raw: Mapping[str, Any], head_dim: int) -> tuple[int, list[str]]:
    """Read how many features of a head are rotated, where they may be a part.

    Args:
      raw: the content of config.json, resolved.
      head_dim: features of a head.

    Returns:
      The number, and what is wrong with the keys that state it.
    """
    share, stated = raw.get("partial_rotary_factor"), raw.get("rotary_dim")
    share = 1.0 if share is None else share
    if not is_instance(share, float) or not 0 < share <= 1:
        return head_dim, [f"partial_rotary_factor={share!r} must be above 0, at most 1"]
    size = int(head_dim * share)
    if stated not in (None, size):
        return size, [
            f"rotary_dim={stated!r} must be {size}, by partial_rotary_factor={share}"
        ]
    if size < 2 or size % 2:
        return size, [f"partial_rotary_factor={share} of {head_dim} must be even"]
    return size, []


_SCALING_KEYS: dict[str, dict[str, tuple[str, type, Any]]] = {
    "llama3": {
        "factor": ("factor", float, None),
        "low_turns": ("low_freq_factor", float, None),
        "high_turns": ("high_freq_factor", float, None),
        "positions": ("original_max_position_embeddings", int, None),
    },
    "yarn": {
        "factor": ("factor", float, None),
        "positions": ("original_max_position_embeddings", int, None),
        "beta_fast": ("beta_fast", float, None),
        "beta_slow": ("beta_slow", float, None),
        "mscale": ("mscale", float, None),
        "mscale_all_dim": ("mscale_all_dim", float, None),
        # Where it is absent, the published classes do not scale queries.
        "query_beta": ("llama_4_scaling_beta", float, 0.0),
    },
}
"""rope_type -> field of its class -> key of config.json, its type, and the value if it
is absent (None: it must not be)."""
_SCALING_CLASSES: dict[str, Callable[..., Scaling]] = {
    "llama3": RopeScaling,
    "yarn": YarnScaling,
}


def scaling_type(scaling: Scaling) -> str:
    """The `rope_type` of a scaling, as config.json names it.

    Args:
      scaling: the scaling.

    Returns:
      A key of the published classes, such as "yarn".
    """
    return "yarn" if isinstance(scaling, YarnScaling) else "llama3"


def scaling_to_json(scaling: Scaling) -> dict[str, Any]:
    """Build the value of `rope_scaling` in a config.json.

    Args:
      scaling: the scaling.

    Returns:
      The object.
    """
    kind = scaling_type(scaling)
    keys = _SCALING_KEYS[kind]
    stated = {key: getattr(scaling, field) for field, (key, _, _) in keys.items()}
    return {"rope_type": kind, **stated}


def _read_scaling(
    key: str, kind: str, rope: Mapping[str, Any]
) -> tuple[Scaling | None, list[str]]:
    """The scaling that config.json states, and what is wrong with it."""
    fields, problems = {}, []
    for field, (name, value_type, default) in _SCALING_KEYS[kind].items():
        value = rope.get(name, default)
        if is_instance(value, value_type):
            fields[field] = value_type(value)
        else:
            problems.append(
                f"{name}={value!r} of {key} must be of type {value_type.__name__}"
            )
    known = {name for name, _, _ in _SCALING_KEYS[kind].values()} | _ROPE_KEYS
    known |= {"max_position_embeddings"}  # which published classes do not look at
    problems += [
        f"{name}={rope[name]!r} of {key} is not known for {kind!r}: leave it out"
        for name in rope
        if kind == "yarn" and name not in known and rope[name] is not None
    ]
    if problems:
        return None, problems
    try:
        return _SCALING_CLASSES[kind](**fields), []
    except ValueError as error:
        return None, [f"{error}, in {key}"]


def is_instance(value: Any, kind: type) -> bool:
    """Check a JSON value's type: true is no number, but 1 is a float.

    Args:
      value: the value.
      kind: bool, int, float or str.

    Returns:
      Whether it is of that type.
    """
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float and isinstance(value, int):
        return abs(value) <= sys.float_info.max  # others are no floats
    return isinstance(value, kind)

"""Model families: which one a checkpoint is of, its config and its tensors.

A `Family` is a table, not code (`family_records`). Reading a folder means to find its
family (`detect`), to translate its config.json (`config_fields`) and to list the
tensors that the resulting config needs (`checkpoint_tensors`).
"""

from collections.abc import Collection, Mapping
from typing import Any

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io.expert_keys import COUNT_KEYS, REQUIRED, read_experts
from jaxdave.io.family_records import A2D as A2D
from jaxdave.io.family_records import DREAM as DREAM
from jaxdave.io.family_records import FAMILIES as FAMILIES
from jaxdave.io.family_records import FAST_DLLM as FAST_DLLM
from jaxdave.io.family_records import FULL_ATTENTION_BLOCK as FULL_ATTENTION_BLOCK
from jaxdave.io.family_records import ILLADA as ILLADA
from jaxdave.io.family_records import LLADA as LLADA
from jaxdave.io.family_records import LLADA2 as LLADA2
from jaxdave.io.family_records import LLADA_MOE as LLADA_MOE
from jaxdave.io.family_records import NEMOTRON as NEMOTRON
from jaxdave.io.family_records import RND1 as RND1
from jaxdave.io.family_records import SDAR as SDAR
from jaxdave.io.family_records import SDAR_MOE as SDAR_MOE
from jaxdave.io.family_records import TINY_A2D_BD3LM as TINY_A2D_BD3LM
from jaxdave.io.family_records import TINY_A2D_MDLM as TINY_A2D_MDLM
from jaxdave.io.family_records import UNSUPPORTED, ConfigKeys
from jaxdave.io.family_records import Family as Family
from jaxdave.io.rope_config import is_instance, resolve_rope, rotary_dim
from jaxdave.io.tensor_names import TensorTarget, tensor_targets
from jaxdave.models.param_shapes import param_shapes


def detect(raw: Mapping[str, Any], tensor_names: Collection[str] | None) -> Family:
    """Find the family of a checkpoint from its config.json and its tensor names.

    Args:
      raw: the content of config.json.
      tensor_names: names of all tensors of the checkpoint; None where they cannot be
        read, so that the config alone decides.

    Returns:
      The family.

    Raises:
      ValueError: the config names no known family, or one whose tensors are different.

    Example:
      >>> detect({"model_type": "sdar"}, None).name
      'sdar'
    """
    architectures = raw.get("architectures") or ()
    if not isinstance(architectures, list | tuple):
        architectures = (architectures,)
    kind = raw.get("model_type")
    claim = f"model_type={kind!r}, architectures={architectures!r}"
    matches = _matching_families(raw, architectures)
    _check_told(matches, raw, claim)
    if len(matches) != 1:
        names = [name for name in (kind, *architectures) if isinstance(name, str)]
        reasons = [UNSUPPORTED[name] for name in names if name in UNSUPPORTED]
        if reasons:
            reason = reasons[0]
            raise ValueError(
                f"config.json: {claim} is not supported: {reason}; use one of "
                f"{', '.join(FAMILIES)}"
            )
        similar = [
            family.name
            for family in FAMILIES.values()
            if tensor_names and _has_tensors_of(family, tensor_names)
        ]
        hint = f" (the tensors look like {' or '.join(similar)})" if similar else ""
        what = "mixture of experts" if _has_experts(raw) else "architecture"
        raise ValueError(
            f"config.json: unknown {what}, {claim}; convert one of "
            f"{', '.join(FAMILIES)}, or name the family with --family{hint}"
        )
    (family,) = matches
    if tensor_names is not None and not _has_tensors_of(family, tensor_names):
        raise ValueError(
            f"config.json: unknown architecture, {claim}, but the tensors are not "
            f"those of {family.name}; take config.json and weights from one model"
        )
    return family


def _matching_families(
    raw: Mapping[str, Any], architectures: Collection[Any]
) -> list[Family]:
    """The families that a config.json may be of."""
    kind = raw.get("model_type")
    typed = [family for family in FAMILIES.values() if kind in family.model_types]
    named = [
        family
        for family in FAMILIES.values()
        if any(name in family.architectures for name in architectures)
    ]
    if not named:
        # A mixture may have the model_type of its family's dense models.
        fitting = [f for f in typed if (f.experts is not None) == _has_experts(raw)]
        return _told(fitting or typed, raw)
    both = [family for family in named if family in typed]
    return _told(both or [*named, *typed], raw)


def _told(families: list[Family], raw: Mapping[str, Any]) -> list[Family]:
    """Of like families the one that a config names, otherwise all (`told_by`)."""
    told = [f for f in families if f.told_by and raw.get(f.told_by[0]) == f.told_by[1]]
    return told or families


def _check_told(
    matches: Collection[Family], raw: Mapping[str, Any], claim: str
) -> None:
    """Raise ValueError for a config that does not say which of like families it is."""
    alike = {family.told_by: family.name for family in matches if family.told_by}
    if len(matches) < 2 or len(alike) != len(matches):
        return
    keys = {key for key, _ in filter(None, alike)}
    values = " or ".join(repr(value) for _, value in filter(None, alike))
    key = "/".join(sorted(keys))
    raise ValueError(
        f"config.json: {key}={raw.get(key)!r} must be {values}: {claim} is of "
        f"{' or '.join(alike.values())}, and nothing else tells which; add the key, or "
        "convert with --family"
    )


def _has_experts(raw: Mapping[str, Any]) -> bool:
    return any(raw.get(key) for key in COUNT_KEYS)


def _has_tensors_of(family: Family, tensor_names: Collection[str]) -> bool:
    if not any(family.tensor_marker in name for name in tensor_names):
        return False
    return not any(
        marker in name for marker in family.excluded_markers for name in tensor_names
    )


def config_fields(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a family's config.json to fields of `ModelConfig`.

    Args:
      family: the family that the config.json belongs to.
      raw: the content of config.json.

    Returns:
      The architecture's fields by name. Ids, the vocabulary's size and the block length
      are not among them, as those need other files too (see `hf_config`).

    Raises:
      ValueError: names every key that is missing, has a wrong type, or asks for
        something that our transformer does not implement.
    """
    raw, scaling, problems = resolve_rope(
        raw, family.rope_types, family.is_partly_rotated
    )
    if family.is_rope_scaled and scaling is None and not problems:
        kinds = " or ".join(repr(kind) for kind in family.rope_types)
        problems.append(f"rope_parameters must have rope_type {kinds} and its numbers")
    raw, more = _resolve_kv_heads(raw)
    raw = _fill_null_keys(family, raw)
    fields, most = _read_keys(raw, family.config_keys, family.required_values)
    problems = [*problems, *more, *most]
    # Classes without a head_dim key divide the
    # hidden size by the heads, as ours then does.
    if not problems and "head_dim" not in fields:
        stated = raw.get("head_dim")
        if not (stated is None or is_instance(stated, int)):
            problems.append(f"head_dim={stated!r} must be of type int")
        elif fields["heads"] < 1:
            problems.append(f"heads={fields['heads']} must be at least 1")
        elif stated is None and fields["hidden"] % fields["heads"]:
            problems.append("the hidden size must be a multiple of the heads")
        else:
            divided = fields["hidden"] // fields["heads"]
            fields["head_dim"] = divided if stated is None else stated
    rotated = fields.get("head_dim")
    if family.is_partly_rotated and rotated is not None:
        rotated, more = rotary_dim(raw, rotated)
        problems += more
    if family.experts is not None:
        experts, more = read_experts(family.experts, raw, fields.get("num_layers"))
        fields["experts"] = experts
        problems += more
    if problems:
        raise ValueError(
            f"config.json: {'; '.join(problems)}; take the file of a "
            f"{family.name} model, or name another --family"
        )
    fields |= {"rotary_dim": rotated, "rope_scaling": scaling}
    return {**fields, **family.config_values}


def _fill_null_keys(family: Family, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve keys whose null means something (`Family.null_keys`)."""
    filled = dict(raw)
    for key, (other, if_absent) in family.null_keys.items():
        is_null = raw.get(key) is None and (if_absent or key in raw)
        if is_null and other in filled:
            filled[key] = filled[other]
    # LLaDA's class multiplies where no size is given.
    if "mlp_ratio" in raw and raw.get("mlp_hidden_size") is None:
        sizes = raw["mlp_ratio"], raw.get("d_model")
        if all(is_instance(size, int) for size in sizes):
            filled["mlp_hidden_size"] = sizes[0] * sizes[1]
    return filled


def _resolve_kv_heads(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Resolve `multi_query_attention`, LLaDA's other way to say `n_kv_heads`.

    Returns:
      The resolved content of config.json, and what is wrong with it.
    """
    is_multi_query, stated = raw.get("multi_query_attention"), raw.get("n_kv_heads")
    if not isinstance(is_multi_query, bool):
        return dict(raw), []
    heads = 1 if is_multi_query else raw.get("n_heads")
    if stated not in (None, heads):
        return dict(raw), [
            f"multi_query_attention={is_multi_query} must be null where "
            f"n_kv_heads={stated!r}"
        ]
    return {**raw, "n_kv_heads": heads}, []


def _read_keys(
    raw: Mapping[str, Any], config_keys: ConfigKeys, required_values: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Read fields from config.json; returns them and what is wrong with the keys."""
    fields, problems = {}, []
    for field, (key, kind, default) in config_keys.items():
        value = raw.get(key, default)
        # The published classes ask whether a switch is true, and null is not.
        value = False if value is None and kind is bool else value
        if value is REQUIRED:
            problems.append(f"{key} is missing")
        elif not is_instance(value, kind):
            problem = f"{key}={value!r} must be of type {kind.__name__}"
            problems += [problem] if problem not in problems else []
        else:
            fields[field] = kind(value)
    for key, value in required_values.items():
        stated = raw.get(key, value)
        is_off = stated is None and value is False
        if stated != value and not is_off:
            problems.append(f"{key}={stated!r} must be {value!r}")
    layers = raw.get("layer_types") or ()
    layers = layers if isinstance(layers, list | tuple) else (layers,)
    if any(kind != "full_attention" for kind in layers):
        problems.append(f"layer_types={layers!r} must all be 'full_attention'")
    return fields, problems


def checkpoint_tensors(family: Family, config: ModelConfig) -> dict[str, TensorTarget]:
    """List the tensors that a checkpoint of a model must have.

    Args:
      family: the layout of the checkpoint.
      config: the model.

    Returns:
      Tensor name -> the place and shape of the tensor, for exactly the tensors that the
      parameters of `config` are made of.

    Example:
      >>> from jaxdave.models.presets import preset
      >>> tensors = checkpoint_tensors(SDAR, preset("sdar-4b"))
      >>> tensors["model.norm.weight"].parts[0].path
      'norm/scale'
    """
    leaves = leaves_by_path(param_shapes(config))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    return tensor_targets(shapes, config.num_layers, family.tensor_names)

"""Adapters from and to folders as the peft library writes them.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. The tensors of a
module M are `base_model.model.M.lora_A.weight` [r, in] and `...lora_B.weight` [out, r],
the transposes of our `lora_a` and `lora_b`.

Source: huggingface/peft, docs/source/developer_guides/checkpoint.md.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jaxdave.core.config import ModelConfig
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io import orbax_io
from jaxdave.io.families import FAMILIES
from jaxdave.io.safetensors_io import DTYPES, raise_problems
from jaxdave.models.lora import TARGET_PATHS, Adapters, LoraConfig, adapter_shapes
from jaxdave.runtime.files import (
    make_readable,
    read_json,
    replace_folder,
    unfinished_folder,
)
from jaxdave.runtime.messages import one_line

CONFIG_FILE = "adapter_config.json"
"""Name of the settings in a folder of adapters."""
WEIGHTS_FILE = "adapter_model.safetensors"
"""Name of the weights in a folder of adapters."""

_TENSOR = "base_model.model.{module}.lora_{letter}.weight"
_CARRIED_FILES = ("README.md",)
# Settings of the library for which ours has one value; others are another adapter.
_REQUIRED: Mapping[str, Any] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
    "modules_to_save": None,
    "layer_replication": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
# The library's own, where a file leaves them out.
_DEFAULT_RANK, _DEFAULT_ALPHA = 8, 8


def save_adapters(
    folder: str | os.PathLike,
    config: ModelConfig,
    adapters: Adapters,
    lora: LoraConfig,
    *,
    base_model: str | None = None,
) -> None:
    """Write adapters as a folder of their own, which the peft library reads, too.

    The folder is complete or as it was.

    Args:
        folder: The folder to make; older adapters in it are replaced.
        config: The model that they are of.
        adapters: The adapters.
        lora: Their settings.
        base_model: Folder or Hub id of that model, for the library.

    Raises:
        ValueError: The folder has other files, or an adapter another shape than the
            settings say.
    """
    folder = Path(folder).absolute()
    shapes = leaves_by_path(adapter_shapes(config, lora))
    leaves = {path: np.asarray(a) for path, a in leaves_by_path(adapters).items()}
    wrong = [
        path
        for path in sorted({*shapes, *leaves})
        if path not in leaves
        or path not in shapes
        or leaves[path].shape != shapes[path].shape
    ]
    if wrong:
        raise ValueError(
            f"adapters {', '.join(wrong)} do not have the shapes of config "
            f"{config.name!r} with rank={lora.rank}; save them with their own settings"
        )
    tensors = {}
    for name, (path, layer) in _tensor_places(config, lora.targets).items():
        tensors[name] = np.ascontiguousarray(leaves[path][layer].T, np.float32)
    carried = _carried_files(folder)
    with unfinished_folder(folder) as work:
        save_file(tensors, work / WEIGHTS_FILE, metadata={"format": "pt"})
        orbax_io.write_json(work / CONFIG_FILE, _to_json(config, lora, base_model))
        for path in carried:
            (work / path.name).write_bytes(path.read_bytes())
        make_readable(work)
        replace_folder(work, folder)


def load_adapters(
    folder: str | os.PathLike, config: ModelConfig
) -> tuple[Adapters, LoraConfig]:
    """Read a folder of adapters.

    Args:
        folder: A folder of `save_adapters` or of the peft library.
        config: The model that they are of.

    Returns:
        The adapters, host arrays in float32, and their settings.

    Raises:
        ValueError: The folder is incomplete, its adapters are of another kind or of
            another model; one line names everything wrong.
    """
    folder = Path(folder).absolute()
    raw = read_json(folder / CONFIG_FILE)
    _check_settings(folder, raw)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    targets = tuple(
        target
        for target in TARGET_PATHS
        if any(name in tensors for name in _tensor_places(config, (target,)))
    )
    if not targets:
        raise ValueError(
            f"{folder}: no tensor of {WEIGHTS_FILE} is an adapter of a projection of "
            f"{config.name!r}; take adapters of this model"
        )
    try:
        lora = LoraConfig(
            rank=raw.get("r", _DEFAULT_RANK),
            alpha=float(raw.get("lora_alpha", _DEFAULT_ALPHA)),
            targets=targets,
            rank_stabilized=bool(raw.get("use_rslora", False)),
        )
        shapes = leaves_by_path(adapter_shapes(config, lora))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {one_line(error)}") from error
    return _to_adapters(folder, config, lora, shapes, tensors), lora


def _to_adapters(
    folder: Path,
    config: ModelConfig,
    lora: LoraConfig,
    shapes: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> Adapters:
    """Stack the tensors of all layers; raises one error of all that is wrong."""
    leaves = {path: np.empty(s.shape, s.dtype) for path, s in shapes.items()}
    places = _tensor_places(config, lora.targets)
    problems = [f"extra tensor {name}" for name in sorted({*tensors} - {*places})]
    for name, (path, layer) in places.items():
        if name not in tensors:
            problems.append(f"missing tensor {name}")
            continue
        tensor, shape = tensors[name], leaves[path][layer].T.shape
        if tensor.shape != shape:
            problems.append(f"tensor {name} has shape {tensor.shape}, not {shape}")
        elif str(tensor.dtype) not in DTYPES:
            problems.append(
                f"tensor {name} has dtype {tensor.dtype}, not {'/'.join(DTYPES)}"
            )
        elif not np.isfinite(tensor.astype(np.float32)).all():
            problems.append(f"tensor {name} has a number that is not finite")
        else:
            leaves[path][layer] = tensor.T
    raise_problems(folder, problems, CONFIG_FILE)
    adapters: Adapters = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        place = adapters
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = leaf
    return adapters


def _modules(config: ModelConfig, targets: tuple[str, ...]) -> dict[str, str]:
    """Parameter path of a projection -> its module's name, with "{layer}" in it."""
    names = FAMILIES[config.family].tensor_names
    return {
        path: names[f"{path}/kernel"].removesuffix(".weight")
        for path in map(TARGET_PATHS.__getitem__, targets)
    }


def _tensor_places(
    config: ModelConfig, targets: tuple[str, ...]
) -> dict[str, tuple[str, int]]:
    """Name of a tensor -> path of the adapter that it is a part of, and the layer."""
    places = {}
    for path, module in _modules(config, targets).items():
        for layer in range(config.num_layers):
            for letter in ("A", "B"):
                name = _TENSOR.format(module=module.format(layer=layer), letter=letter)
                places[name] = f"{path}/lora_{letter.lower()}", layer
    return places


def _to_json(
    config: ModelConfig, lora: LoraConfig, base_model: str | None
) -> dict[str, Any]:
    """The content of adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "use_rslora": lora.rank_stabilized,
        "target_modules": _target_modules(config, lora.targets),
        "inference_mode": True,
        "init_lora_weights": True,
        **_REQUIRED,
    }


def _target_modules(config: ModelConfig, targets: tuple[str, ...]) -> Any:
    """What tells the library which modules are adapted: last names, or a pattern."""
    modules = list(_modules(config, targets).values())
    head = FAMILIES[config.family].tensor_names["head"].removesuffix(".weight")
    names = [module.rpartition(".")[2] for module in modules]
    if head.rpartition(".")[2] not in names:
        return names
    # LLaDA's head has the name of a projection of its layers. The library matches a
    # text against the whole name of a module.
    layers, _, _ = modules[0].partition("{layer}")
    rests = [re.escape(module.partition("{layer}.")[2]) for module in modules]
    return rf"{re.escape(layers)}\d+\.(?:{'|'.join(rests)})"


def _check_settings(folder: Path, raw: Mapping[str, Any]) -> None:
    """Raise ValueError for adapters of another kind."""
    problems = []
    if raw.get("peft_type") != "LORA":
        problems.append(f"peft_type={raw.get('peft_type')!r} must be 'LORA'")
    for key, value in _REQUIRED.items():
        stated = raw.get(key, value)
        # Nulls, empty lists and empty objects all mean that there is nothing.
        if stated != value and (stated or value):
            problems.append(f"{key}={stated!r} must be {value!r}")
    if problems:
        raise ValueError(
            f"{folder / CONFIG_FILE}: {one_line('; '.join(problems))}; take plain LoRA "
            "adapters"
        )


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file."""
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: missing file; a folder of adapters must have it"
        ) from error
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path}: truncated or unreadable file ({one_line(error)}); fetch or save "
            "the folder again"
        ) from error


def _carried_files(folder: Path) -> list[Path]:
    """Files of an existing folder that stay; refuses one with others."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file and must be a folder; choose a new one")
    paths = sorted(folder.iterdir())
    known = (CONFIG_FILE, WEIGHTS_FILE, *_CARRIED_FILES)
    unknown = [path.name for path in paths if path.name not in known]
    if unknown:
        raise ValueError(
            f"{folder} holds {unknown[0]!r}, which is no part of adapters and would be "
            "lost; choose a new folder"
        )
    return [path for path in paths if path.name in _CARRIED_FILES]

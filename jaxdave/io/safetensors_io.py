"""Parameters from and to safetensors files: each tensor used once, each leaf filled."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.io import tensor_names
from jaxdave.models.param_shapes import param_shapes
from jaxdave.numerics.quantization import ParamTransform, keep_param, transform_params
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.runtime.files import read_json

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_STORED = ("F32", "BF16", "F16")
_MOST_SHOWN = 20


def check_dtype(dtype: str) -> None:
    """Raise ValueError unless parameters can have this dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")


def read_weights(
    folder: Path,
    config: ModelConfig,
    dtype: str,
    tensors: Mapping[str, str],
    finish: ParamTransform = keep_param,
) -> Params:
    """The parameters of a folder, in the structure of `params.abstract`, on the host.

    tensors: parameter path -> tensor, as `names.TENSORS`. finish: what is kept of each
    parameter once it is whole, so that no more than one is held twice meanwhile.

    Raises one ValueError that names everything wrong with the folder's weights.
    """
    check_dtype(dtype)
    like = param_shapes(config, DTYPES[dtype])
    shapes = {path: leaf.shape for path, leaf in leaves_of(like).items()}
    slots = tensor_names.tensor_targets(list(shapes), config.num_layers, tensors)
    wanted = {name: stored_shape(slot, shapes) for name, slot in slots.items()}
    with ExitStack() as stack:
        index, problems = _index(folder)
        files = _open(folder, index, stack, problems)
        homes = _homes(index, files, problems)
        # A tensor that the index lists is reported with its file, or in `_homes`.
        known = wanted if index is None and not files else index or ()
        _compare(homes, files, wanted, known, problems)
        raise_problems(folder, problems)

        def filled(path, leaf):
            return finish(path, _fill(leaf, path, slots, homes, files))

        return transform_params(like, filled)


def write_weights(
    path: Path,
    config: ModelConfig,
    params: Any,
    dtype: str,
    names_of: Mapping[str, str],
) -> None:
    """Write all parameters to one safetensors file.

    names_of: parameter path -> tensor, as `names.TENSORS`.

    Raises ValueError when the parameters are not those of the config.
    """
    check_dtype(dtype)
    wanted = {p: leaf.shape for p, leaf in leaves_of(param_shapes(config)).items()}
    leaves = leaves_of(to_stacked(params))
    if any(leaf.dtype == jnp.int8 for leaf in leaves.values()):
        raise ValueError(
            "int8 parameters are not saved, as no family's layout holds them; save "
            "those they were made of and load with quantize='int8'"
        )
    found = {p: np.shape(leaf) for p, leaf in leaves.items()}
    if found != wanted:
        odd = sorted(p for p in {*found, *wanted} if found.get(p) != wanted.get(p))
        raise ValueError(
            f"parameters {', '.join(odd)} do not have the shapes of config "
            f"{config.name!r}; save them with the config that they were made with"
        )
    tensors = {}
    for name, slot in tensor_names.tensor_targets(
        list(wanted), config.num_layers, names_of
    ).items():
        leaf = leaves[slot.path]
        value = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
        value = value.T if slot.is_transposed else value
        # safetensors writes the raw buffer, so a transposed view would be scrambled.
        tensors[name] = np.ascontiguousarray(value.astype(DTYPES[dtype]))
    save_file(tensors, path, metadata={"format": "pt"})


def path_of(path) -> str:
    """A key path of jax's as a parameter path, "blocks/attn/q/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_of(params: Any) -> dict[str, Any]:
    """Parameter path, as in `names.TENSORS`, -> leaf."""
    pairs = jax.tree_util.tree_leaves_with_path(params)
    return {path_of(path): leaf for path, leaf in pairs}


def stored_shape(
    slot: tensor_names.TensorTarget, shapes: Mapping[str, tuple]
) -> tuple[int, ...]:
    """The shape of one tensor of torch's, from the shapes of our parameters."""
    shape = shapes[slot.path] if slot.layer is None else shapes[slot.path][1:]
    return shape[::-1] if slot.is_transposed else shape


def _index(folder: Path) -> tuple[dict[str, str] | None, list[str]]:
    """The index's map from tensor to file (None for a single file), and problems."""
    path = folder / INDEX
    if not path.exists():
        return None, []
    weight_map = read_json(path).get("weight_map")
    if isinstance(weight_map, dict) and weight_map:
        if all(isinstance(name, str) for name in weight_map.values()):
            return weight_map, []
    return {}, [f"{INDEX}: weight_map must map tensor names to file names"]


def _open(folder: Path, index, stack: ExitStack, problems: list[str]) -> dict[str, Any]:
    """Every safetensors file that the folder should have, opened."""
    listed = [ONE_FILE] if index is None else sorted(set(index.values()))
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in listed:
            problems.append(f"{path.name}: extra file, no part of the checkpoint")
    files = {}
    for name in listed:
        if not is_inside(folder, name):
            problems.append(f"{name}: points outside the folder")
        elif not (folder / name).is_file():
            problems.append(f"{name}: missing file")
        else:
            try:
                files[name] = stack.enter_context(safe_open(folder / name, "numpy"))
            except (SafetensorError, OSError) as error:
                problems.append(
                    f"{name}: truncated or unreadable file ({_line(error)})"
                )
    return files


def is_inside(folder: Path, name: str) -> bool:
    """Whether a listed file lies in the folder, links followed.

    The Hub's cache links from `snapshots/REVISION` to `blobs` two levels up.
    """
    cached = folder.parent.name == "snapshots"
    root = (folder.parents[1] if cached else folder).resolve()
    plain = not Path(name).is_absolute() and ".." not in Path(name).parts
    return plain and (folder / name).resolve().is_relative_to(root)


def _homes(index, files: dict[str, Any], problems: list[str]) -> dict[str, str]:
    """Tensor name -> the one file that holds it."""
    homes: dict[str, str] = {}
    for file, opened in files.items():
        for name in opened.keys():
            if name in homes:
                problems.append(f"{name}: extra, in both {homes[name]} and {file}")
            elif index is not None and index.get(name) != file:
                problems.append(f"{file}: tensor {name} is there against the index")
            homes[name] = file
    for name, file in (index or {}).items():
        if file in files and name not in homes:
            problems.append(f"{file}: tensor {name} of the index is missing")
    return homes


def _compare(homes, files, wanted: Mapping, known, problems: list[str]) -> None:
    """Report every difference between the tensors found and the tensors wanted.

    known: names whose absence is reported already, or follows from a lost file.
    """
    for name in sorted({*homes, *wanted}):
        if name not in wanted:
            problems.append(f"{homes[name]}: extra tensor {name}")
        elif name not in homes:
            if name not in known:
                problems.append(f"missing tensor {name}")
        else:
            part = files[homes[name]].get_slice(name)
            shape, stored = tuple(part.get_shape()), part.get_dtype()
            if shape != wanted[name]:
                problems.append(f"tensor {name} has shape {shape}, not {wanted[name]}")
            if stored not in _STORED:
                problems.append(
                    f"tensor {name} has dtype {stored}, not {'/'.join(_STORED)}"
                )


def _fill(leaf, path: str, slots, homes, files) -> np.ndarray:
    """One parameter, put together from its tensors."""
    value = np.empty(leaf.shape, leaf.dtype)
    for name, slot in slots.items():
        if slot.path == path:
            tensor = files[homes[name]].get_tensor(name)
            tensor = tensor.T if slot.is_transposed else tensor
            value[... if slot.layer is None else slot.layer] = tensor
    return value


def raise_problems(folder: Path, problems: list[str]) -> None:
    """Raise one ValueError of all problems, if there are any."""
    if not problems:
        return
    shown = list(dict.fromkeys(problems))
    more = len(shown) - _MOST_SHOWN
    tail = [f"and {more} more"] if more > 0 else []
    raise ValueError(
        f"checkpoint {folder}: {'; '.join(shown[:_MOST_SHOWN] + tail)}; the weights "
        "must be exactly those of config.json, so fetch or save the folder again"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

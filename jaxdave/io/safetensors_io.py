"""Parameters from and to safetensors files in a family's layout.

Reading checks a folder completely before it fills any parameter: every file, every
tensor, shape and dtype. All problems are then reported in one error.
"""

import logging
import os
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path, PureWindowsPath
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.core.param_paths import leaves_by_path
from jaxdave.io.finite import check_cast
from jaxdave.io.tensor_names import (
    TensorPart,
    TensorTarget,
    is_buffer,
    tensor_targets,
)
from jaxdave.models.param_shapes import param_shapes
from jaxdave.numerics.quantization import (
    FLOAT8,
    INT8,
    ParamTransform,
    keep_param,
    transform_params,
)
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.runtime.files import read_json
from jaxdave.runtime.messages import one_line

DTYPES = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "float16": jnp.float16,
}
"""Dtypes that parameters can have, by name."""
WEIGHTS_FILE = "model.safetensors"
"""Name of a folder's weights where they are one file."""
INDEX_FILE = "model.safetensors.index.json"
"""Name of the file that says which of several weight files holds a tensor."""

_STORED_DTYPES = ("F32", "BF16", "F16")
_MAX_PROBLEMS_SHOWN = 20
_PART_SHOWN = 200
"""Characters that are shown of a problem, from either end."""
_COMPARED_ROWS = 4096
"""Rows of two tables that are in memory while they are compared."""
_LOGGER = logging.getLogger("jaxdave")


def check_dtype(dtype: str) -> None:
    """Check the name of a parameter dtype.

    Args:
      dtype: the name.

    Raises:
      ValueError: it is none of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")


def read_weights(
    folder: Path,
    config: ModelConfig,
    dtype: str,
    tensor_names: Mapping[str, str],
    transform: ParamTransform = keep_param,
) -> Params:
    """Read the parameters of a folder.

    Args:
      folder: a folder with one safetensors file, or several and their index.
      config: the model; its parameters must be exactly what the files hold.
      dtype: "float32", "bfloat16" or "float16", the parameters' dtype whatever the
        files hold.
      tensor_names: parameter path -> tensor name, such as `tensor_names.QWEN_TENSORS`.
      transform: applied to each parameter as soon as all its layers are read, so that
        at most one parameter is in memory twice; by default it stays as it is, a NumPy
        array on the host.

    Returns:
      The transformed parameters in the structure of `param_shapes(config)`.

    Raises:
      ValueError: one line that names everything wrong with the folder's weights.
    """
    check_dtype(dtype)
    shape_tree = param_shapes(config, DTYPES[dtype])
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(shape_tree).items()}
    targets = tensor_targets(shapes, config.num_layers, tensor_names)
    with ExitStack() as stack:
        # 1. Check everything: each step adds to `problems` and goes on.
        index, problems = _read_index(folder)
        files = _open_files(folder, index, stack, problems)
        file_of = _locate_tensors(index, files, problems)
        # A listed tensor that is absent was reported above, by itself or with its file;
        # without an index, the loss of the only file explains the loss of all tensors.
        reported = targets if index is None and not files else index or ()
        unused = {name for name in file_of if is_buffer(name)}
        tied_head = tensor_names["head"] if config.tie_embeddings else None
        if tied_head in file_of:
            unused.add(tied_head)
        used = {name: file for name, file in file_of.items() if name not in unused}
        _check_tensors(used, files, targets, reported, problems)
        if tied_head in unused:
            embedding = tensor_names["embedding"]
            _check_tied_head(tied_head, embedding, file_of, files, problems)
        raise_problems(folder, problems)
        if unused:
            _LOGGER.warning("%s", describe_unused(folder, unused))

        # 2. Read one parameter at a time, and transform it (quantise it, put it on the
        # device) before the next: two copies of a large model would not fit.
        def read_param(path, leaf):
            return transform(path, _read_param(leaf, path, targets, file_of, files))

        return transform_params(shape_tree, read_param)


def write_weights(
    path: Path,
    config: ModelConfig,
    params: Any,
    dtype: str,
    tensor_names: Mapping[str, str],
) -> None:
    """Write all parameters to one safetensors file.

    Args:
      path: the file.
      config: the model.
      params: its parameters, in any device layout.
      dtype: "float32", "bfloat16" or "float16", what they are stored as.
      tensor_names: parameter path -> tensor name, such as `tensor_names.QWEN_TENSORS`.

    Raises:
      ValueError: the parameters are not those of the config, are quantised, or are
        no finite numbers in that dtype.
    """
    check_dtype(dtype)
    expected_shapes = {
        p: leaf.shape for p, leaf in leaves_by_path(param_shapes(config)).items()
    }
    leaves = leaves_by_path(to_stacked(params))
    if any(leaf.dtype in (INT8, FLOAT8) for leaf in leaves.values()):
        raise ValueError(
            "parameters in 8 bits are not saved, as no family's layout holds them; "
            "save those they were made of, and load with quantize='int8' or 'fp8'"
        )
    shapes = {p: np.shape(leaf) for p, leaf in leaves.items()}
    if shapes != expected_shapes:
        mismatches = sorted(
            p
            for p in {*shapes, *expected_shapes}
            if shapes.get(p) != expected_shapes.get(p)
        )
        raise ValueError(
            f"parameters {', '.join(mismatches)} do not have the shapes of config "
            f"{config.name!r}; save them with the config that they were made with"
        )
    tensors = {}
    targets = tensor_targets(expected_shapes, config.num_layers, tensor_names)
    for name, target in targets.items():
        rows = [_part_rows(leaves[part.path], part) for part in target.parts]
        value = rows[0] if len(rows) == 1 else np.concatenate(rows)
        with np.errstate(over="ignore"):  # `check_cast` names what overflows
            cast = value.astype(DTYPES[dtype])
        check_cast(name, value, cast)
        # safetensors writes the raw buffer, so a transposed view would be scrambled.
        tensors[name] = np.ascontiguousarray(cast)
    # The metadata is what transformers asks of a file before it reads one.
    save_file(tensors, path, metadata={"format": "pt"})


def _part_rows(leaf: Any, part: TensorPart) -> np.ndarray:
    """The rows that a checkpoint has of a parameter."""
    value = np.asarray(leaf[part.index] if part.index else leaf)
    return value.T if part.is_transposed else value


def is_inside(name: str) -> bool:
    """Check that the name of a file in an index leads to no place outside its folder.

    Links are followed wherever they lead: the folder and the links in it are the
    user's, as in the Hub's cache, whose snapshots link to blobs.

    Args:
      name: what the index calls the file.

    Returns:
      True for a relative name without "..".
    """
    # An index comes from whoever published the checkpoint: a name such as "../x" in it
    # must not make us read other files of this machine.
    path = PureWindowsPath(name)  # knows both kinds of separators, and drives
    is_relative = not (path.root or path.drive) and ".." not in path.parts
    return bool(name) and is_relative and "\0" not in name


def describe_unused(folder: Path, names: Collection[str]) -> str:
    """Say which stored tensors a model has no use for.

    Args:
      folder: the folder.
      names: names of the tensors, one or more.

    Returns:
      One line.
    """
    first, more = one_line(min(names)), len(names) - 1
    others = f" and {more} more" if more else ""
    return (
        f"{folder}: tensor {first}{others} not used, as the model computes it, or has "
        "it under another name"
    )


def raise_problems(
    folder: Path, problems: list[str], config_file: str = "config.json"
) -> None:
    """Raise one error of all problems with a folder's weights, if there are any.

    Args:
      folder: the folder.
      problems: what is wrong, a clause each; repetitions are left out.
      config_file: name of the file that says what the weights must be.

    Raises:
      ValueError: there are problems; the message shows the first 20.
    """
    if not problems:
        return
    # Names of tensors and files are whatever their publisher wrote.
    unique = list(dict.fromkeys(_shortened(one_line(text)) for text in problems))
    num_hidden = len(unique) - _MAX_PROBLEMS_SHOWN
    shown = unique[:_MAX_PROBLEMS_SHOWN]
    shown += [f"and {num_hidden} more"] if num_hidden > 0 else []
    raise ValueError(
        f"checkpoint {folder}: {'; '.join(shown)}; the weights "
        f"must be exactly those of {config_file}, so fetch or save the folder again"
    )


def _shortened(text: str) -> str:
    """A text without its middle, if it is long."""
    is_long = len(text) > 2 * _PART_SHOWN
    return f"{text[:_PART_SHOWN]} ... {text[-_PART_SHOWN:]}" if is_long else text


def _read_index(folder: Path) -> tuple[dict[str, str] | None, list[str]]:
    """Read tensor name -> file (None without an index), and problems with it."""
    path = folder / INDEX_FILE
    # A link that leads nowhere is no missing file, but one that was lost.
    if not os.path.lexists(path):
        return None, []
    weight_map = read_json(path).get("weight_map")
    if isinstance(weight_map, dict) and weight_map:
        if all(isinstance(name, str) for name in weight_map.values()):
            return weight_map, []
    return {}, [f"{INDEX_FILE}: weight_map must map tensor names to file names"]


def _open_files(
    folder: Path,
    index: Mapping[str, str] | None,
    stack: ExitStack,
    problems: list[str],
) -> dict[str, Any]:
    """Open every safetensors file that the folder should have; adds to `problems`."""
    names = [WEIGHTS_FILE] if index is None else sorted(set(index.values()))
    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in names:
            problems.append(f"{path.name}: extra file, no part of the checkpoint")
    files = {}
    for name in names:
        if not is_inside(name):
            problems.append(f"{name}: points outside the folder")
        elif not os.path.isfile(folder / name):  # a name may be too long for pathlib
            problems.append(f"{name}: missing file")
        else:
            try:
                files[name] = stack.enter_context(safe_open(folder / name, "numpy"))
            except (SafetensorError, OSError) as error:
                reason = one_line(error)
                problems.append(f"{name}: truncated or unreadable file ({reason})")
    return files


def _locate_tensors(
    index: Mapping[str, str] | None, files: Mapping[str, Any], problems: list[str]
) -> dict[str, str]:
    """Map each tensor to the file that holds it; adds to `problems`."""
    file_of: dict[str, str] = {}
    for file, reader in files.items():
        for name in reader.keys():
            if name in file_of:
                problems.append(f"{name}: extra, in both {file_of[name]} and {file}")
            elif index is not None and index.get(name) != file:
                problems.append(f"{file}: tensor {name} is there against the index")
            file_of[name] = file
    for name, file in (index or {}).items():
        if file in files and name not in file_of:
            problems.append(f"{file}: tensor {name} of the index is missing")
    return file_of


def _check_tensors(
    file_of: Mapping[str, str],
    files: Mapping[str, Any],
    targets: Mapping[str, TensorTarget],
    reported: Any,
    problems: list[str],
) -> None:
    """Add every difference between stored and expected tensors to `problems`.

    `reported` contains the names whose absence needs no report of its own.
    """
    for name in sorted({*file_of, *targets}):
        if name not in targets:
            problems.append(f"{file_of[name]}: extra tensor {name}")
        elif name not in file_of:
            if name not in reported:
                problems.append(f"missing tensor {name}")
        else:
            # A slice reads the header only, not the data.
            header = files[file_of[name]].get_slice(name)
            shape, dtype = tuple(header.get_shape()), header.get_dtype()
            expected = targets[name].shape
            if shape != expected:
                problems.append(f"tensor {name} has shape {shape}, not {expected}")
            if dtype not in _STORED_DTYPES:
                problems.append(
                    f"tensor {name} has dtype {dtype}, not {'/'.join(_STORED_DTYPES)}"
                )


def _check_tied_head(
    head: str,
    embedding: str,
    file_of: Mapping[str, str],
    files: Mapping[str, Any],
    problems: list[str],
) -> None:
    """Add to `problems` if a stored head differs from the embedding it is tied to."""
    if embedding not in file_of:
        return  # reported already
    stored, shared = (files[file_of[n]].get_slice(n) for n in (head, embedding))
    rows = stored.get_shape()[0]
    # The reader refuses a slice that ends behind the table.
    ranges = [
        slice(first, min(first + _COMPARED_ROWS, rows))
        for first in range(0, rows, _COMPARED_ROWS)
    ]
    is_equal = stored.get_shape() == shared.get_shape() and all(
        np.array_equal(stored[part], shared[part]) for part in ranges
    )
    if not is_equal:
        problems.append(
            f"tensor {head} differs from {embedding}, to which config.json ties it "
            "(tie_word_embeddings)"
        )


def _read_param(
    leaf: Any,
    path: str,
    targets: Mapping[str, TensorTarget],
    file_of: Mapping[str, str],
    files: Mapping[str, Any],
) -> np.ndarray:
    """Assemble one parameter from its tensors; the assignment casts to its dtype."""
    # All layers of a kernel in one array [N, in, out], from N tensors [out, in].
    value = np.empty(leaf.shape, leaf.dtype)
    for name, target in targets.items():
        first = 0
        for part in target.parts:
            rows = slice(first, first := first + part.shape[0])
            if part.path != path:
                continue
            tensor = files[file_of[name]].get_slice(name)[rows]
            tensor = tensor.T if part.is_transposed else tensor
            place = value[part.index]
            with np.errstate(over="ignore"):  # `check_cast` names what overflows
                place[...] = tensor
            check_cast(name, tensor, place)
    return value

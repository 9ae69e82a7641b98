"""Models as folders: `load` reads one, `save` writes one, without PyTorch.

A folder is in the Hugging Face layout of its family, or one that jaxdave-convert made.
Either holds config.json, the weights and the tokenizer files.
"""

import dataclasses
import functools
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxdave.core.config import ModelConfig
from jaxdave.core.decode_defaults import NO_DEFAULTS, DecodeDefaults
from jaxdave.core.host_arrays import fetch_arrays
from jaxdave.core.model_api import Params
from jaxdave.drafting import tree_table
from jaxdave.drafting.tree_table import TreeTable
from jaxdave.io import families, hf_config, orbax_io, safetensors_io
from jaxdave.io.device_memory import check_memory
from jaxdave.io.family_defaults import decode_defaults
from jaxdave.io.finite import check_finite, is_finite, raise_overflow
from jaxdave.io.hub import find_model
from jaxdave.io.sharding import check_expert_axis, from_mesh, put_on_mesh
from jaxdave.io.tokenizer import Codec, load_codec
from jaxdave.numerics import quantization
from jaxdave.numerics.weight_layout import (
    to_device_layout,
    to_stacked,
    transfer_transform,
    unstack_layers,
)
from jaxdave.runtime.files import (
    make_readable,
    read_json,
    replace_folder,
    unfinished_folder,
)
from jaxdave.runtime.machine import this_machine
from jaxdave.runtime.mesh_shape import parse_mesh
from jaxdave.runtime.meshes import check_mesh, check_processes, make_mesh
from jaxdave.runtime.messages import one_line
from jaxdave.runtime.phases import begin_phase
from jaxdave.runtime.platform import in_32_bits

_LOGGER = logging.getLogger("jaxdave")
DEFAULT_MAX_NEW_TOKENS = 256
"""Length limit of an answer, where a folder does not name one."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Tokenizer files that go along with the weights, as far as a folder has them."""

_WRITTEN_FILES = (
    "config.json",
    "generation_config.json",
    safetensors_io.WEIGHTS_FILE,
    safetensors_io.INDEX_FILE,
)
# Draft tables describe the weights that they were calibrated on, so new weights make
# them useless: `save` drops them.
_REPLACED_FILES = (*_WRITTEN_FILES, tree_table.TABLE_FILE)
_CARRIED_FILES = (*TOKENIZER_FILES, "README.md", "LICENSE")


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """A model without its weights: prompts are encoded and settings checked with it.

    Attributes:
      name: as of `Model`, like all others.
      folder: the folder that the model is in.
      config: its architecture and special ids.
      codec: its tokenizer and chat template.
      max_new_tokens: length limit of an answer in tokens.
      tables: draft trees by decoding policy.
      decode_defaults: how its authors decode it.
    """

    name: str
    folder: Path
    config: ModelConfig
    codec: Codec
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    tables: Mapping[str, TreeTable] = dataclasses.field(
        default_factory=dict, repr=False
    )
    decode_defaults: DecodeDefaults = NO_DEFAULTS


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything that decoding text needs.

    It can be pickled: parameters travel by value, to the first device of the other
    side, and the tokenizer is read again from the folder.

    Attributes:
      name: the demo's name, the folder's name or the Hub id.
      folder: the folder that the model was read from.
      config: its architecture and special ids.
      params: its parameters in the layout of this machine's devices;
        `weight_layout.to_stacked` undoes the layout.
      codec: its tokenizer and chat template.
      max_new_tokens: length limit of an answer in tokens, from the folder's
        generation_config.json.
      tables: draft trees by decoding policy, as `jaxdave calibrate` leaves them in the
        folder; none without.
      quantize: "int8" or "fp8" if the parameters were quantised while loading, else
        None.
      decode_defaults: how its authors decode it, which a `Sampler` takes where its
        configuration says nothing.
    """

    name: str
    folder: Path
    config: ModelConfig
    params: Params = dataclasses.field(repr=False)
    codec: Codec
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    tables: Mapping[str, TreeTable] = dataclasses.field(
        default_factory=dict, repr=False
    )
    quantize: str | None = None
    decode_defaults: DecodeDefaults = NO_DEFAULTS

    def __getstate__(self) -> dict[str, Any]:
        """The fields, with parameters in shapes that one device can use."""
        params = self.params
        if any(
            isinstance(leaf.sharding, NamedSharding)
            for leaf in jax.tree.leaves(params)
            if isinstance(leaf, jax.Array)
        ):
            params = jax.tree.map(
                jnp.asarray, from_mesh(to_stacked(params), self.config)
            )
        return {**self.__dict__, "params": params}

    def with_template_args(self, **arguments: Any) -> "Model":
        """This model with arguments for its chat template.

        Args:
          **arguments: what the template reads beside the messages, such as
            enable_thinking=False.

        Returns:
          The model.
        """
        codec = self.codec.with_template_args(**arguments)
        return dataclasses.replace(self, codec=codec)


@in_32_bits()
def load(
    source: str | os.PathLike | None = None,
    *,
    dtype: str = "float32",
    block_length: int | None = None,
    mask_id: int | None = None,
    mesh: Mesh | str | None = None,
    quantize: str | None = None,
) -> Model:
    """Load a model from this package, a folder or the Hugging Face Hub.

    A folder is one that jaxdave-convert made, or in the Hugging Face layout of a family
    (Dream, LLaDA, SDAR, Fast-dLLM v2, and mixtures of experts: SDAR, RND1, LLaDA-MoE,
    LLaDA2).

    Args:
      source: "sdar-1m" (or None), "llada-1m" or "dream-1m", which come with the
        package; a folder; or a Hub id "owner/name".
      dtype: "float32", "bfloat16" or "float16", the parameters' dtype whatever the
        files hold.
      block_length: length of a block in tokens; overrides the folder. SDAR's files on
        the Hub name neither it nor the mask id.
      mask_id: id of the mask token; overrides the folder.
      mesh: splits the weights over its axis "model" and, when something is decoded, the
        rows of a batch over its axis "data": what `jax.make_mesh` returns, or text such
        as "data=2,model=4". Weights of a converted folder are nowhere whole then,
        unless they are quantised.
      quantize: "int8" or "fp8" (float8_e4m3fn) stores matrices in 8 bits with one scale
        for each output channel.
        This is a different model, with different text (see `numerics.quantization`);
        `dtype` is then that of the activations (float32 for float16, as ever).

    Returns:
      The model.

    Raises:
      ValueError: the source is unknown, or the folder is not a complete checkpoint; one
        line names everything wrong with its weights. Or the mesh cannot be used, or
        the weights do not fit into the memory of its devices.

    Example:
      >>> model = load("sdar-1m")
      >>> model.config.family
      'sdar'
    """
    safetensors_io.check_dtype(dtype)
    if isinstance(mesh, str):
        mesh = make_mesh(parse_mesh(mesh))
    if mesh is not None:
        check_mesh(mesh)
        check_processes(mesh)
    transform = quantization.param_transform(quantize)
    # Described first: which tensors the weights must hold follows from the config, and
    # a folder without a tokenizer fails in a moment and not after gigabytes were read.
    described = describe(
        source, block_length=block_length, mask_id=mask_id, quantize=quantize
    )
    config = described.config
    if mesh is not None:
        check_expert_axis(config, mesh)
    read_params = _param_reader(described.folder, config, dtype, mesh)
    check_memory(config, dtype, quantize, mesh)
    if mesh is None:
        params = to_device_layout(read_params(transfer_transform(transform)), config)
    else:
        # Device layouts are for one device; over a mesh, parameters stay stacked, or
        # are only taken apart into layers.
        params = put_on_mesh(read_params(transform), config, mesh)
        params = unstack_layers(params, this_machine())
    return Model(
        name=described.name,
        folder=described.folder,
        config=config,
        params=params,
        codec=described.codec,
        max_new_tokens=described.max_new_tokens,
        tables=described.tables,
        quantize=quantize,
        decode_defaults=described.decode_defaults,
    )


def describe(
    source: str | os.PathLike | None = None,
    *,
    block_length: int | None = None,
    mask_id: int | None = None,
    quantize: str | None = None,
) -> ModelDescription:
    """Read all of a model but its weights.

    Args:
      source: as for `load`, like all others.
      block_length: length of a block in tokens; overrides the folder.
      mask_id: id of the mask token; overrides the folder.
      quantize: which draft trees fit: those of the quantised model or of the plain one.

    Returns:
      The description.

    Raises:
      ValueError: the source is unknown, or its config or tokenizer is broken.

    Example:
      >>> describe("sdar-1m").codec.encode_prompt("How many pens?") != []
      True
    """
    name, folder = find_model(source)
    begin_phase(f"loading {name}")
    raw = read_json(folder / "config.json")
    if orbax_io.is_orbax_config(raw):
        config = _read_orbax_config(folder, raw, block_length, mask_id)
    else:
        # The weights are checked against the config, so the config alone has to tell
        # the family here.
        family = families.detect(raw, None)
        config = hf_config.model_config(
            family, raw, folder, name=name, block_length=block_length, mask_id=mask_id
        )
    generation = read_json(folder / "generation_config.json", optional=True)
    return ModelDescription(
        name=name,
        folder=folder,
        config=config,
        codec=load_codec(folder, config=config),
        max_new_tokens=_read_max_new_tokens(generation),
        tables=_read_tables(folder, config, quantize),
        decode_defaults=decode_defaults(config, generation),
    )


@in_32_bits()
def save(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: Any,
    *,
    dtype: str,
    tokenizer: str | os.PathLike | None = None,
    max_new_tokens: int | None = None,
) -> None:
    """Write a model as a folder in the Hugging Face layout of its family.

    The folder is written under a temporary name and then renamed, so it is either
    complete or as it was. Of several processes (`jax.distributed`) the first one writes
    it, and the others return at once.

    Args:
      folder: the folder to make. If it exists, its weights are replaced; its tokenizer
        files, README.md and LICENSE are carried over.
      config: the model.
      params: its parameters, in any device layout, not quantised.
      dtype: "float32", "bfloat16" or "float16", what the parameters are stored as.
      tokenizer: a folder whose tokenizer files are copied.
      max_new_tokens: length limit of an answer that `load` will report.

    Raises:
      ValueError: the existing folder has files that are no part of a checkpoint, the
        parameters do not fit the config, or the family cannot express the config.

    Example:
      ::

        model = jaxdave.load("sdar-1m")
        save("copy", model.config, model.params, dtype="bfloat16",
             tokenizer=model.folder)
    """
    folder = Path(folder).absolute()
    safetensors_io.check_dtype(dtype)
    params = from_mesh(to_stacked(params), config)
    if not all(
        leaf.is_fully_addressable
        for leaf in jax.tree.leaves(params)
        if isinstance(leaf, jax.Array)
    ):
        params = fetch_arrays(params)  # all processes take part in that
    if jax.process_index():
        return  # of several processes the first one writes
    raw = hf_config.to_json(config, dtype)
    copied_files = _carried_files(folder)
    if tokenizer is not None:
        # After the carried files, so that these replace tokenizer files of old.
        copied_files += [
            path for path in Path(tokenizer).iterdir() if path.name in TOKENIZER_FILES
        ]
    with unfinished_folder(folder) as work:
        # All files go to a hidden folder beside the
        # destination, which is renamed at the end.
        safetensors_io.write_weights(
            work / safetensors_io.WEIGHTS_FILE,
            config,
            params,
            dtype,
            families.FAMILIES[config.family].tensor_names,
        )
        orbax_io.write_json(work / "config.json", raw)
        generation = {
            "eos_token_id": list(config.stop_ids),
            "pad_token_id": config.pad_id,
        }
        if max_new_tokens is not None:
            generation["max_new_tokens"] = max_new_tokens
        orbax_io.write_json(work / "generation_config.json", generation)
        for path in copied_files:
            shutil.copyfile(path, work / path.name)
        make_readable(work)
        replace_folder(work, folder)


def _param_reader(
    folder: Path, config: ModelConfig, dtype: str, mesh: Mesh | None
) -> Callable[[quantization.ParamTransform], Params]:
    """What reads the weights of a folder, given what is done to each of them."""
    raw = read_json(folder / "config.json")
    if orbax_io.is_orbax_config(raw):
        return functools.partial(_restore_and_transform, folder, config, dtype, mesh)
    names = families.detect(raw, None).tensor_names
    return functools.partial(safetensors_io.read_weights, folder, config, dtype, names)


def _restore_and_transform(
    folder: Path,
    config: ModelConfig,
    dtype: str,
    mesh: Mesh | None,
    transform: quantization.ParamTransform,
) -> Params:
    """Read a converted folder with the signature that `load` calls."""
    params = orbax_io.restore(folder, config, dtype, mesh)
    stored_dtype = read_json(folder / "config.json").get("dtype")

    def checked(path: str, leaf: Any) -> Any:
        # What was converted is finite, so that an infinity comes from the cast.
        if dtype != stored_dtype and not is_finite(leaf):
            raise_overflow(path, dtype)
        check_finite(path, leaf)
        return transform(path, leaf)

    return quantization.transform_params(params, checked)


def _read_tables(
    folder: Path, config: ModelConfig, quantize: str | None
) -> Mapping[str, TreeTable]:
    """Read the draft trees of a folder; a broken file costs speed, not the answer."""
    try:
        tables = tree_table.read_tables(folder, config)
    except ValueError as error:
        _LOGGER.warning("%s; drafts are nested", one_line(error))
        return {}
    return tree_table.select_tables(tables, quantize)


def _read_max_new_tokens(generation: Mapping[str, Any]) -> int:
    """Read the limit from generation_config.json, where it is a positive number."""
    limit = generation.get("max_new_tokens")
    return limit if type(limit) is int and limit > 0 else DEFAULT_MAX_NEW_TOKENS


def _read_orbax_config(
    folder: Path, raw: dict[str, Any], block_length: int | None, mask_id: int | None
) -> ModelConfig:
    """Read a converted folder's config and apply the caller's overrides."""
    config = orbax_io.read_config(raw, folder)
    overrides = {}
    if block_length is not None:
        overrides["block_length"] = block_length
    if mask_id is not None:
        overrides["mask_id"] = mask_id
    return dataclasses.replace(config, **overrides)


def _carried_files(folder: Path) -> list[Path]:
    """List the files of an existing folder that stay; refuses one with others."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file and must be a folder; choose a new one")
    paths = sorted(folder.iterdir())
    known = _REPLACED_FILES + _CARRIED_FILES
    unknown = [p.name for p in paths if p.name not in known or not p.is_file()]
    if unknown:
        raise ValueError(
            f"{folder} holds {unknown[0]!r}, which is no part of a checkpoint and "
            "would be lost; choose a new folder"
        )
    return [path for path in paths if path.name in _CARRIED_FILES]

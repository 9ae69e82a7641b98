"""Models as folders, in the layouts of their families, without torch."""

import dataclasses
import functools
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.drafting import tree_table
from jaxdave.drafting.tree_table import TreeTable
from jaxdave.io import families, hf_config, orbax_io, safetensors_io
from jaxdave.io.hub import find_model
from jaxdave.io.sharding import shardings
from jaxdave.io.tokenizer import Codec, load_codec
from jaxdave.numerics import quantization as ways
from jaxdave.numerics.weight_layout import to_device_layout, transfer_transform
from jaxdave.runtime.files import make_readable, read_json, replace_folder

MAX_NEW_TOKENS = 256
_WRITTEN = (
    "config.json",
    "generation_config.json",
    safetensors_io.ONE_FILE,
    safetensors_io.INDEX,
)
# Draft tables are of the weights that they were calibrated on, and go with those.
_REPLACED = (*_WRITTEN, tree_table.TABLE_FILE)
# What `save` carries over from the folder that it replaces.
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json") + (
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_KEPT = (*TOKENIZER, "README.md", "LICENSE")


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything that decoding text needs.

    params: as this machine reads them; `placing.stacked` makes what `params.abstract`
    describes of them.
    max_new_tokens: the room for an answer that the folder's generation defaults name.
    tables: draft trees that `jaxdave calibrate` has left (`trees.best_of`).
    quantize: how the parameters were quantised as they were read, or None.
    """

    name: str
    folder: Path
    config: ModelConfig
    params: Params = dataclasses.field(repr=False)
    codec: Codec
    max_new_tokens: int = MAX_NEW_TOKENS
    tables: Mapping[str, TreeTable] = dataclasses.field(
        default_factory=dict, repr=False
    )
    quantize: str | None = None


def load(
    source: str | os.PathLike | None = None,
    *,
    dtype: str = "float32",
    block_length: int | None = None,
    mask_id: int | None = None,
    mesh: Mesh | None = None,
    quantize: str | None = None,
) -> Model:
    """The model of a folder, of the Hub, or of this package.

    A folder is one that jaxdave-convert made, or the Hugging Face layout of a family
    (Dream, LLaDA, SDAR, Fast-dLLM v2).

    source: "sdar-1m" (or None), "llada-1m" or "dream-1m", which come with the package;
        a folder; a Hub id "owner/name".
    dtype: "float32" or "bfloat16", whatever the files hold. block_length, mask_id: go
        before what the folder says; SDAR's files on the Hub say nothing of either.
    mesh: split the weights over its axis "model"; those of a converted folder are
        never whole anywhere, unless they are quantised.
    quantize: "int8" keeps matrices as int8 with a scale per output channel: another
        model, with a text of its own (see `quantize.py`). dtype is then that of the
        activations.
    Raises one ValueError that names everything wrong with the folder's weights.
    """
    safetensors_io.check_dtype(dtype)
    kept = ways.param_transform(quantize)
    name, folder = find_model(source)
    raw = read_json(folder / "config.json")
    if orbax_io.is_orbax_folder(raw):
        config = _stored_config(folder, raw, block_length, mask_id)
        read = functools.partial(_restored, folder, config, dtype, mesh)
    else:
        family = families.detect(raw, None)
        config = hf_config.model_config(
            family, raw, folder, name=name, block_length=block_length, mask_id=mask_id
        )
        read = functools.partial(
            safetensors_io.read_weights, folder, config, dtype, family.tensors
        )
    codec = load_codec(folder, config=config)
    if mesh is None:
        params = to_device_layout(read(transfer_transform(kept)), config)
    else:
        params = read(kept)
        params = jax.device_put(params, shardings(params, config, mesh))
    found = tree_table.select_tables(tree_table.read_tables(folder), quantize)
    return Model(name, folder, config, params, codec, _room(folder), found, quantize)


def save(
    folder: str | os.PathLike,
    config: ModelConfig,
    params: Any,
    *,
    dtype: str,
    tokenizer: str | os.PathLike | None = None,
    max_new_tokens: int | None = None,
) -> None:
    """Write a folder that `load` reads, under a temporary name, then rename it.

    tokenizer: a folder whose tokenizer files go along. Those that `folder` has already
        are carried over, as are README.md and LICENSE; its older weights are replaced.
    max_new_tokens: the room for an answer that `load` will suggest.
    Raises ValueError when the folder holds anything else or the parameters do not fit.
    """
    folder = Path(folder).absolute()
    safetensors_io.check_dtype(dtype)
    raw = hf_config.to_json(config, dtype)
    kept = _kept(folder)
    if tokenizer is not None:
        kept += [p for p in Path(tokenizer).iterdir() if p.name in TOKENIZER]
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        names = families.FAMILIES[config.family].tensors
        safetensors_io.write_weights(
            made / safetensors_io.ONE_FILE, config, params, dtype, names
        )
        orbax_io.write_json(made / "config.json", raw)
        generation = {
            "eos_token_id": list(config.stop_ids),
            "pad_token_id": config.pad_id,
        }
        if max_new_tokens is not None:
            generation["max_new_tokens"] = max_new_tokens
        orbax_io.write_json(made / "generation_config.json", generation)
        for path in kept:
            shutil.copyfile(path, made / path.name)
        make_readable(made)
        replace_folder(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def _restored(folder: Path, config: ModelConfig, dtype: str, mesh, finish) -> Params:
    return ways.transform_params(orbax_io.restore(folder, config, dtype, mesh), finish)


def _room(folder: Path) -> int:
    said = read_json(folder / "generation_config.json", optional=True)
    room = said.get("max_new_tokens")
    return room if type(room) is int and room > 0 else MAX_NEW_TOKENS


def _stored_config(
    folder: Path, raw: dict[str, Any], block_length: int | None, mask_id: int | None
) -> ModelConfig:
    config = orbax_io.read_config(raw, folder)
    changes = {"block_length": block_length, "mask_id": mask_id}
    known = {key: value for key, value in changes.items() if value is not None}
    return dataclasses.replace(config, **known)


def _kept(folder: Path) -> list[Path]:
    """The files of an existing folder that stay in it."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file and must be a folder; choose a new one")
    found = sorted(folder.iterdir())
    odd = [p.name for p in found if p.name not in _REPLACED + _KEPT or not p.is_file()]
    if odd:
        raise ValueError(
            f"{folder} holds {odd[0]!r}, which is no part of a checkpoint and would be "
            "lost; choose a new folder"
        )
    return [path for path in found if path.name in _KEPT]

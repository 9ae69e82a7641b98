"""Everything beside the weights in a converted folder, its record of origin included.

`source/` has, byte for byte, what exporting needs: files that our folder has under
other names or not at all, and the header of every weight file.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import jaxdave
from jaxdave.io import orbax_io
from jaxdave.io.checkpoint import TOKENIZER_FILES
from jaxdave_convert import torch_bin
from jaxdave_convert.plan import ConversionPlan

MANIFEST_FILE = "manifest.json"
SOURCE_FOLDER = "source"
GENERATION_FILE = "generation_config.json"

# Files that keep their name and place; of the others, our folder has its own.
_UNCHANGED_FILES = (*TOKENIZER_FILES, GENERATION_FILE, "tokenizer.model")


def write_metadata(work: Path, plan: ConversionPlan, hashes: dict[str, str]) -> None:
    """Write all files but the weights.

    config.json comes last: only with it does the folder load.

    Args:
      work: the folder that is being made.
      plan: the conversion.
      hashes: name -> sha256 of every weight file of the source.
    """
    folder = plan.source.folder
    source_copy = work / SOURCE_FOLDER
    # A run that was cut off may have left one.
    shutil.rmtree(source_copy, ignore_errors=True)
    source_copy.mkdir()
    for name in plan.source.sidecars:
        is_unchanged = name in _UNCHANGED_FILES or name.startswith("LICENSE")
        parent = work if is_unchanged else source_copy
        shutil.copyfile(folder / name, parent / name)
    shards = []
    for shard in plan.source.shards:
        (source_copy / f"{shard.file}.header").write_bytes(shard.header)
        is_bin = shard.file.endswith(".bin")
        name = torch_bin.safetensors_name(shard.file) if is_bin else shard.file
        shards.append({"file": name, "source": shard.file})
    if not (work / GENERATION_FILE).exists():
        generation = {
            "eos_token_id": list(plan.config.stop_ids),
            "pad_token_id": plan.config.pad_id,
        }
        orbax_io.write_json(work / GENERATION_FILE, generation)
    orbax_io.write_json(work / MANIFEST_FILE, _manifest(plan, hashes, shards))
    orbax_io.write_json(work / "config.json", orbax_io.to_json(plan.config, plan.dtype))


def _manifest(
    plan: ConversionPlan, hashes: dict[str, str], shards: list[dict[str, str]]
) -> dict[str, Any]:
    """Build the record of where the folder came from."""
    folder = plan.source.folder
    sidecar_hashes = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in plan.source.sidecars
    }
    return {
        "tool": f"jaxdave-convert {jaxdave.__version__}",
        "source": plan.source.name,
        "revision": plan.source.revision,
        "family": plan.family.name,
        "dtype": plan.dtype,
        "tensors": len(plan.source.tensor_names),
        "parameters": plan.num_parameters,
        "shards": shards,
        "sidecars": list(sidecar_hashes),
        "sha256": {**hashes, **sidecar_hashes},
    }

"""What a converted folder holds beside its weights, the record of its origin included.

`source/` keeps, byte for byte, what the way back needs: files that our folder has under
other names or not at all, and the header of every weight file.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import jaxdave
from jaxdave.io import orbax_io
from jaxdave.io.checkpoint import TOKENIZER
from jaxdave_convert import torch_bin
from jaxdave_convert.plan import Plan

MANIFEST = "manifest.json"
SOURCE = "source"
GENERATION = "generation_config.json"
# Files that keep their name and place; of the others the folder has its own.
_SAME = (*TOKENIZER, GENERATION, "tokenizer.model")


def write(work: Path, plan: Plan, hashes: dict[str, str]) -> None:
    """Write everything but the weights; config.json, which makes it load, last.

    hashes: sha256 of every weight file.
    """
    folder = plan.source.folder
    kept = work / SOURCE
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for name in plan.source.sidecars:
        is_same = name in _SAME or name.startswith("LICENSE")
        shutil.copyfile(folder / name, (work if is_same else kept) / name)
    shards = []
    for shard in plan.source.shards:
        (kept / f"{shard.file}.header").write_bytes(shard.header)
        is_bin = shard.file.endswith(".bin")
        name = torch_bin.safetensors_name(shard.file) if is_bin else shard.file
        shards.append({"file": name, "source": shard.file})
    if not (work / GENERATION).exists():
        orbax_io.write_json(work / GENERATION, _generation(plan))
    orbax_io.write_json(work / MANIFEST, _manifest(plan, hashes, shards))
    orbax_io.write_json(work / "config.json", orbax_io.to_json(plan.config, plan.dtype))


def _manifest(plan: Plan, hashes: dict[str, str], shards: list) -> dict[str, Any]:
    folder = plan.source.folder
    sidecars = {name: _sha256(folder / name) for name in plan.source.sidecars}
    return {
        "tool": f"jaxdave-convert {jaxdave.__version__}",
        "source": plan.source.name,
        "revision": plan.source.revision,
        "family": plan.family.name,
        "dtype": plan.dtype,
        "tensors": len(plan.source.tensor_names),
        "parameters": plan.parameters,
        "shards": shards,
        "sidecars": list(sidecars),
        "sha256": {**hashes, **sidecars},
    }


def _generation(plan: Plan) -> dict[str, Any]:
    return {
        "eos_token_id": list(plan.config.stop_ids),
        "pad_token_id": plan.config.pad_id,
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

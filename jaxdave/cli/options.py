"""What several commands share: their options, and where compiled programs are kept."""

import os
from typing import Annotated

import typer

from jaxdave.runtime.files import NO_CACHE, cache_folder

Model = Annotated[
    str | None,
    typer.Option(help="Folder or Hub id (owner/name); by default the packaged demo."),
]
Quantize = Annotated[
    str | None, typer.Option(help="int8: matrices as int8, a model of its own.")
]
Draft = Annotated[
    str,
    typer.Option(
        help="tree (nested where the model is not calibrated), nested, or copy: "
        "tree, and what the text repeats."
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(help="NAME[:key=value,...]; see `jaxdave policies`."),
]
Cache = Annotated[
    str | None, typer.Option(help="none, prefix or dual, for full attention.")
]
BlockLength = Annotated[int | None, typer.Option(help="The model's.")]
Seed = Annotated[int, typer.Option(help="Of the noise at a temperature.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Numerics = Annotated[str, typer.Option(help="guarded, exact or fast.")]
BatchSize = Annotated[int, typer.Option(help="Prompts decoded together.")]
NoCache = Annotated[
    bool, typer.Option("--no-compile-cache", help="Do not keep compiled programs.")
]


def keep_nothing(off: bool) -> None:
    """Keep neither programs nor measurements on disk where that is turned off."""
    if off:
        os.environ[NO_CACHE] = "1"


def keep_compiled(off: bool) -> None:
    """Let jax keep programs that `shelf` does not, unless that is turned off."""
    keep_nothing(off)
    folder = cache_folder("xla")
    if folder is None:
        return
    import jax

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written to costs time, not the answer
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

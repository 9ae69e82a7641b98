"""Where training starts: new parameters, a diffusion model, or an autoregressive one.

A starting point is all that a checkpoint folder is made of. What can be decoded is
started from as it is; an autoregressive model is opened first (`io.autoregressive`).
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxdave.core.config import ModelConfig
from jaxdave.core.model_api import Params
from jaxdave.io import checkpoint
from jaxdave.io.autoregressive import (
    Opening,
    is_autoregressive,
    read_autoregressive,
)
from jaxdave.io.hub import find_model
from jaxdave.io.mask_token import read_tokenizer_files
from jaxdave.io.safetensors_io import DTYPES, check_dtype
from jaxdave.io.tokenizer import Codec, load_codec
from jaxdave.models import transformer
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.runtime.files import temporary_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """A model that is to be trained.

    Attributes:
        config: Its architecture and special ids.
        params: Its parameters in the structure of `param_shapes(config)`.
        tokenizer_files: Name -> content of the files of its tokenizer.
        max_new_tokens: Length limit of an answer that its checkpoints are to name.
    """

    config: ModelConfig
    params: Params = dataclasses.field(repr=False)
    tokenizer_files: Mapping[str, bytes] = dataclasses.field(repr=False)
    max_new_tokens: int = checkpoint.DEFAULT_MAX_NEW_TOKENS

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer files, for `load_codec` and for checkpoints.

        Args:
            folder: A folder that is there.
        """
        for name, content in self.tokenizer_files.items():
            (folder / name).write_bytes(content)

    def open_codec(self) -> Codec:
        """Open the tokenizer; the codec cannot be pickled, as it has no folder.

        Returns:
            The codec.

        Raises:
            ValueError: The tokenizer cannot be read.
        """
        with temporary_folder() as folder:
            self.write_tokenizer(folder)
            codec = load_codec(folder, config=self.config)
        return dataclasses.replace(codec, folder=None)

    def save(
        self, folder: str | os.PathLike, params: Params | None = None, *, dtype: str
    ) -> None:
        """Write a checkpoint that `jaxdave.load` reads.

        Args:
            folder: The folder to make, or whose weights to replace.
            params: Parameters to write; None: those of the start.
            dtype: "float32", "bfloat16" or "float16", what they are stored as.

        Raises:
            ValueError: The folder has other files, or the parameters do not fit.
        """
        with temporary_folder() as tokenizer:
            self.write_tokenizer(tokenizer)
            checkpoint.save(
                folder,
                self.config,
                self.params if params is None else params,
                dtype=dtype,
                tokenizer=tokenizer,
                max_new_tokens=self.max_new_tokens,
            )


def from_scratch(
    config: ModelConfig,
    *,
    tokenizer: str | os.PathLike,
    seed: int = 0,
    dtype: str = "float32",
) -> StartingPoint:
    """Start from random parameters.

    Args:
        config: The model.
        tokenizer: A model whose tokenizer it gets: a folder, a demo model or a Hub id.
        seed: Of the draw.
        dtype: "float32", "bfloat16" or "float16", of the parameters.

    Returns:
        The start.

    Raises:
        ValueError: The tokenizer has other ids than the config says.

    Example:
        >>> from jaxdave.models.presets import preset
        >>> config = preset("sdar-1m", num_layers=1)
        >>> start = from_scratch(config, tokenizer="sdar-1m")
        >>> start.open_codec().size
        776
    """
    check_dtype(dtype)
    start = StartingPoint(
        config=config,
        params=transformer.init(config, seed, DTYPES[dtype]),
        tokenizer_files=read_tokenizer_files(find_model(tokenizer)[1]),
    )
    size = start.open_codec().size
    if size > config.vocab_rows:
        raise ValueError(
            f"tokenizer {os.fspath(tokenizer)!r} has {size} ids, more than the "
            f"vocab_rows={config.vocab_rows} of {config.name!r}; take another tokenizer"
        )
    return start


def from_model(
    source: str | os.PathLike,
    *,
    opening: Opening | None = None,
    dtype: str = "float32",
    block_length: int | None = None,
    mask_id: int | None = None,
) -> StartingPoint:
    """Start from the weights of a model.

    Args:
        source: What `jaxdave.load` takes; or a folder or Hub id of an autoregressive
            Qwen2, Qwen3 or Llama.
        opening: What an autoregressive model becomes; only there, and needed there.
        dtype: "float32", "bfloat16" or "float16", the parameters' dtype whatever the
            files hold.
        block_length: Of a diffusion model, as for `jaxdave.load`.
        mask_id: Of a diffusion model, as for `jaxdave.load`.

    Returns:
        The start; its parameters are arrays of the host or of the first device.

    Raises:
        ValueError: The source is unknown or incomplete, or the settings are those of
            the other kind of model.

    Example:
        >>> start = from_model("sdar-1m")
        >>> start.config.family, start.params["norm"]["scale"].shape
        ('sdar', (128,))
    """
    check_dtype(dtype)
    name, folder = find_model(source)
    if opening is None and not is_autoregressive(folder):
        model = checkpoint.load(
            source, dtype=dtype, block_length=block_length, mask_id=mask_id
        )
        return StartingPoint(
            config=model.config,
            params=to_stacked(model.params),
            tokenizer_files=read_tokenizer_files(folder),
            max_new_tokens=model.max_new_tokens,
        )
    if opening is None or (block_length, mask_id) != (None, None):
        raise ValueError(
            f"{name} is an autoregressive model, whose attention has to be opened: "
            "give attention, block_length and mask_token as an Opening"
        )
    config, params, files = read_autoregressive(folder, opening, name=name, dtype=dtype)
    return StartingPoint(
        config=config,
        params=jax.tree.map(jnp.asarray, params),
        tokenizer_files=files,
    )

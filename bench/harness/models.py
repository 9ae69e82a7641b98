"""The models to measure: the packaged demo, and random ones of the shapes of SDAR."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from bench.harness.loading import load_model
from bench.harness.network_only import DecodeBench
from bench.harness.scripted_drafts import scripted_model
from jaxdave.core.config import ModelConfig
from jaxdave.core.spec import DecodeSpec
from jaxdave.engine import decoders
from jaxdave.engine.decoders import Decoder, DraftSteps
from jaxdave.models import transformer
from jaxdave.models.presets import preset
from jaxdave.numerics.weight_layout import to_device_layout

ACCEPTANCE = 0.8
"""Probability that a scripted draft's next token is accepted, given those before it."""

MAX_POSITIONS = 16384
"""Longest sequence of a random model."""

_SHAPE = dict(head_dim=64, rotary_dim=64, max_positions=MAX_POSITIONS)
_CONFIGS = {
    "1M": dict(max_positions=MAX_POSITIONS),
    "30M": dict(
        _SHAPE,
        num_layers=8,
        hidden=512,
        inter=1536,
        heads=8,
        kv_heads=4,
        vocab_rows=4096,
        vocab_size=4096,
    ),
    "135M": dict(
        _SHAPE,
        num_layers=30,
        hidden=576,
        inter=1536,
        heads=9,
        kv_heads=3,
        vocab_rows=49152,
        vocab_size=49152,
        tie_embeddings=True,
    ),
}
# Presets of published models, in bfloat16: for a GPU.
_PRESETS = {"4B": "sdar-4b", "8B": "sdar-8b"}
_MAX_NEW_TOKENS = {"135M": 16, "4B": 128, "8B": 128}

SIZES = ("demo", *_CONFIGS, *_PRESETS)
"""Names of the models on the command line."""


@dataclasses.dataclass(frozen=True)
class BenchModel:
    """A model to measure, with prompts of one length.

    Attributes:
        name: one of `SIZES`.
        config: its config.
        params: its parameters, in the layout of this machine.
        prompts: token ids of eight prompts of equal length.
        max_new_tokens: length of the answers.
        acceptance: probability that a scripted draft's next token is accepted; None
            where the weights are trained and drafts are left to themselves.
    """

    name: str
    config: ModelConfig
    params: Any = dataclasses.field(repr=False)
    prompts: list[list[int]] = dataclasses.field(repr=False)
    max_new_tokens: int
    acceptance: float | None

    @property
    def itemsize(self) -> int:
        """Bytes of a weight."""
        return self.params["norm"]["scale"].dtype.itemsize

    @property
    def label(self) -> str:
        """The name, and where the acceptance of its drafts comes from."""
        kind = "trained" if self.acceptance is None else f"scripted {self.acceptance}"
        return f"{self.name} ({kind})"

    def decoder(self, draft_steps: DraftSteps, numerics: str = "guarded") -> Decoder:
        """Build a FreeDave decoder.

        Args:
            draft_steps: drafts of a call, or "auto"; 1 is static decoding, in the
                shape that is fastest for it.
            numerics: "guarded", "exact" or "fast".

        Returns:
            The decoder, with scripted predictions where the weights are random.
        """
        network = None
        if self.acceptance is not None:
            network = scripted_model(self.config, self.acceptance, numerics)
        return decoders.freedave(
            self.config,
            draft_steps=draft_steps,
            max_new_tokens=self.max_new_tokens,
            numerics=numerics,
            network=network,
        )

    def bench(
        self, draft_steps: DraftSteps, batch_size: int = 1, numerics: str = "guarded"
    ) -> DecodeBench:
        """Build a decode to time.

        Args:
            draft_steps: as for `decoder`.
            batch_size: number of prompts, at most eight.
            numerics: as for `decoder`.

        Returns:
            The decoder with parameters and prompts.
        """
        decoder = self.decoder(draft_steps, numerics)
        return DecodeBench(decoder, self.params, self.prompts[:batch_size])

    def spec(self, draft_steps: int, numerics: str = "guarded") -> DecodeSpec:
        """Look up the spec of a decoder.

        Args:
            draft_steps: as for `decoder`.
            numerics: as for `decoder`.

        Returns:
            The functions and sizes that it is compiled from.
        """
        return self.decoder(draft_steps, numerics).spec


def random_config(size: str) -> ModelConfig:
    """Look up the config of a random model.

    Args:
        size: one of `SIZES`, but not "demo".

    Returns:
        Its config.
    """
    if size in _PRESETS:
        return dataclasses.replace(preset(_PRESETS[size]), max_positions=MAX_POSITIONS)
    changes = {"name": f"random-{size}", **_CONFIGS[size]}
    return dataclasses.replace(preset("sdar-1m"), **changes)


def bench_model(
    size: str, prompts_of_one_length: Callable[..., list[list[int]]]
) -> BenchModel:
    """Load or initialise a model to measure.

    Args:
        size: one of `SIZES`.
        prompts_of_one_length: (loaded model, count) -> prompts; selects the demo's.
            Random models get arbitrary ids: scripted answers do not depend on them.

    Returns:
        The model.

    Raises:
        ValueError: if the size is unknown.
    """
    if size == "demo":
        loaded = load_model("sdar-1m")
        prompts = prompts_of_one_length(loaded, 8)
        return BenchModel(
            name=size,
            config=loaded.config,
            params=loaded.params,
            prompts=prompts,
            max_new_tokens=64,
            acceptance=None,
        )
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
    config = random_config(size)
    dtype = jnp.bfloat16 if size in _PRESETS else jnp.float32
    return BenchModel(
        name=size,
        config=config,
        params=to_device_layout(transformer.init(config, 0, dtype), config),
        prompts=[[(7 * i + 3 * row) % 64 for i in range(40)] for row in range(8)],
        max_new_tokens=_MAX_NEW_TOKENS.get(size, 32),
        acceptance=ACCEPTANCE,
    )

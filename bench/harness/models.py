"""What is measured: the demo model, and random models of the shapes of SDAR."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from bench.harness import common
from bench.harness.network_only import Bench
from bench.harness.scripted_drafts import scripted
from jaxdave.core.config import ModelConfig
from jaxdave.core.spec import DecodeSpec
from jaxdave.engine import decoders
from jaxdave.engine.decoders import Decoder, DraftSteps
from jaxdave.models import transformer
from jaxdave.models.presets import preset
from jaxdave.numerics.weight_layout import to_device_layout

ACCEPTANCE = 0.8
"""Of a scripted draft's next token, given that those before it held."""
LONGEST = 16384
_SHAPE = dict(head_dim=64, rotary_dim=64, max_positions=LONGEST)
_CONFIGS = {
    "1M": dict(max_positions=LONGEST),
    "30M": dict(
        _SHAPE, num_layers=8, hidden=512, inter=1536, heads=8, kv_heads=4,
        vocab_rows=4096, vocab_size=4096,
    ),
    "135M": dict(
        _SHAPE, num_layers=30, hidden=576, inter=1536, heads=9, kv_heads=3,
        vocab_rows=49152, vocab_size=49152, tie_embeddings=True,
    ),
}  # fmt: skip
_LARGE = {"4B": "sdar-4b", "8B": "sdar-8b"}
"""Presets, in bfloat16; for a GPU."""
SIZES = ("demo", *_CONFIGS, *_LARGE)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model to measure, and prompts of one length.

    acceptance: of its scripted drafts; None: its own, the weights being trained.
    """

    name: str
    config: ModelConfig
    params: Any = dataclasses.field(repr=False)
    prompts: list[list[int]] = dataclasses.field(repr=False)
    room: int
    acceptance: float | None

    @property
    def weight(self) -> int:
        """Bytes of a weight."""
        return self.params["norm"]["scale"].dtype.itemsize

    @property
    def label(self) -> str:
        """The name, and what acceptance is."""
        kind = "trained" if self.acceptance is None else f"scripted {self.acceptance}"
        return f"{self.name} ({kind})"

    def decoder(self, draft_steps: DraftSteps, numerics: str = "guarded") -> Decoder:
        """FreeDave; of one draft, static in its own fastest shape."""
        network = None
        if self.acceptance is not None:
            network = scripted(self.config, self.acceptance, numerics)
        return decoders.freedave(
            self.config, draft_steps=draft_steps, max_new_tokens=self.room,
            numerics=numerics, network=network,
        )  # fmt: skip

    def bench(
        self, draft_steps: DraftSteps, rows: int = 1, numerics: str = "guarded"
    ) -> Bench:
        """A decode of so many rows."""
        decoder = self.decoder(draft_steps, numerics)
        return Bench(decoder, self.params, self.prompts[:rows])

    def spec(self, draft_steps: int, numerics: str = "guarded") -> DecodeSpec:
        """The program of a decoder."""
        return self.decoder(draft_steps, numerics).spec


def config_of(size: str) -> ModelConfig:
    """The config of a random model."""
    if size in _LARGE:
        return dataclasses.replace(preset(_LARGE[size]), max_positions=LONGEST)
    changes = {"name": f"random-{size}", **_CONFIGS[size]}
    return dataclasses.replace(preset("sdar-1m"), **changes)


def subject(size: str, equal_lengths: Callable[..., list[list[int]]]) -> Subject:
    """The subject of a size. Raises ValueError for a size that is unknown."""
    if size == "demo":
        loaded = common.load("sdar-1m")
        prompts = equal_lengths(loaded, 8)
        return Subject(size, loaded.config, loaded.params, prompts, 64, None)
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; use {', '.join(SIZES)}")
    config = config_of(size)
    prompts = [[(7 * i + 3 * row) % 64 for i in range(40)] for row in range(8)]
    room = {"135M": 16, "4B": 128, "8B": 128}.get(size, 32)
    dtype = jnp.bfloat16 if size in _LARGE else jnp.float32
    params = to_device_layout(transformer.init(config, 0, dtype), config)
    return Subject(size, config, params, prompts, room, ACCEPTANCE)

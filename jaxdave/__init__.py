"""jaxdave: lossless draft-and-verify decoding of diffusion language models in JAX.

Names are imported on first use, so that `jaxdave --help` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdave import decoding as decoding
    from jaxdave import drafting as drafting
    from jaxdave import policies as policies
    from jaxdave.core.config import ModelConfig as ModelConfig
    from jaxdave.core.draft_api import DraftedParams as DraftedParams
    from jaxdave.core.draft_api import DraftFn as DraftFn
    from jaxdave.engine.bitwise_check import SlotProbe as SlotProbe
    from jaxdave.engine.bitwise_check import slot_probe as slot_probe
    from jaxdave.engine.decode_config import DecodeConfig as DecodeConfig
    from jaxdave.engine.decode_config import LoadConfig as LoadConfig
    from jaxdave.engine.decoders import Decoder as Decoder
    from jaxdave.engine.decoders import freedave as freedave
    from jaxdave.engine.decoders import left_to_right as left_to_right
    from jaxdave.engine.decoders import make_decoder as make_decoder
    from jaxdave.engine.decoders import static as static
    from jaxdave.engine.decoders import threshold as threshold
    from jaxdave.engine.generation import generate as generate
    from jaxdave.engine.results import Completion as Completion
    from jaxdave.engine.results import Result as Result
    from jaxdave.engine.results import TextCompletion as TextCompletion
    from jaxdave.engine.sampler import Sampler as Sampler
    from jaxdave.engine.streaming import Snapshot as Snapshot
    from jaxdave.engine.streaming import StreamUpdate as StreamUpdate
    from jaxdave.engine.streaming import snapshots as snapshots
    from jaxdave.engine.streaming import stream as stream
    from jaxdave.io.checkpoint import Model as Model
    from jaxdave.io.checkpoint import load as load
    from jaxdave.io.checkpoint import save as save
    from jaxdave.models.presets import preset as preset

    __version__: str

_MODULES = ("decoding", "drafting", "policies")
_HOMES = {
    "core.config": ("ModelConfig",),
    "core.draft_api": ("DraftFn", "DraftedParams"),
    "engine.bitwise_check": ("SlotProbe", "slot_probe"),
    "engine.decode_config": ("DecodeConfig", "LoadConfig"),
    "engine.decoders": (
        "Decoder",
        "freedave",
        "left_to_right",
        "make_decoder",
        "static",
        "threshold",
    ),
    "engine.generation": ("generate",),
    "engine.streaming": ("Snapshot", "StreamUpdate", "snapshots", "stream"),
    "engine.results": ("Completion", "Result", "TextCompletion"),
    "engine.sampler": ("Sampler",),
    "io.checkpoint": ("Model", "load", "save"),
    "models.presets": ("preset",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _MODULES:
        return importlib.import_module(f"jaxdave.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'jaxdave' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxdave.{_HOME_OF[name]}"), name)


def _version() -> str:
    """The version of the installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jaxdave")
    except PackageNotFoundError:  # a source tree that is not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_MODULES, "__version__"})

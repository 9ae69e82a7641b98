"""jaxdave: lossless draft-and-verify decoding of diffusion language models in JAX.

Names are imported on first use, so that `jaxdave --help` does not wait for JAX.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdave import policies as policies
    from jaxdave import trees as trees
    from jaxdave.checkpoint import Model as Model
    from jaxdave.checkpoint import load as load
    from jaxdave.checkpoint import save as save
    from jaxdave.config import ModelConfig as ModelConfig
    from jaxdave.config import preset as preset
    from jaxdave.decoders import Decoder as Decoder
    from jaxdave.decoders import freedave as freedave
    from jaxdave.decoders import left_to_right as left_to_right
    from jaxdave.decoders import static as static
    from jaxdave.decoders import threshold as threshold
    from jaxdave.probe import Probe as Probe
    from jaxdave.probe import slot_probe as slot_probe
    from jaxdave.result import Result as Result
    from jaxdave.result import Row as Row
    from jaxdave.run import Update as Update
    from jaxdave.run import generate as generate
    from jaxdave.run import stream as stream

_MODULES = ("policies", "trees")
_HOMES = {
    "checkpoint": ("Model", "load", "save"),
    "config": ("ModelConfig", "preset"),
    "decoders": ("Decoder", "freedave", "left_to_right", "static", "threshold"),
    "probe": ("Probe", "slot_probe"),
    "result": ("Result", "Row"),
    "run": ("Update", "generate", "stream"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

try:
    __version__ = version("jaxdave")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"jaxdave.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'jaxdave' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxdave.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_MODULES})

"""jaxdave-convert: checkpoints of PyTorch diffusion language models for jaxdave.

Names are imported on first use, so that `jaxdave-convert --help` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdave_convert.back import export as export
    from jaxdave_convert.run import convert as convert

_HOMES = {"convert": "run", "export": "back"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdave_convert' has no attribute {name!r}")
    module = importlib.import_module(f"jaxdave_convert.{_HOMES[name]}")
    return getattr(module, name)

"""jaxdave-convert: PyTorch checkpoints of diffusion language models for jaxdave.

`convert` makes a folder that `jaxdave.load` reads directly onto its devices, `export`
makes the original checkpoint of it again. Names are imported on first use, so that
`jaxdave-convert --help` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdave_convert.conversion import convert as convert
    from jaxdave_convert.exporting import export as export

_MODULE_OF = {"convert": "conversion", "export": "exporting"}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'jaxdave_convert' has no attribute {name!r}")
    module = importlib.import_module(f"jaxdave_convert.{_MODULE_OF[name]}")
    return getattr(module, name)

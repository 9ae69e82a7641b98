"""The published protocols by name: what is asked, and how it is decoded.

`PRESETS` has each as it was meant; `open_preset(..., as_published=True)` is the paper's
with the defects of its evaluation, and takes the folder that examples are read from.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from jaxdave.eval.benchmarks import demo
from jaxdave.eval.protocols import chat, freedave
from jaxdave.eval.types import Preset

NAMES = (*freedave.NAMES, *chat.ASKED, "demo")


def open_preset(
    name: str, *, folder: Path | None = None, as_published: bool = False
) -> Preset:
    """A protocol. folder: where examples are read from, as for `Task.items`.

    as_published: with the defects of the paper's evaluation.
    Raises ValueError for an unknown name, and for a protocol without such a form.
    """
    if name not in NAMES:
        raise ValueError(f"preset {name!r} is unknown; use one of {', '.join(NAMES)}")
    check_published(name, as_published)
    if name == "demo":
        return demo.PRESETS["demo"]
    if name in freedave.NAMES:
        return Preset(
            name,
            functools.partial(freedave.prompt, name, as_published),
            functools.partial(freedave.settings, name, as_published),
            functools.partial(freedave.habits, name, as_published),
        )
    return Preset(
        name,
        functools.partial(chat.prompt, name, folder),
        functools.partial(chat.settings, name),
    )


def check_published(name: str, as_published: bool) -> None:
    """Raise ValueError where there is no published form beside the corrected one."""
    if as_published and name not in freedave.NAMES:
        raise ValueError(
            f"preset {name!r} has no published form of its own; leave --as-published "
            f"out, or use one of {', '.join(freedave.NAMES)}"
        )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {name: open_preset(name) for name in NAMES}
)

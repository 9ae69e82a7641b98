"""The published protocols by name.

`PRESETS` has each protocol in its corrected form. `open_preset(..., as_published=True)`
gives the paper's with the defects of its evaluation, and takes the folder that few-shot
examples are read from.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from jaxdave.eval import deviations
from jaxdave.eval.benchmarks import demo
from jaxdave.eval.deviations import check_published
from jaxdave.eval.protocols import chat, freedave
from jaxdave.eval.types import Preset

NAMES = (*deviations.PUBLISHED_NAMES, *chat.PROMPTS, "demo")


def open_preset(
    name: str, *, folder: Path | None = None, as_published: bool = False
) -> Preset:
    """Return a protocol by name.

    Example:
        >>> preset = open_preset("sdar")
        >>> preset.name
        'sdar'

    Args:
        name: One of `NAMES`.
        folder: Folder of the benchmark files that few-shot examples are read from, as
            for `Task.items`; None for the Hub.
        as_published: True for the defects of the paper's evaluation.

    Returns:
        The protocol.

    Raises:
        ValueError: The name is unknown, or the protocol has no published form.
    """
    if name not in NAMES:
        raise ValueError(f"preset {name!r} is unknown; use one of {', '.join(NAMES)}")
    check_published(name, as_published)
    if name == "demo":
        return demo.PRESETS["demo"]
    if name in deviations.PUBLISHED_NAMES:
        return Preset(
            name=name,
            prompt=functools.partial(freedave.prompt, name, as_published),
            settings=functools.partial(freedave.settings, name, as_published),
            deviations=functools.partial(freedave.deviations, name, as_published),
        )
    return Preset(
        name=name,
        prompt=functools.partial(chat.prompt, name, folder),
        settings=functools.partial(chat.settings, name),
    )


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {name: open_preset(name) for name in NAMES}
)
"""Every protocol in its corrected form, by name."""

"""`jaxdave demo`: static and FreeDave side by side on held-out problems."""

import dataclasses
import io
from pathlib import Path

from rich.console import Console

from jaxdave.cli import demo_measure, demo_view
from jaxdave.cli.demo_comparison import slowdown
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig

MAX_NEW_TOKENS = 128


def run(
    load: LoadConfig,
    config: DecodeConfig,
    count: int,
    speed: float | None = None,
    page: Path | None = None,
    console: Console | None = None,
) -> None:
    """Decode held-out problems both ways and show how that went.

    Args:
        load: The model.
        config: What decides the decode with drafts.
        count: How many problems; the first is shown token by token.
        speed: Of the view, 1 for the measured one; None: what the eye can follow.
        page: A file for the same as a web page; nothing moves on the terminal then.
        console: Where to print; None: stdout.

    Raises:
        ValueError: The model, a setting or the count is bad.
        OSError: The page cannot be written.
    """
    slowdown(speed, 1.0)  # refuse what is no speed before anything is decoded
    problems = demo_measure.select_problems(count)
    if page is not None:
        from jaxdave.runtime.files import check_replaceable

        page = check_replaceable(page, "html")
    from jaxdave.engine.sampler import Sampler
    from jaxdave.io import checkpoint

    console = console or Console(highlight=False)
    if console.options.ascii_only and isinstance(console.file, io.TextIOWrapper):
        # What a model writes need not be in the terminal's alphabet.
        console.file.reconfigure(errors="backslashreplace")
    with console.status("loading the model") as status:
        model = checkpoint.load(
            load.model, dtype=load.dtype, quantize=load.quantize, mesh=load.mesh
        )
        room = min(MAX_NEW_TOKENS, model.max_new_tokens)
        freedave = Sampler(model, dataclasses.replace(config, max_new_tokens=room))
        comparison = demo_measure.compare(
            model, freedave.undrafted(), freedave, problems, status.update
        )
    factor = slowdown(speed, comparison.seconds)
    is_live = page is None and console.is_terminal and not console.is_dumb_terminal
    demo_view.show(comparison, console, factor, is_live and console.file.isatty())
    if page is not None:
        from jaxdave.cli.demo_page import render_page
        from jaxdave.runtime.files import replace_file

        replace_file(page, render_page(comparison, factor).encode())
        console.print(f"wrote {page}", markup=False, soft_wrap=True)

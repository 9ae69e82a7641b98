"""The command: its options, its progress bar and what it prints."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import jaxdave
from jaxdave.cli.options import CONTEXT

if TYPE_CHECKING:
    from jaxdave_convert.plan import ConversionOptions, ConversionPlan


NAME = "jaxdave-convert"
app = typer.Typer(pretty_exceptions_enable=False, context_settings=CONTEXT)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"{NAME} {jaxdave.__version__}")
        raise typer.Exit


@app.command()
def convert(
    src: Annotated[str, typer.Argument(help="Folder or Hub id (owner/name).")],
    dst: Annotated[Path, typer.Argument(help="Folder to make.")],
    family: Annotated[
        str, typer.Option(help="A family such as sdar; auto: as the files say.")
    ] = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(help="bfloat16, float16 or float32; by default as stored."),
    ] = None,
    block_length: Annotated[
        int | None, typer.Option(help="Of the training; instead of config.json's.")
    ] = None,
    mask_id: Annotated[
        int | None,
        typer.Option(help="Of the mask token, if no file has it or two disagree."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, write nothing.")
    ] = False,
    verify: Annotated[
        int, typer.Option(help="Tensors to read back and compare bit by bit.")
    ] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a converted DST.")
    ] = False,
    export: Annotated[
        bool, typer.Option("--export", help="Back: from a converted SRC to PyTorch's.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            "-V",
            help="Print it.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Convert a PyTorch checkpoint of a diffusion language model for jaxdave."""
    from jaxdave_convert.plan import ConversionOptions

    if verify < 0:
        raise ValueError(f"verify={verify} must be at least 0; try 8")
    options = ConversionOptions(
        family=None if family == "auto" else family,
        dtype=dtype,
        block_length=block_length,
        mask_id=mask_id,
    )
    if export:
        if options != ConversionOptions() or dry_run or verify or overwrite:
            raise ValueError("--export takes no other option; leave the others out")
        return _export(Path(src), dst)
    _convert(src, dst, options, dry_run, verify, overwrite)


def _convert(
    src: str,
    dst: Path,
    options: "ConversionOptions",
    dry_run: bool,
    verify: int,
    overwrite: bool,
) -> None:
    """Plan a conversion, and carry it out under a progress bar."""
    from jaxdave_convert import conversion

    plan = conversion.make_plan(src, dst, options, overwrite)
    if dry_run:
        print(describe(plan))
        return
    with _progress_bar(plan.bytes_read) as on_progress:
        conversion.run_plan(
            plan,
            dst,
            overwrite=overwrite,
            verify_count=verify,
            on_progress=on_progress,
            on_message=_print_message,
        )
    verified = ""
    if verify:
        # No more than there are.
        total = len(plan.targets)
        verified = f", {min(verify, total)} of {total} tensors read back"
    print(f"{dst}: {_summary(plan)}{verified}")


def _export(src: Path, out: Path) -> None:
    """Export a converted folder under a progress bar."""
    from jaxdave_convert.exporting import export

    weights = src / "weights"
    total = sum(p.stat().st_size for p in weights.rglob("*") if p.is_file())
    with _progress_bar(total) as on_progress:
        export(src, out, on_progress)
    print(f"{out}: exported")


def describe(plan: "ConversionPlan") -> str:
    """Describe what a conversion would do, as `--dry-run` prints it.

    Args:
      plan: the conversion.

    Returns:
      A few lines of text.
    """
    c, source = plan.config, plan.source
    lines = [
        f"source    {source.name}, revision {source.revision or 'unknown'}",
        f"weights   {len(source.shards)} files, {plan.bytes_read / 1e9:.2f} GB",
        f"result    {_summary(plan)}, {plan.bytes_written / 1e9:.2f} GB",
        f"shape     {c.num_layers} layers, hidden {c.hidden}, heads {c.heads}/"
        f"{c.kv_heads} of {c.head_dim}, {c.vocab_size} tokens in {c.vocab_rows} rows",
        f"decoding  {c.attention} attention, block length {c.block_length}, "
        f"logits shift {c.logits_shift}, mask {c.mask_id}, pad {c.pad_id}, "
        f"stop {', '.join(map(str, c.stop_ids))}",
    ]
    return "\n".join(lines)


def _summary(plan: "ConversionPlan") -> str:
    return (
        f"{plan.family.name}, {len(plan.source.tensor_names)} tensors, "
        f"{plan.num_parameters:,} parameters, {plan.dtype}"
    )


def _print_message(message: str) -> None:
    print(f"{NAME}: {message}", file=sys.stderr)


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of bytes on stderr, where that is a terminal."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    bar = progress.Progress(
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total)

        def advance(num_bytes: int) -> None:
            bar.advance(task, num_bytes)

        yield advance

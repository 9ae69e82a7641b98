"""The commands and their options; what they do is in a module for each of them."""

from pathlib import Path
from typing import Annotated

import typer

import jaxdave
from jaxdave.cli.eval import evaluate
from jaxdave.cli.options import (
    BatchSize,
    Fields,
    NoCache,
    disable_cache,
    enable_jax_cache,
    expand_fields,
)
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig, check_batch_size

app = typer.Typer(
    help="Lossless draft-and-verify decoding of diffusion language models.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print it.")] = False,
) -> None:
    if version:
        print(f"jaxdave {jaxdave.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        return
    raise typer.Exit


@app.command()
@expand_fields
def generate(
    *,
    prompt: Annotated[str | None, typer.Argument(help="One user turn.")] = None,
    load: Annotated[LoadConfig, Fields(LoadConfig)],
    config: Annotated[DecodeConfig, Fields(DecodeConfig)],
    draft_text: Annotated[
        str | None, typer.Option(help="What the answer may look like; saves calls.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines: {"prompt": ...}, {"messages": [...]} '
            'or {"prompt_ids": [...]}, and "draft_text" or "template_args" beside it.'
        ),
    ] = None,
    template_arg: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for the chat template; may be repeated."),
    ] = None,
    batch_size: BatchSize = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a prompt.")
    ] = False,
    no_compile_cache: NoCache = False,
) -> None:
    """Answer a prompt, or every prompt of a file."""
    check_batch_size(batch_size)
    from jaxdave.cli import generate
    from jaxdave.cli.prompts import read_requests
    from jaxdave.io.chat_template import parse_template_args

    requests = read_requests(prompt, prompts, draft_text)
    template_args = parse_template_args(template_arg or ())
    disable_cache(no_compile_cache)
    generate.run(load, config, requests, template_args, batch_size, as_json)


@app.command()
@expand_fields
def demo(
    *,
    load: Annotated[LoadConfig, Fields(LoadConfig, ("model", "quantize"))],
    draft_steps: Annotated[int, typer.Option(help="States checked per call.")] = 8,
    problems: Annotated[int, typer.Option(help="How many, of both kinds.")] = 5,
    no_compile_cache: NoCache = False,
) -> None:
    """Decode held-out problems with static and FreeDave, side by side."""
    from jaxdave.cli import demo

    disable_cache(no_compile_cache)
    demo.run(load, DecodeConfig(draft_steps=draft_steps), problems)


@app.command()
@expand_fields
def calibrate(
    *,
    load: Annotated[LoadConfig, Fields(LoadConfig)],
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines as for generate; else the demo's training set."),
    ] = None,
    problems: Annotated[int, typer.Option(help="How many of the demo's.")] = 96,
    config: Annotated[
        DecodeConfig,
        Fields(DecodeConfig, ("cache", "block_length", "max_new_tokens")),
    ],
    batch_size: BatchSize = 8,
    no_compile_cache: NoCache = False,
) -> None:
    """Learn which drafts a model's answers need, and keep it beside the model."""
    check_batch_size(batch_size)
    from jaxdave.cli import calibrate

    enable_jax_cache(no_compile_cache)
    calibrate.run(load, config, prompts, problems, batch_size)


@app.command()
def policies() -> None:
    """List the policies, and which of them are lossless under drafts."""
    from rich.console import Console
    from rich.table import Table

    from jaxdave.policies.registry import listing

    table = Table("policy", "parameters", "what a step commits", "lossless")
    for entry in listing():
        values = ",".join(f"{key}={value}" for key, value in entry.parameters.items())
        lossless = "yes" if entry.lossless else "NO"
        table.add_row(entry.name, values, entry.summary, lossless)
    Console().print(table)


@app.command()
def drafts() -> None:
    """List the draft functions; none of them changes the text."""
    from rich.console import Console
    from rich.table import Table

    from jaxdave.drafting.registry import listing

    table = Table("draft", "what is drafted")
    for name, summary in listing().items():
        table.add_row(name, summary)
    Console().print(table)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder; a killed run resumes from it.")],
    recipe: Annotated[str, typer.Option(help="Name of the recipe.")] = "demo",
    steps: Annotated[int | None, typer.Option(help="The recipe's.")] = None,
    no_compile_cache: NoCache = False,
) -> None:
    """Train a small model and write it to OUT/model."""
    from jaxdave.cli import train as train_command

    enable_jax_cache(no_compile_cache)
    train_command.run(recipe, out, steps)


app.command("eval")(evaluate)

"""The commands and their options; what they do is in a module for each of them."""

import contextlib
import functools
from pathlib import Path
from typing import Annotated

import typer

import jaxdave
from jaxdave.cli.eval import evaluate
from jaxdave.cli.listing import Entry, print_entries
from jaxdave.cli.options import (
    CONTEXT,
    BatchSize,
    ConnectSeconds,
    Coordinator,
    Distributed,
    Fields,
    NoCache,
    NumProcesses,
    ProcessId,
    TemplateArgs,
    check_files,
    disable_cache,
    enable_jax_cache,
    expand_fields,
    process_config,
    ray_config,
)
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig, check_batch_size
from jaxdave.engine.samples import SampleConfig
from jaxdave.runtime.command_programs import preloaded

app = typer.Typer(
    help="Lossless draft-and-verify decoding of diffusion language models.",
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print it.")] = False,
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
    prompt: Annotated[
        str | None,
        typer.Argument(help="One user turn; -, or none: what is piped in."),
    ] = None,
    load: Annotated[LoadConfig, Fields(LoadConfig)],
    config: Annotated[DecodeConfig, Fields(DecodeConfig)],
    draft_text: Annotated[
        str | None, typer.Option(help="What the answer may look like; saves calls.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines: {"prompt": ...}, {"messages": [...]} '
            'or {"prompt_ids": [...]}, and beside it "draft_text", "template_args" or '
            '"stop"; '
            "-: from standard input."
        ),
    ] = None,
    template_arg: TemplateArgs = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help=r"Text before which the answer ends, with \n, \t and so on; may be "
            "repeated."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Answers to each prompt, which is evaluated once; sample 0 is the "
            "answer without this option."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Answers decoded together; by default those to one prompt."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object an answer.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the JSON objects to this file, which appears complete; until "
            "then they are in FILE.part."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where FILE.part ends.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Decode --prompts on a Ray cluster: local (started here), auto (that "
            "of this machine) or HOST:PORT."
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode under --ray: 1.")
    ] = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    connect_seconds: ConnectSeconds = 60,
    no_compile_cache: NoCache = False,
) -> None:
    """Answer a prompt, or every prompt of a file."""
    sampling = SampleConfig(count=samples, batch_size=batch_size)
    if resume and output is None:
        raise ValueError("--resume goes on with a file; name it by --output FILE")
    cluster = ray_config(ray, workers, prompts, output)
    joined = process_config(
        distributed, coordinator, num_processes, process_id, connect_seconds
    )
    if joined is not None:
        if cluster is not None:
            raise ValueError("--ray and --distributed exclude each other; choose one")
        check_files("--distributed", prompts, output)
    disable_cache(no_compile_cache)
    is_alone = cluster is None and joined is None
    programs = preloaded("generate", load, config, sampling)
    with programs if is_alone else contextlib.nullcontext():
        from jaxdave.cli import generate, generate_in_processes
        from jaxdave.cli.prompts import read_requests
        from jaxdave.engine.stop_strings import check_stops, unescape
        from jaxdave.io.chat_template import parse_template_args

        read = functools.partial(read_requests, prompt, prompts, draft_text)
        arguments = {
            "template_args": parse_template_args(template_arg or ()),
            "stops": check_stops([unescape(text) for text in stop or ()]),
            "samples": sampling,
            "output": output,
            "resume": resume,
        }
        if joined is not None:
            generate_in_processes.run(load, config, read, joined, **arguments)
        else:
            generate.run(
                load, config, read(), as_json=as_json, ray=cluster, **arguments
            )


@app.command()
@expand_fields
def chat(
    *,
    load: Annotated[LoadConfig, Fields(LoadConfig)],
    config: Annotated[DecodeConfig, Fields(DecodeConfig, leave_out=("record_steps",))],
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="JSON file: read at the start, written after every turn."),
    ] = None,
    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--no-live",
            help="Show the block that is being denoised; on a terminal by default.",
            show_default=False,
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Decode every turn with and without drafts."),
    ] = False,
    template_arg: TemplateArgs = None,
    no_compile_cache: NoCache = False,
) -> None:
    """Talk to a model; /help there lists the commands."""
    from jaxdave.cli.chat import command
    from jaxdave.io.chat_template import parse_template_args

    options = command.ChatOptions(
        system=system,
        history=history,
        is_live=live,
        is_compared=compare,
        template_args=parse_template_args(template_arg or ()),
    )
    disable_cache(no_compile_cache)
    raise typer.Exit(command.run(load, config, options))


@app.command()
@expand_fields
def demo(
    *,
    load: Annotated[LoadConfig, Fields(LoadConfig, ("model", "quantize", "mesh"))],
    config: Annotated[DecodeConfig, Fields(DecodeConfig, ("draft_steps",))],
    problems: Annotated[int, typer.Option(help="How many, of both kinds.")] = 5,
    speed: Annotated[
        float | None,
        typer.Option(
            help="Of the view: 1 as measured, 0.1 ten times slower; for the eye."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with a slider over the calls.")
    ] = None,
    no_compile_cache: NoCache = False,
) -> None:
    """Watch static and FreeDave answer a held-out problem, side by side."""
    from jaxdave.cli import demo

    disable_cache(no_compile_cache)
    demo.run(load, config, problems, speed, html)


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
        Fields(
            DecodeConfig,
            ("policy", "tokens_per_step", "cache", "block_length", "max_new_tokens"),
        ),
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
    from jaxdave.policies.registry import listing

    entries = []
    for entry in listing():
        values = ",".join(f"{key}={value}" for key, value in entry.parameters.items())
        entries.append(Entry(entry.name, values, entry.summary))
    print_entries(entries)
    print("\nUse one as --policy NAME or --policy NAME:key=value,key=value.")


@app.command()
def drafts() -> None:
    """List the draft functions; none of them changes the text."""
    from jaxdave.drafting.registry import listing

    print_entries([Entry(name, "", summary) for name, summary in listing().items()])


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder; a killed run resumes from it.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file of a run on data of your own.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Name of a demo model's recipe; default: demo.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="In place of the recipe's or the file's.")
    ] = None,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    connect_seconds: ConnectSeconds = 60,
    no_compile_cache: NoCache = False,
) -> None:
    """Train or fine-tune a model and write it to OUT/model."""
    from jaxdave.cli import train as train_command

    joined = process_config(
        distributed, coordinator, num_processes, process_id, connect_seconds
    )
    if config is not None and recipe is not None:
        raise ValueError("--config and --recipe exclude each other; choose one")
    if config is None and joined is not None:
        raise ValueError("--distributed needs --config; recipes train on one device")
    enable_jax_cache(no_compile_cache)
    if config is None:
        train_command.run_recipe(recipe or "demo", out, steps)
    else:
        train_command.run_config(config, out, steps, joined)


app.command("eval")(evaluate)

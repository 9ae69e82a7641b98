"""The command line: options in, one line on stderr and exit code 2 for bad input."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from jaxdave import __version__
from jaxdave.cli import eval
from jaxdave.cli import options as options
from jaxdave.cli.console import run_app
from jaxdave.cli.options import keep_compiled, keep_nothing
from jaxdave.engine.decode_config import METHODS, DecodeConfig

app = typer.Typer(
    help="Lossless draft-and-verify decoding of diffusion language models.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command line (by default this process's) and exit with its code."""
    sys.exit(run_app(app, "jaxdave", argv))


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print it.")] = False,
) -> None:
    if version:
        print(f"jaxdave {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        return
    raise typer.Exit


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="One user turn.")] = None,
    model: options.Model = None,
    method: Annotated[str, typer.Option(help=", ".join(METHODS))] = "freedave",
    draft_steps: Annotated[
        str, typer.Option(help="States checked per call, or auto: chosen call by call.")
    ] = "auto",
    tokens_per_step: Annotated[
        int | None, typer.Option(help="Tokens that one step of the policy commits: 1.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Commit all tokens this sure (0.9); with freedave as well."),
    ] = None,
    policy: options.Policy = None,
    cache: options.Cache = None,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance; 0 is off.")
    ] = 0.0,
    no_stop: Annotated[
        bool, typer.Option("--no-stop", help="Never predict an end token.")
    ] = False,
    stop_last: Annotated[
        bool,
        typer.Option(
            "--stop-last", help="End tokens are the least confident of a block."
        ),
    ] = False,
    draft: options.Draft = "tree",
    draft_text: Annotated[
        str | None, typer.Option(help="What the answer may look like; saves calls.")
    ] = None,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Allow policies that speculate unverified.")
    ] = False,
    block_length: options.BlockLength = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Room for the answer; the model's, or 256.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    seed: options.Seed = 0,
    dtype: options.Dtype = "float32",
    quantize: options.Quantize = None,
    numerics: options.Numerics = "guarded",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help='JSON lines: {"prompt": ...}, {"messages": [...]} '
            'or {"prompt_ids": [...]}, and "draft_text" if you like.'
        ),
    ] = None,
    batch_size: options.BatchSize = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a prompt.")
    ] = False,
    no_compile_cache: options.NoCache = False,
) -> None:
    """Answer a prompt, or every prompt of a file."""
    from jaxdave.cli import generate
    from jaxdave.cli.prompts import read_asked
    from jaxdave.engine import decode_config

    settings = DecodeConfig(
        model=model,
        method=method,
        draft_steps=decode_config.parse_draft_steps(draft_steps),
        tokens_per_step=tokens_per_step,
        threshold=threshold,
        policy=policy,
        cache=cache,
        guidance=guidance,
        no_stop=no_stop,
        stop_last=stop_last,
        lossy=lossy,
        draft=draft,
        block_length=block_length,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        dtype=dtype,
        quantize=quantize,
        numerics=numerics,
        batch_size=batch_size,
    )
    decode_config.check_config(settings)
    asked = read_asked(prompt, prompts, draft_text)
    keep_nothing(no_compile_cache)
    generate.run(settings, asked, as_json)


@app.command()
def demo(
    model: options.Model = None,
    draft_steps: Annotated[int, typer.Option(help="States checked per call.")] = 8,
    problems: Annotated[int, typer.Option(help="How many, of both kinds.")] = 5,
    quantize: options.Quantize = None,
    no_compile_cache: options.NoCache = False,
) -> None:
    """Decode held-out problems with static and FreeDave, side by side."""
    from jaxdave.cli import demo

    keep_nothing(no_compile_cache)
    demo.run(model, draft_steps, problems, quantize=quantize)


@app.command()
def calibrate(
    model: options.Model = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON lines as for generate; else the demo's training set."),
    ] = None,
    problems: Annotated[int, typer.Option(help="How many of the demo's.")] = 96,
    cache: options.Cache = None,
    block_length: options.BlockLength = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Room for the answer; the model's, or 256.")
    ] = None,
    dtype: options.Dtype = "float32",
    quantize: options.Quantize = None,
    batch_size: options.BatchSize = 8,
    no_compile_cache: options.NoCache = False,
) -> None:
    """Learn which drafts a model's answers need, and keep it beside the model."""
    from jaxdave.cli import calibrate

    settings = DecodeConfig(
        model=model,
        cache=cache,
        block_length=block_length,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        quantize=quantize,
        batch_size=batch_size,
    )
    keep_compiled(no_compile_cache)
    calibrate.run(settings, prompts, problems)


@app.command()
def policies() -> None:
    """List the policies, and which of them are lossless under drafts."""
    from jaxdave.cli import policies

    policies.run()


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder; a killed run resumes from it.")],
    recipe: Annotated[str, typer.Option(help="Name of the recipe.")] = "demo",
    steps: Annotated[int | None, typer.Option(help="The recipe's.")] = None,
    no_compile_cache: options.NoCache = False,
) -> None:
    """Train a small model and write it to OUT/model."""
    from jaxdave.cli import train as train_command

    keep_compiled(no_compile_cache)
    train_command.run(recipe, out, steps)


app.command("eval")(eval.evaluate)


if __name__ == "__main__":
    main()

"""`jaxdave eval`: its options; what it does is in `jaxdave.eval`."""

from pathlib import Path
from typing import Annotated

import typer

from jaxdave.cli import options as options


def evaluate(
    model: options.Model = None,
    tasks: Annotated[
        str,
        typer.Option(
            help="gsm8k, math500, aime2024, mbpp, humaneval, demo-math, demo-code; "
            "several with commas."
        ),
    ] = "demo-math,demo-code",
    methods: Annotated[
        str,
        typer.Option(help="static, threshold, freedave, freedave-threshold."),
    ] = "static,threshold,freedave",
    preset: Annotated[
        str | None,
        typer.Option(
            help="Protocol: paper-2025, paper-2025-thinking, dllm-rl, lm-eval-2026, "
            "sdar, llada, dream or demo; by default demo for the demo's tasks, else "
            "paper-2025."
        ),
    ] = None,
    as_published: Annotated[
        bool,
        typer.Option("--as-published", help="With the published harness's defects."),
    ] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the benchmark files.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="The first N items.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for items, tables and figures; a killed run resumes from it."
        ),
    ] = None,
    allow_code_execution: Annotated[
        bool,
        typer.Option(
            "--allow-code-execution", help="Run what the model writes (mbpp, ...)."
        ),
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Of the threshold methods; the preset's.")
    ] = None,
    draft_steps: Annotated[
        str | None, typer.Option(help="A number, or auto; the preset's.")
    ] = None,
    draft: options.Draft = "tree",
    policy: options.Policy = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="draft_steps: drafted methods at 1, 2, 4, ... 32 (Figure 3)."
        ),
    ] = None,
    trajectory: Annotated[
        str | None,
        typer.Option(
            help="Item whose positions are drawn against calls, e.g. demo-math-0."
        ),
    ] = None,
    block_length: options.BlockLength = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Room for the answer; the preset's.")
    ] = None,
    batch_size: options.BatchSize = 1,
    seed: options.Seed = 0,
    dtype: options.Dtype = "float32",
    quantize: options.Quantize = None,
    numerics: options.Numerics = "guarded",
    no_compile_cache: options.NoCache = False,
) -> None:
    """The paper's tables and figures: accuracy, tokens/s, tokens per call."""
    from jaxdave.eval.run.eval_config import Wanted, check

    wanted = Wanted(
        model=model,
        tasks=_names(tasks),
        methods=_names(methods),
        preset=preset,
        as_published=as_published,
        data_dir=data_dir,
        limit=limit,
        out=out,
        allow_code_execution=allow_code_execution,
        threshold=threshold,
        draft_steps=draft_steps,
        draft=draft,
        policy=policy,
        sweep=sweep,
        trajectory=trajectory,
        block_length=block_length,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
        quantize=quantize,
        numerics=numerics,
    )
    check(wanted)
    options.keep_nothing(no_compile_cache)
    from jaxdave.eval.run import command

    command.run(wanted)


def _names(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))

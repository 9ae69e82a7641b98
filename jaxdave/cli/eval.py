"""`jaxdave eval`: its options; what it does is in `jaxdave.eval`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdave.cli.options import (
    BatchSize,
    ConnectSeconds,
    Coordinator,
    Distributed,
    Fields,
    NoCache,
    NumProcesses,
    ProcessId,
    disable_cache,
    expand_fields,
    process_config,
)
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig

_OVERRIDES = Fields(
    DecodeConfig,
    names=(
        "threshold",
        "draft_steps",
        "draft",
        "policy",
        "block_length",
        "max_new_tokens",
        "no_early_exit",
        "seed",
        "numerics",
    ),
    unset={
        "threshold": "Of the threshold methods; the preset's.",
        "draft_steps": "A number, or auto; the preset's.",
        "block_length": "The model's.",
        "max_new_tokens": "Room for the answer; the preset's.",
    },
)


@expand_fields
def evaluate(
    *,
    load: Annotated[LoadConfig, Fields(LoadConfig)],
    tasks: Annotated[
        str | None,
        typer.Option(
            help="gsm8k, math500, aime2024, mbpp, humaneval, demo-math, demo-code; "
            "several with commas; by default demo-math,demo-code."
        ),
    ] = None,
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
    overrides: Annotated[dict[str, Any], _OVERRIDES],
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
    rescore: Annotated[
        Path | None,
        typer.Option(
            help="Grade the samples of an earlier run again (its --out folder, or one "
            "of the .jsonl files in it); nothing is decoded."
        ),
    ] = None,
    batch_size: BatchSize = 1,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    num_processes: NumProcesses = None,
    process_id: ProcessId = None,
    connect_seconds: ConnectSeconds = 60,
    no_compile_cache: NoCache = False,
) -> None:
    """The paper's tables and figures: accuracy, tokens/s, tokens per call."""
    from jaxdave.eval.run.eval_config import EvalConfig, check

    config = EvalConfig(
        load=load,
        overrides=overrides,
        tasks=_names(tasks) if tasks is not None else EvalConfig.tasks,
        methods=_names(methods),
        preset=preset,
        as_published=as_published,
        data_dir=data_dir,
        limit=limit,
        out=out,
        allow_code_execution=allow_code_execution,
        sweep=sweep,
        trajectory=trajectory,
        batch_size=batch_size,
        rescore=rescore,
        asked_tasks=None if tasks is None else _names(tasks),
    )
    check(config)
    joined = process_config(
        distributed, coordinator, num_processes, process_id, connect_seconds
    )
    if joined is not None and rescore is not None:
        raise ValueError("--rescore decodes nothing; leave --distributed out")
    disable_cache(no_compile_cache)
    from jaxdave.distributed.processes import ALONE, first_speaks, initialize
    from jaxdave.eval import command

    processes = ALONE if joined is None else initialize(joined)
    with first_speaks(processes):
        command.run(config, processes)


def _names(text: str) -> tuple[str, ...]:
    """Names between commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))

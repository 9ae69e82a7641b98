"""`jaxdave calibrate`: a table of draft trees beside a checkpoint."""

import dataclasses
from pathlib import Path

from jaxdave.cli.prompts import encode, read_requests
from jaxdave.engine.batching import check_room
from jaxdave.engine.decode_config import MAX_DRAFT_STEPS, DecodeConfig, LoadConfig

SEED = 0xCA11B
"""Of the training problems that the demo models are calibrated on."""


def run(
    load: LoadConfig,
    config: DecodeConfig,
    prompts: Path | None,
    problems: int,
    batch_size: int,
) -> None:
    """Decode prompts with static decoding and write what drafts should have been.

    Args:
        load: The model.
        config: Policy, cache rule, block length and room of the decodes that the trees
            are for.
        prompts: A file of JSON lines; None: problems of the demo's training stream.
        problems: How many of those.
        batch_size: Prompts decoded together.

    Raises:
        ValueError: The model, a setting or a prompt is bad.
    """
    if problems < 1:
        raise ValueError(f"problems={problems} must be at least 1; 96 is enough")
    requests = read_requests(None, prompts) if prompts is not None else None
    from rich.console import Console
    from rich.progress import Progress

    from jaxdave.demo_tasks.mixture import training_problem
    from jaxdave.drafting import tree_table
    from jaxdave.engine.calibration import calibrate
    from jaxdave.engine.decoders import make_decoder
    from jaxdave.io import checkpoint
    from jaxdave.policies.basic import static

    policy = config.make_policy()
    count = policy.tokens_per_step
    if count is None or policy != static(count):
        raise ValueError(
            f"policy {policy.name}: tables are for static, which commits "
            "a fixed number of best tokens a step; give --tokens-per-step, or decode "
            "with nested drafts, which need no table"
        )
    model = checkpoint.load(
        load.model,
        dtype=load.dtype,
        block_length=config.block_length,
        quantize=load.quantize,
        mesh=load.mesh,
    )
    room = config.max_new_tokens
    room = model.max_new_tokens if room is None else room
    # A block-causal window is as long as its drafts need; others are not.
    drafts = MAX_DRAFT_STEPS if model.config.attention != "full" else 2
    config = dataclasses.replace(config, max_new_tokens=room, draft_steps=drafts)
    decoder = make_decoder(model.config, config)
    if requests is None:
        texts = (training_problem(SEED, i).prompt for i in range(problems))
        ids = [model.codec.encode_prompt(text) for text in texts]
        # Before a progress bar is drawn.
        for prompt in ids:
            check_room(prompt, model, room)
    else:
        ids = [encode(request, model, room).ids for request in requests]
    batches = [ids[at : at + batch_size] for at in range(0, len(ids), batch_size)]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("prompts", total=len(ids))
        table = calibrate(
            decoder,
            model.params,
            batches,
            lambda n: progress.advance(task, n),
            count,
        )
    key = tree_table.table_key(model.config, config.block_length, config.cache, count)
    key = tree_table.quantized_key(key, load.quantize)
    tree_table.write_table(model.folder, key, table, model.config)
    print(
        f"wrote {model.folder / tree_table.TABLE_FILE} ({key}); "
        "use it with --draft tree"
    )

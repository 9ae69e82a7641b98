"""`jaxdave calibrate`: a table of draft trees beside a checkpoint."""

import dataclasses
from pathlib import Path

from jaxdave.cli.prompts import encode, read_asked
from jaxdave.engine.decode_config import DecodeConfig, check_config, make_decoder

SEED = 0xCA11B
"""Of the training problems that the demo models are calibrated on."""


def run(settings: DecodeConfig, prompts: Path | None, problems: int) -> None:
    """Decode prompts with static decoding and write what drafts should have been.

    prompts: JSON lines; None: so many problems of the demo models' training stream.
    Raises ValueError for bad settings and prompts.
    """
    check_config(settings)
    if problems < 1:
        raise ValueError(f"problems={problems} must be at least 1; 96 is enough")
    asked = read_asked(None, prompts) if prompts is not None else None
    from rich.console import Console
    from rich.progress import Progress

    from jaxdave.demo_tasks.mixture import training_problem
    from jaxdave.drafting import tree_table
    from jaxdave.engine.calibration import calibrate
    from jaxdave.engine.decoders import MAX_DRAFT_STEPS
    from jaxdave.io import checkpoint

    model = checkpoint.load(
        settings.model, dtype=settings.dtype, block_length=settings.block_length,
        quantize=settings.quantize,
    )  # fmt: skip
    room = settings.max_new_tokens or model.max_new_tokens
    # A block-causal window is as long as its drafts need; others are not.
    drafts = MAX_DRAFT_STEPS if model.config.attention == "block_causal" else 2
    settings = dataclasses.replace(settings, max_new_tokens=room, draft_steps=drafts)
    decoder = make_decoder(model.config, settings)
    if asked is None:
        texts = (training_problem(SEED, i).prompt for i in range(problems))
        ids = [model.codec.encode_prompt(text) for text in texts]
    else:
        ids = [encode(one, model, room) for one in asked]
    size = settings.batch_size
    batches = [ids[at : at + size] for at in range(0, len(ids), size)]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("prompts", total=len(ids))
        table = calibrate(
            decoder, model.params, batches, lambda n: progress.advance(task, n)
        )
    key = tree_table.table_key(model.config, settings.block_length, settings.cache)
    key = tree_table.quantized_key(key, settings.quantize)
    tree_table.write_table(model.folder, key, table)
    print(
        f"wrote {model.folder / tree_table.TABLE_FILE} ({key}); "
        "use it with --draft tree"
    )

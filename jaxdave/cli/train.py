"""`jaxdave train`: a recipe, or settings of one's own, to a checkpoint folder."""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from jaxdave.distributed.process_config import ProcessConfig

if TYPE_CHECKING:
    from jaxdave.training.recipes import Recipe


def run_config(
    path: Path, out: Path, steps: int | None, joined: ProcessConfig | None
) -> None:
    """Train, or resume, what a file says; the model goes to the folder `out`/model.

    Args:
        path: A TOML file (`train_config`).
        out: Where the state of the training goes.
        steps: Training steps; None: the file's.
        joined: The processes that train together; None: this one alone.

    Raises:
        ValueError: The file, its data or its model are bad, or another run writes to
            `out`.
    """
    from jaxdave.training.train_config import read_train_config

    config = read_train_config(path)
    if steps is not None:
        section = dataclasses.replace(config.train, steps=steps)
        config = dataclasses.replace(config, train=section)
    from jaxdave.distributed.processes import ALONE, first_speaks, initialize
    from jaxdave.runtime.locks import output_folder

    processes = ALONE if joined is None else initialize(joined)
    # All processes run every step together.
    processes = dataclasses.replace(processes, share_model=processes.count > 1)
    lock = output_folder(out) if processes.is_first else contextlib.nullcontext()
    with first_speaks(processes), lock:
        from jaxdave.training.supervised_run import train

        with processes.running():
            folder = train(config, out)
        if processes.is_first:
            print(f"wrote {folder}; try: jaxdave chat --model {folder}")


def run_recipe(name: str, out: Path, steps: int | None) -> None:
    """Train, or resume, a recipe; the model goes to the folder `out`/model.

    Args:
        name: The recipe's name.
        out: Where the state of the training goes.
        steps: Training steps; None: the recipe's.

    Raises:
        ValueError: The recipe is unknown, there is less than one step, or another run
            writes to `out`.
    """
    recipe = select_recipe(name, steps)
    from jaxdave.runtime.locks import output_folder

    # Taken before anything is looked at: an earlier run is resumed from there.
    with output_folder(out):
        _train(recipe, name, out)


def _train(recipe: "Recipe", name: str, out: Path) -> None:
    """Train, or resume, in a folder that is this run's alone."""
    from jaxdave.io import checkpoint
    from jaxdave.training.loop import train
    from jaxdave.training.tokenizer import MASK, build_tokenizer

    tokenizer = build_tokenizer(out / "tokenizer")
    config = recipe.config
    sizes = (tokenizer.get_vocab_size(), tokenizer.token_to_id(MASK))
    if sizes != (config.vocab_size, config.mask_id):
        raise ValueError(
            f"the tokenizer has (size, mask id) {sizes}, but the recipe {name!r} is "
            f"for {(config.vocab_size, config.mask_id)}; put these into the recipe"
        )
    state = train(recipe, tokenizer, out)
    folder = out / "model"
    checkpoint.save(
        folder,
        config,
        state.params,
        dtype="bfloat16",
        tokenizer=out / "tokenizer",
        max_new_tokens=recipe.max_new_tokens,
    )
    print(f"wrote {folder}; try: jaxdave demo --model {folder}")


def select_recipe(name: str, steps: int | None) -> "Recipe":
    """A recipe by name, with its number of steps changed.

    Args:
        name: The recipe's name.
        steps: Training steps; None: the recipe's.

    Returns:
        The recipe.

    Raises:
        ValueError: The recipe is unknown, or there is less than one step.
    """
    from jaxdave.training.recipes import RECIPES

    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown; use {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if steps is None:
        return recipe
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1; the recipe's is best")
    # A run too short for the recipe's phases still rises and falls.
    warmup = min(recipe.warmup_steps, steps // 2)
    decay = min(recipe.decay_steps, steps - warmup)
    return dataclasses.replace(
        recipe, steps=steps, warmup_steps=warmup, decay_steps=decay
    )

"""`jaxdave train`: a recipe from nothing to a checkpoint folder."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdave.training.recipes import Recipe


def run(name: str, out: Path, steps: int | None) -> None:
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

"""The training loop: resumable, with a progress bar and a loss curve in a file."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from rich.progress import Progress
from tokenizers import Tokenizer

from jaxdave.io import checkpoint
from jaxdave.models import transformer
from jaxdave.numerics.weight_layout import to_stacked
from jaxdave.runtime.files import replace_file
from jaxdave.training.block_batches import step_batches
from jaxdave.training.block_loss import make_loss
from jaxdave.training.canvas import canvas_loss, step_canvases
from jaxdave.training.recipes import Recipe
from jaxdave.training.warm_start import widen

# Who may see whom decides what a batch is and what is lost.
BATCHES = {"block_causal": step_batches, "full": step_canvases}
LOSSES = {"block_causal": make_loss, "full": canvas_loss}


class TrainState(NamedTuple):
    """Parameters, optimiser state and the losses of every step so far."""

    params: Any
    opt: Any
    curve: jax.Array


def optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """Muon on the matrices inside the layers, AdamW on everything else."""
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, recipe.rate, recipe.warmup),
            optax.constant_schedule(recipe.rate),
            optax.linear_schedule(recipe.rate, 0.0, recipe.decay),
        ],
        [recipe.warmup, recipe.steps - recipe.decay],
    )
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip),
        optax.contrib.muon(
            schedule,
            adam_b2=0.98,
            weight_decay=recipe.weight_decay,
            adam_weight_decay=recipe.weight_decay,
            muon_weight_dimension_numbers=_stacked_matrices,
            consistent_rms=0.2,
        ),
    )


def _stacked_matrices(params: Any) -> Any:
    """Muon's axes for [layer, in, out] kernels; None (Adam) for all other leaves."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree.map(lambda leaf: matrix if leaf.ndim == 3 else None, params)


def make_step(recipe: Recipe):
    """The jitted (state, step, batches) -> state of one optimiser step."""
    loss = LOSSES[recipe.config.attention](recipe.config)
    update = optimiser(recipe).update

    def mean_loss(params, batches):
        pairs = [loss(params, batch) for batch in batches.values()]
        return sum(p[0] for p in pairs) / sum(p[1] for p in pairs)

    def step(state: TrainState, index: jax.Array, batches) -> TrainState:
        value, grads = jax.value_and_grad(mean_loss)(state.params, batches)
        changes, opt = update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, changes)
        return TrainState(params, opt, state.curve.at[index].set(value))

    return jax.jit(step, donate_argnums=0)


def train(recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> TrainState:
    """Run (or resume) a recipe; checkpoints and `loss.csv` go to `folder`.

    Killed at any point, it resumes from its last checkpoint on the same loss curve.
    """
    manager = ocp.CheckpointManager(
        folder.absolute() / "checkpoints",
        options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True),
    )
    state = _fresh(recipe)
    begin = 0
    if (latest := manager.latest_step()) is not None:
        state, begin = _restore(manager, latest, state), latest
    step = make_step(recipe)
    with Progress() as progress:
        task = progress.add_task("training", total=recipe.steps, completed=begin)
        for index, batches in _prefetched(recipe, tokenizer, begin):
            state = step(state, jnp.asarray(index, jnp.int32), batches)
            done = index + 1
            if done % recipe.save_every == 0 or done == recipe.steps:
                curve = np.asarray(state.curve)[:done]
                saved = state._replace(curve=jnp.asarray(curve))
                manager.save(done, args=ocp.args.StandardSave(saved))
                manager.wait_until_finished()
                write_curve(folder / "loss.csv", curve)
            if done % 10 == 0:
                text = f"training, loss {float(state.curve[index]):.3f}"
                progress.update(task, completed=done, description=text)
    manager.close()
    return state


def write_curve(path: Path, curve: np.ndarray) -> None:
    """The loss of every step, as CSV."""
    lines = ["step,loss", *(f"{i + 1},{value:.6f}" for i, value in enumerate(curve))]
    replace_file(path, ("\n".join(lines) + "\n").encode())


def _fresh(recipe: Recipe) -> TrainState:
    if recipe.start is None:
        params = transformer.init(recipe.config, recipe.seed)
    else:
        params = widen(recipe.config, to_stacked(checkpoint.load(recipe.start).params))
    curve = jnp.zeros((recipe.steps,), jnp.float32)
    return TrainState(params, optimiser(recipe).init(params), curve)


def _restore(manager, step: int, like: TrainState) -> TrainState:
    """The checkpoint of `step`; its curve is as long as the run was then."""
    short = like._replace(curve=jnp.zeros((step,), jnp.float32))
    found = manager.restore(step, args=ocp.args.StandardRestore(short))
    curve = like.curve.at[:step].set(found.curve)
    return TrainState(found.params, found.opt, curve)


def _prefetched(recipe: Recipe, tokenizer: Tokenizer, begin: int) -> Iterator:
    """(step, batches) with the next batches made while the device works."""
    make = BATCHES[recipe.config.attention]
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, recipe, tokenizer, begin)
        for index in range(begin, recipe.steps):
            batches = ahead.result()
            if index + 1 < recipe.steps:
                ahead = pool.submit(make, recipe, tokenizer, index + 1)
            yield index, batches

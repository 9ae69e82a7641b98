"""The training loop: resumable, with a progress bar and a loss curve in a file."""

from collections.abc import Callable, Iterator
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
from jaxdave.runtime.interrupts import unbroken
from jaxdave.training.block_batches import make_block_batches
from jaxdave.training.block_loss import make_block_loss
from jaxdave.training.canvas import make_canvas_batches, make_canvas_loss
from jaxdave.training.recipes import Recipe
from jaxdave.training.warm_start import warm_start_params

# The kind of attention decides what a batch is and what its loss is.
BATCH_MAKERS = {"block_causal": make_block_batches, "full": make_canvas_batches}
LOSS_MAKERS = {"block_causal": make_block_loss, "full": make_canvas_loss}


class TrainState(NamedTuple):
    """What a training run changes from step to step.

    Attributes:
        params: Parameters, in the layout of `param_shapes`.
        opt: State of the optimiser.
        curve: float32 [steps], the loss of every step so far; 0 for those to come.
    """

    # The names of the fields are the keys of the checkpoints on disk: another name
    # would leave older runs without a way to resume.
    params: Any
    opt: Any
    curve: jax.Array


def make_optimiser(recipe: Recipe) -> optax.GradientTransformation:
    """Make the optimiser: Muon on the matrices of the layers, AdamW on all else.

    Args:
        recipe: The training run.

    Returns:
        The gradient transformation, with its learning-rate schedule.
    """
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, recipe.learning_rate, recipe.warmup_steps),
            optax.constant_schedule(recipe.learning_rate),
            optax.linear_schedule(recipe.learning_rate, 0.0, recipe.decay_steps),
        ],
        [recipe.warmup_steps, recipe.steps - recipe.decay_steps],
    )
    return optax.chain(
        optax.clip_by_global_norm(recipe.max_grad_norm),
        optax.contrib.muon(
            schedule,
            adam_b2=0.98,
            weight_decay=recipe.weight_decay,
            adam_weight_decay=recipe.weight_decay,
            muon_weight_dimension_numbers=_muon_dimension_numbers,
            # Muon's updates get the size of Adam's, so that one rate suits both.
            consistent_rms=0.2,
        ),
    )


def _muon_dimension_numbers(params: Any) -> Any:
    """Muon's axes for [layer, in, out] kernels; None (Adam) for all other leaves."""
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree.map(lambda leaf: matrix if leaf.ndim == 3 else None, params)


def make_train_step(recipe: Recipe) -> Callable[..., TrainState]:
    """Make the compiled function of one optimiser step.

    Args:
        recipe: The training run.

    Returns:
        A jitted function (state, index, batches) -> state. index: int32 scalar, the
        step's index. batches: what the recipe's function of `BATCH_MAKERS` returned.
        The state that is passed in is donated and must not be used again.
    """
    loss = LOSS_MAKERS[recipe.config.attention](recipe.config)
    update = make_optimiser(recipe).update

    def mean_loss(params, batches):
        # Over the tokens of all groups together, not the mean of the groups' means.
        sums = [loss(params, batch) for batch in batches.values()]
        return sum(s[0] for s in sums) / sum(s[1] for s in sums)

    def step(state: TrainState, index: jax.Array, batches) -> TrainState:
        value, grads = jax.value_and_grad(mean_loss)(state.params, batches)
        updates, opt = update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        # The curve stays on the device, so that no step waits for the loss before it.
        return TrainState(params, opt, state.curve.at[index].set(value))

    return jax.jit(step, donate_argnums=0)


def train(recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> TrainState:
    """Runs, or resumes, a recipe.

    A run that was killed at any point resumes from its last checkpoint, to the same
    parameters and the same loss curve as without the kill.

    Args:
        recipe: The training run.
        tokenizer: The demo's tokenizer (`build_tokenizer`).
        folder: Where checkpoints and `loss.csv` are written, and looked for.

    Returns:
        The state after the last step.

    Example:
        The run that the packaged `sdar-1m` comes from:

            folder = Path("run")
            tokenizer = build_tokenizer(folder / "tokenizer")
            state = train(RECIPES["demo"], tokenizer, folder)
    """
    manager = ocp.CheckpointManager(
        folder.absolute() / "checkpoints",
        options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True),
    )
    state = _initial_state(recipe)
    begin = 0
    if (latest := manager.latest_step()) is not None:
        state, begin = _restore(manager, latest, state), latest
    train_step = make_train_step(recipe)
    with Progress() as progress:
        task = progress.add_task("training", total=recipe.steps, completed=begin)
        for index, batches in _prefetch_batches(recipe, tokenizer, begin):
            state = train_step(state, jnp.asarray(index, jnp.int32), batches)
            done = index + 1
            if done % recipe.save_every == 0 or done == recipe.steps:
                # Without the steps to come, whose number may change before a resume.
                curve = np.asarray(state.curve)[:done]
                saved = state._replace(curve=jnp.asarray(curve))
                with unbroken(f"the checkpoint of step {done}"):
                    manager.save(done, args=ocp.args.StandardSave(saved))
                    manager.wait_until_finished()
                    write_curve(folder / "loss.csv", curve)
            if done % 10 == 0:
                text = f"training, loss {float(state.curve[index]):.3f}"
                progress.update(task, completed=done, description=text)
    manager.close()
    return state


def write_curve(path: Path, curve: np.ndarray) -> None:
    """Write the loss of every step as CSV.

    Args:
        path: The file; it is replaced as a whole.
        curve: float32 [steps].
    """
    lines = ["step,loss", *(f"{i + 1},{value:.6f}" for i, value in enumerate(curve))]
    replace_file(path, ("\n".join(lines) + "\n").encode())


def _initial_state(recipe: Recipe) -> TrainState:
    """The state before the first step."""
    if recipe.init_from is None:
        params = transformer.init(recipe.config, recipe.seed)
    else:
        source = to_stacked(checkpoint.load(recipe.init_from).params)
        params = warm_start_params(recipe.config, source)
    curve = jnp.zeros((recipe.steps,), jnp.float32)
    return TrainState(params, make_optimiser(recipe).init(params), curve)


def _restore(
    manager: ocp.CheckpointManager, step: int, state: TrainState
) -> TrainState:
    """The checkpoint of `step`, in the shapes of `state`.

    The curve of a checkpoint is as long as the run was then.
    """
    template = state._replace(curve=jnp.zeros((step,), jnp.float32))
    # orbax returns the same type that it is asked for, and is annotated otherwise.
    restored: Any = manager.restore(step, args=ocp.args.StandardRestore(template))
    curve = state.curve.at[:step].set(restored.curve)
    return TrainState(restored.params, restored.opt, curve)


def _prefetch_batches(
    recipe: Recipe, tokenizer: Tokenizer, begin: int
) -> Iterator[tuple[int, dict]]:
    """Yield (step, batches), making the next batches while the device works."""
    make_batches = BATCH_MAKERS[recipe.config.attention]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(make_batches, recipe, tokenizer, begin)
        for index in range(begin, recipe.steps):
            batches = future.result()
            if index + 1 < recipe.steps:
                future = pool.submit(make_batches, recipe, tokenizer, index + 1)
            yield index, batches

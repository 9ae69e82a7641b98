"""A supervised run from its settings: model, data and loss put together, and trained.

The run's folder holds `settings.json`, checkpoints, metrics and, at the end, `model`
(and `adapters`, where adapters were trained).
"""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

import jax

from jaxdave.core.host_arrays import fetch_arrays
from jaxdave.io.peft_io import save_adapters
from jaxdave.models.presets import preset
from jaxdave.runtime.files import read_json, replace_file
from jaxdave.runtime.meshes import check_processes, make_mesh
from jaxdave.training.data.batch_config import BatchConfig
from jaxdave.training.data.data_stream import BatchStream, open_batches
from jaxdave.training.data.token_batch import TokenBatch
from jaxdave.training.lora import init_adapters, join_lora, merge_lora
from jaxdave.training.objective.objective_loss import make_objective_loss
from jaxdave.training.objective.objectives import Objective, check_model
from jaxdave.training.optimisers import make_optimiser, make_schedule
from jaxdave.training.starting_point import (
    Opening,
    StartingPoint,
    from_model,
    from_scratch,
)
from jaxdave.training.supervised import SupervisedSteps
from jaxdave.training.train_config import SCRATCH, ModelSection, TrainConfig
from jaxdave.training.trainer import fit
from jaxdave.training.training_mesh import TrainingMesh
from jaxdave.training.update import JoinFn, cast_floats, init_state

_LOGGER = logging.getLogger("jaxdave")
SETTINGS = "settings.json"
MODEL, ADAPTERS = "model", "adapters"
_MAY_CHANGE = {
    "train": ("steps", "save_every", "keep", "log_every", "validate_every", "mesh"),
    "data": ("prefetch", "validation"),
    "model": ("dtype", "max_new_tokens"),
}
"""Settings that a run may be continued with other values of."""


def train(config: TrainConfig, out: Path) -> Path:
    """Train, or go on with a training.

    Args:
        config: The settings.
        out: The run's folder. All processes must see it.

    Returns:
        The folder of the model that came out.

    Raises:
        ValueError: Settings, data or model do not fit each other, the folder is of
            another run, or what `trainer.fit` raises.

    Example:
        Fine-tune the demo model on a file of questions and answers:

            config = read_train_config(Path("train.toml"))
            folder = train(config, Path("run"))
            model = jaxdave.load(folder)
    """
    check_settings(config, out)
    start = open_start(config.model, config.train.seed)
    objective = config.objective(start.config)
    check_model(objective, start.config)
    mesh = open_mesh(config, start)
    stream, validation = open_data(config, start, objective)
    optimiser = make_optimiser(config.optimiser, config.train.steps)
    loss = make_objective_loss(
        start.config,
        objective,
        config.train.columns_at_once,
        remat=config.train.remat,
        expert_balance=config.train.expert_balance,
    )
    params, frozen, join = _split(config, start, mesh)
    steps = SupervisedSteps(
        loss,
        optimiser,
        config.train.update,
        stream,
        schedule=make_schedule(config.optimiser, config.train.steps),
        mesh=mesh,
        join=join,
        frozen=frozen,
        validation=validation,
    )
    has_average = config.train.ema_decay is not None
    state = init_state(params, optimiser, config.train.seed, ema=has_average)
    try:
        write_settings(config, out)
        state = fit(steps, mesh.put_state(state), out, config.train.loop)
    finally:
        stream.close()
    _report_skips(stream)
    trained = state.params if state.ema is None else state.ema
    write_model(config, start, trained, out)
    return out / MODEL


def write_model(
    config: TrainConfig, start: StartingPoint, trained: Any, out: Path
) -> None:
    """Write the model that came out, and its adapters where they were trained.

    Args:
        config: The settings.
        start: The model that training has started from.
        trained: Parameters, or adapters.
        out: The run's folder.

    Raises:
        ValueError: The folder of the model has other files.
    """
    if (lora := config.lora) is not None:
        trained = fetch_arrays(trained)  # all processes take part in that
        if jax.process_index() == 0:
            save_adapters(out / ADAPTERS, start.config, trained, lora)
        trained = merge_lora(join_lora(trained, start.params, lora))
    limit = config.model.max_new_tokens or start.max_new_tokens
    start = dataclasses.replace(start, max_new_tokens=limit)
    start.save(out / MODEL, trained, dtype=config.model.dtype)


def _split(
    config: TrainConfig, start: StartingPoint, mesh: TrainingMesh
) -> tuple[Any, Any, JoinFn | None]:
    """What is trained, what is not, and how they are put together."""
    if config.lora is None:
        return start.params, None, None
    frozen = mesh.put_params(cast_floats(start.params, config.train.dtype))
    join = functools.partial(join_lora, lora=config.lora)
    return init_adapters(start.config, config.lora), frozen, join


def open_start(section: ModelSection, seed: int) -> StartingPoint:
    """Read, or draw, the model that training starts from.

    Args:
        section: The settings.
        seed: Of random parameters.

    Returns:
        The start, in float32.

    Raises:
        ValueError: There is no such model, or settings do not fit it.
    """
    if section.start == SCRATCH:
        assert section.preset is not None
        changes = {}
        if section.block_length is not None:
            changes["block_length"] = section.block_length
        config = preset(section.preset, **changes)
        return from_scratch(
            config, tokenizer=section.tokenizer or section.preset, seed=seed
        )
    if section.attention is None:
        return from_model(section.start, block_length=section.block_length)
    opening = Opening(
        attention=section.attention,
        block_length=section.block_length,
        shift=section.shift,
        mask_token=section.mask_token,
    )
    return from_model(section.start, opening=opening)


def open_mesh(config: TrainConfig, start: StartingPoint) -> TrainingMesh:
    """Open the devices, and check that rows can be dealt out.

    Args:
        config: The settings.
        start: The model.

    Returns:
        Where training runs.

    Raises:
        ValueError: There are too few devices, or rows do not divide.
    """
    shape = config.train.mesh_shape
    mesh = TrainingMesh()
    if shape is not None:
        devices = make_mesh(shape)
        check_processes(devices)
        mesh = TrainingMesh(devices, start.config)
    elif jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes train one model together; set mesh to "
            f"all their devices, such as mesh = 'data={jax.device_count()}'"
        )
    mesh.check_batch(config.train.batch_size, config.train.accumulate)
    return mesh


def open_data(
    config: TrainConfig, start: StartingPoint, objective: Objective
) -> tuple[BatchStream, list[TokenBatch]]:
    """Open what is trained on, and read what is held out.

    Args:
        config: The settings.
        start: The model, whose tokenizer encodes.
        objective: What rows have to look like.

    Returns:
        The stream of batches, and all batches of the held-out files.

    Raises:
        ValueError: A file or a setting is bad; names it.
    """
    data, codec = config.data, start.open_codec()
    is_blocks = objective.block_length is not None
    padding: Any = data.end_padding or ("block" if is_blocks else "none")
    is_anchored = objective.answer_start is not None
    settings = BatchConfig(
        batch_size=config.train.batch_size,
        length=data.length,
        pad_id=start.config.pad_id,
        seed=config.train.seed,
        shuffle=data.shuffle,
        packing=data.packing or ("one" if is_anchored or padding == "row" else "pack"),
        answer_start=objective.answer_start,
        end_padding=padding,
        block_length=objective.block_length if padding == "block" else None,
        too_long=data.too_long,
        prefetch=data.prefetch,
    )
    if start.config.max_positions < data.length:
        raise ValueError(
            f"length={data.length} is more than the {start.config.max_positions} "
            f"positions of {start.config.name}; lower it"
        )
    paths = [Path(name) for name in data.files]
    chat = data.chat_template
    stream = open_batches(paths, codec, settings, chat_template=chat)
    if not data.validation:
        return stream, []
    held_out = dataclasses.replace(settings, epochs=1, shuffle=False, prefetch=0)
    names = [Path(name) for name in data.validation]
    batches = open_batches(names, codec, held_out, chat_template=chat)
    return stream, list(batches)


def check_settings(config: TrainConfig, out: Path) -> None:
    """Refuse to go on with a run under other settings.

    Args:
        config: The settings.
        out: The run's folder.

    Raises:
        ValueError: It was begun with another value; names it.
    """
    before = read_json(out / SETTINGS, optional=True)
    now = _to_json(config)
    for section, values in now.items():
        earlier = before.get(section, values)
        if not isinstance(values, dict) or not isinstance(earlier, dict):
            _check_same(out, section, section, earlier, values)
            continue
        for key, value in values.items():
            if key not in _MAY_CHANGE.get(section, ()):
                _check_same(out, section, key, earlier.get(key, value), value)


def write_settings(config: TrainConfig, out: Path) -> None:
    """Write the settings of a run into its folder, for those who find it.

    Args:
        config: The settings.
        out: The run's folder.
    """
    if jax.process_index() == 0:
        text = json.dumps(_to_json(config), indent=2) + "\n"
        replace_file(out / SETTINGS, text.encode())


def _check_same(out: Path, section: str, key: str, before: Any, now: Any) -> None:
    if before != now:
        raise ValueError(
            f"{out} holds a run with {key} = {before!r} in [{section}], and this one "
            f"has {now!r}; set it back to go on, or train in another folder"
        )


def _to_json(config: TrainConfig) -> dict[str, Any]:
    """The settings as JSON has them."""
    record = dataclasses.asdict(config)
    record["objective"] = {
        "name": record.pop("objective_name"),
        **record.pop("objective_settings"),
    }
    return json.loads(json.dumps(record))


def _report_skips(stream: BatchStream) -> None:
    """Say what was left out."""
    skipped = stream.skipped
    if skipped.count:
        first = "; ".join(skipped.messages)
        _LOGGER.warning("%d samples were left out: %s", skipped.count, first)

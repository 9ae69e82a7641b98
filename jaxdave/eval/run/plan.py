"""Every decode of an evaluation, checked before the first item is decoded."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax

import jaxdave
from jaxdave.core.config import Numerics
from jaxdave.engine import autotune
from jaxdave.engine.batching import check_room
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import make_decoder
from jaxdave.eval.run import records
from jaxdave.eval.run.cells import (
    EvalCell,
    PromptedItem,
    ReportCell,
    encode_item,
    read_finished,
)
from jaxdave.eval.run.eval_config import (
    SWEEP,
    EvalConfig,
    decode_config,
    methods_of,
    preset_of,
    tasks_of,
)
from jaxdave.eval.run.methods import DEFAULT_THRESHOLD, Method
from jaxdave.eval.types import Preset, Task
from jaxdave.io.checkpoint import Model


def cells(config: EvalConfig, model: Model) -> tuple[EvalCell, ...]:
    """Every row of the tables.

    Args:
        config: What is to be run.
        model: The model.

    Returns:
        The rows, in their order.

    Raises:
        ValueError: Data, prompts, settings or records of another run would fail later.
    """
    preset, weights = preset_of(config), _weights_digest(model)
    rows = tuple(
        _cell(config, model, preset, task, method, settings, entries, weights)
        for task in tasks_of(config)
        for entries in [_entries(config, model, preset, task)]
        for method, settings in _chosen(config, model, preset, task)
    )
    for cell in rows:
        read_finished(cell)
    if config.trajectory is not None:
        drawn_task(config.trajectory, rows)
    return rows


def drawn_task(item: str, rows: Sequence[ReportCell]) -> Task:
    """The first benchmark that has an item.

    Args:
        item: The item's id.
        rows: Rows of the tables.

    Returns:
        The benchmark.

    Raises:
        ValueError: None has the item.
    """
    for cell in rows:
        if item in cell.item_ids:
            return cell.task
    raise ValueError(
        f"trajectory={item!r} is no item of this run; one is {rows[0].item_ids[0]!r}"
    )


def _entries(
    config: EvalConfig, model: Model, preset: Preset, task: Task
) -> tuple[PromptedItem, ...]:
    """The items with their prompts."""
    family, items = model.config.family, task.items(config.data_dir)[: config.limit]
    room = _settings(config, model, preset, task)[0].max_new_tokens
    assert room is not None
    entries = []
    for index, item in enumerate(items):
        prompt = preset.prompt(family, task, item)
        one = encode_item(model.codec, task, item, index, prompt)
        try:
            check_room(one.prompt, model, room)
        except ValueError as error:
            raise ValueError(
                f"{task.name}, item {item.id}: {error} (--max-new-tokens)"
            ) from error
        entries.append(one)
    return tuple(entries)


def _settings(
    config: EvalConfig, model: Model, preset: Preset, task: Task, base: str = "static"
) -> tuple[DecodeConfig, float]:
    """What all methods of a base share, and the threshold of those that have one."""
    family = model.config.family
    of_base = preset.deviations(family, task).method_settings.get(base, {})
    fields = {**preset.settings(family, task), **of_base}
    threshold = fields.pop("threshold", DEFAULT_THRESHOLD)
    shared = decode_config(config, {"max_new_tokens": model.max_new_tokens, **fields})
    override = config.overrides.get("threshold")
    return shared, threshold if override is None else override


def _chosen(
    config: EvalConfig, model: Model, preset: Preset, task: Task
) -> Iterator[tuple[Method, DecodeConfig]]:
    """Methods and their settings; under a sweep drafted ones at every length."""
    for method in methods_of(config):
        shared, threshold = _settings(config, model, preset, task, method.base)
        settings = method.choose(shared, threshold)
        swept = SWEEP if config.sweep is not None and method.drafted else ()
        for steps in swept or (settings.draft_steps,):
            yield method, dataclasses.replace(settings, draft_steps=steps)


def _cell(
    config: EvalConfig,
    model: Model,
    preset: Preset,
    task: Task,
    method: Method,
    settings: DecodeConfig,
    entries: tuple[PromptedItem, ...],
    weights: str,
) -> EvalCell:
    deviations = preset.deviations(model.config.family, task)
    policy = deviations.wrap_policy(settings, settings.make_policy())
    decoder = make_decoder(
        deviations.adapt_model(model.config),
        settings.with_policy(policy),
        tables=model.tables,
    )
    steps = f".d{settings.draft_steps}" if method.drafted else ""
    name = f"{model.name}.{task.name}.{method.name}{steps}.jsonl".replace("/", "_")
    fields = {
        "format": records.FORMAT,
        "jaxdave": jaxdave.__version__,
        "jax": jax.__version__,
        "device": jax.local_devices()[0].device_kind,
        "task": task.name,
        "preset": preset.name,
        "as_published": config.as_published,
        "row": method.name,
        **settings.to_dict(),
        **config.load.to_dict(),
        "batch_size": config.batch_size,
        "model": model.name,
        "weights": weights,
    }
    # No preset suppresses ids, and older files do not name them.
    del fields["suppressed_ids"]
    if not (method.drafted or decoder.numerics is Numerics.EXACT):
        # What is not in force must not make two runs differ.
        fields |= {"draft_steps": 1, "draft": "none"}
    fields["numerics"] = str(decoder.numerics)
    return EvalCell(
        task=task,
        method=method,
        settings=settings,
        decoder=decoder,
        entries=entries,
        path=None if config.out is None else config.out / name,
        header=_as_json(fields),
        extract_output=deviations.extract_output,
        batch_size=config.batch_size,
    )


def _weights_digest(model: Model) -> str:
    """A digest of what decides text and calls beside the settings."""
    facts = repr((model.config, sorted(model.tables.items()))).encode()
    digest = hashlib.sha256(facts)
    for values in autotune.sample_weights(model.params):
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def _as_json(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))

"""All that a command line wants decoded, checked before the first item is."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax

import jaxdave
from jaxdave.engine import autotune
from jaxdave.engine.batching import check_room
from jaxdave.engine.decode_config import DecodeConfig, make_decoder
from jaxdave.eval.run import records
from jaxdave.eval.run.cells import (
    EvalCell,
    PromptedItem,
    encode_item,
    read_finished,
)
from jaxdave.eval.run.eval_config import (
    SWEEP,
    Wanted,
    methods_of,
    preset_of,
    settings,
    tasks_of,
)
from jaxdave.eval.run.methods import THRESHOLD, Method
from jaxdave.eval.types import Preset, Task
from jaxdave.io.checkpoint import Model


def cells(wanted: Wanted, model: Model) -> tuple[EvalCell, ...]:
    """Every row of the tables, in their order.

    Raises ValueError for whatever would go wrong later: data, prompts, settings, and
    records of another run.
    """
    preset, of_weights = preset_of(wanted), _weights(model)
    made = tuple(
        _cell(wanted, model, preset, task, method, chosen, entries, of_weights)
        for task in tasks_of(wanted)
        for entries in [_entries(wanted, model, preset, task)]
        for method, chosen in _chosen(wanted, model, preset, task)
    )
    for cell in made:
        read_finished(cell)
    if wanted.trajectory is not None:
        drawn_task(wanted.trajectory, made)
    return made


def drawn_task(item: str, made: Sequence[EvalCell]) -> Task:
    """The first task that has an item. Raises ValueError where none has."""
    for cell in made:
        if any(one.item.id == item for one in cell.entries):
            return cell.task
    raise ValueError(
        f"trajectory={item!r} is no item of this run; one is "
        f"{made[0].entries[0].item.id!r}"
    )


def _entries(
    w: Wanted, model: Model, preset: Preset, task: Task
) -> tuple[PromptedItem, ...]:
    """The items as they are asked."""
    family, items = model.config.family, task.items(w.data_dir)[: w.limit]
    room = _settings(w, model, preset, task)[0].max_new_tokens
    found = []
    for index, item in enumerate(items):
        asked = preset.prompt(family, task, item)
        one = encode_item(model.codec, task, item, index, asked)
        assert room is not None
        try:
            check_room(one.prompt, model, room)
        except ValueError as error:
            raise ValueError(
                f"{task.name}, item {item.id}: {error} (--max-new-tokens)"
            ) from error
        found.append(one)
    return tuple(found)


def _settings(
    w: Wanted, model: Model, preset: Preset, task: Task, base: str = "static"
) -> tuple[DecodeConfig, float]:
    """What all methods of a base share, and the threshold of those that have one."""
    family = model.config.family
    own = preset.deviations(family, task).method_settings.get(base, {})
    given = {**preset.settings(family, task), **own}
    said = given.pop("threshold", THRESHOLD)
    made = settings(w, {"max_new_tokens": model.max_new_tokens, **given})
    return made, said if w.threshold is None else w.threshold


def _chosen(
    w: Wanted, model: Model, preset: Preset, task: Task
) -> Iterator[tuple[Method, DecodeConfig]]:
    """Methods and their settings; under a sweep drafted ones at every length."""
    for method in methods_of(w):
        common, threshold = _settings(w, model, preset, task, method.base)
        chosen = method.choose(common, threshold)
        swept = SWEEP if w.sweep is not None and method.drafted else ()
        for steps in swept or (chosen.draft_steps,):
            yield method, dataclasses.replace(chosen, draft_steps=steps)


def _cell(
    w: Wanted, model, preset, task, method, chosen, entries, of_weights
) -> EvalCell:
    deviations = preset.deviations(model.config.family, task)
    decoder = make_decoder(
        deviations.adapt_model(model.config),
        chosen,
        model.tables,
        wrap=deviations.wrap_policy,
    )
    said = {**dataclasses.asdict(chosen), "model": model.name, "weights": of_weights}
    if not (method.drafted or decoder.numerics == "exact"):
        # What is not in force must not make two runs differ.
        said |= {"draft_steps": 1, "draft": "none"}
    header = _plain(
        {
            "format": records.FORMAT,
            "jaxdave": jaxdave.__version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "task": task.name,
            "preset": preset.name,
            "as_published": w.as_published,
            "row": method.name,
            **said,
            "numerics": decoder.numerics,
        }
    )
    steps = f".d{chosen.draft_steps}" if method.drafted else ""
    name = f"{model.name}.{task.name}.{method.name}{steps}.jsonl".replace("/", "_")
    path = None if w.out is None else w.out / name
    return EvalCell(
        task, method, chosen, decoder, entries, path, header, deviations.extract_output
    )


def _weights(model: Model) -> str:
    """A digest of what decides the text and the calls beside the settings."""
    facts = repr((model.config, sorted(model.tables.items()))).encode()
    digest = hashlib.sha256(facts)
    for some in autotune.sample_weights(model.params):
        digest.update(some.tobytes())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))

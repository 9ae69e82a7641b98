"""`jaxdave generate --ray`: prompts checked here, decoded by workers, written here."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxdave.cli.progress import startup_spinner
from jaxdave.cli.prompts import Request, encode
from jaxdave.cli.written_answers import answer_settings, write_answers
from jaxdave.distributed.ray_config import RayConfig
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.engine.samples import SampleConfig
from jaxdave.runtime.phases import begin_phase


def run(
    load: LoadConfig,
    config: DecodeConfig,
    requests: Sequence[Request],
    *,
    template_args: Mapping[str, Any],
    stops: Sequence[str],
    samples: SampleConfig,
    output: Path,
    ray: RayConfig,
) -> None:
    """Decode prompts on a cluster; every prompt is checked before the first is decoded.

    This process reads no weights, and is the only one that writes.

    Args:
        load: The model.
        config: What decides the decode.
        requests: The prompts.
        template_args: What the chat template reads beside the messages.
        stops: Texts before which an answer ends.
        samples: Answers to each prompt, and how many are decoded together.
        output: Where the answers go.
        ray: The cluster.

    Raises:
        ValueError: The model, a setting or a prompt is bad, Ray is not installed, the
            cluster cannot be reached, or a worker cannot decode.
    """
    from jaxdave.distributed.ray_answers import RayWork, decode_on_ray
    from jaxdave.distributed.ray_cluster import connected, import_ray
    from jaxdave.engine.decoders import make_decoder
    from jaxdave.io import checkpoint

    import_ray()
    with startup_spinner() as stop_spinner:
        model = checkpoint.describe(
            load.model, block_length=config.block_length, quantize=load.quantize
        )
        codec = model.codec.with_template_args(**template_args)
        model = dataclasses.replace(model, codec=codec)
        room = config.max_new_tokens
        room = model.max_new_tokens if room is None else room
        encoded = [encode(request, model, room) for request in requests]
        prompts = samples.expand(encoded)
        # What does not fit the model is refused here, before there is a cluster.
        fitted = dataclasses.replace(config, max_new_tokens=room)
        decoder = make_decoder(model.config, fitted, tables=model.tables)
        samples.check(decoder.spec)
        begin_phase("connecting to Ray")
        work = RayWork(
            load=_on_any_host(load, model),
            config=config,
            stops=tuple(stops),
            samples=samples,
            workers=ray.workers,
        )
        with connected(ray) as module:
            stop_spinner()
            write_answers(
                output,
                answer_settings(load, config, template_args, stops, requests, samples),
                prompts,
                lambda rest: decode_on_ray(module, work, rest),
                samples,
            )


def _on_any_host(load: LoadConfig, model: Any) -> LoadConfig:
    """The model by a name that does not depend on the working folder."""
    is_folder = load.model is not None and Path(load.model).expanduser().is_dir()
    return dataclasses.replace(load, model=str(model.folder)) if is_folder else load

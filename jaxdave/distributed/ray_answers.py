"""Prompts in, answers out, by the workers of a Ray cluster.

Ray starts a worker that has died again and gives its batch to a worker once more. The
answers are the same ones then, as they depend on nothing but the prompt and its number.
"""

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import jaxdave
from jaxdave.distributed.ray_cluster import ACCELERATORS, worker_resources
from jaxdave.distributed.ray_decoder import RayDecoder
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.engine.prompt_batches import EncodedPrompt, has_draft_texts
from jaxdave.engine.samples import ONE_ANSWER, SampleConfig
from jaxdave.runtime.mesh_shape import parse_mesh
from jaxdave.runtime.messages import one_line

LOGGER = logging.getLogger("jaxdave")
MAX_ATTEMPTS = 4
"""Workers that may die of a batch before the run gives up."""
MAX_BLOCKS = 10_000
"""Blocks that Ray Data is given at most. A block is what a dead worker decodes anew."""

_OWN_ERROR = re.compile(r"(ValueError|OSError): (?P<message>.+)")
_BARS = ("enable_progress_bars", "enable_operator_progress_bars")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayWork:
    """What every worker is told.

    Attributes:
        load: The model; a folder must be on every host.
        config: What decides the decode.
        stops: Stop strings of all prompts.
        samples: Answers to each prompt, and how many are decoded together.
        workers: Processes that decode.
    """

    load: LoadConfig
    config: DecodeConfig
    stops: tuple[str, ...] = ()
    samples: SampleConfig = ONE_ANSWER
    workers: int = 1


def decode_on_ray(
    ray: Any, work: RayWork, prompts: Sequence[EncodedPrompt]
) -> Iterator[dict[str, Any]]:
    """Decode prompts on the cluster that this process is connected to.

    Args:
        ray: The module, as `ray_cluster.connected` gives it.
        work: What the workers are told.
        prompts: The prompts, each with a number of its own.

    Yields:
        `TextCompletion.to_dict` of every answer, in the order in which they come.

    Raises:
        ValueError: A worker cannot decode, or has died too often.
    """
    if not prompts:
        return
    resources = _worker_resources(ray, work.load)
    reads_drafts = has_draft_texts(prompts)
    counter = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(
        _AttemptCounter
    ).remote()
    arguments = {
        "load": work.load,
        "config": work.config,
        "stop": work.stops,
        "reads_drafts": reads_drafts,
        "samples": work.samples,
        "counter": counter,
        "version": jaxdave.__version__,
    }
    with _without_bars(ray):
        answers = ray.data.from_arrow(
            _blocks(prompts, work.samples.rows, reads_drafts)
        ).map_batches(
            _CountedDecoder,
            fn_constructor_kwargs=arguments,
            batch_size=work.samples.rows,
            compute=ray.data.ActorPoolStrategy(size=work.workers),
            **resources,
        )
        try:
            for table in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
                _warn_of_deaths(table, work.samples)
                for answer in table["answer"].to_pylist():
                    yield json.loads(answer)
        except Exception as error:  # Ray wraps what a worker raises in several ways
            raise _worker_error(error) from error


def _worker_resources(ray: Any, load: LoadConfig) -> dict[str, Any]:
    """What Ray sets aside for a worker; refuses what it would wait for in vain."""
    count = 1 if load.mesh is None else parse_mesh(load.mesh).num_devices
    cluster = ray.cluster_resources()
    for name in ACCELERATORS:
        if 0 < cluster.get(name, 0) < count:
            raise ValueError(
                f"mesh={load.mesh!r} needs {count} devices and the cluster has "
                f"{cluster[name]:.0f} ({name}); ask for fewer"
            )
    return worker_resources(cluster, count)


class _AttemptCounter:
    """An actor that counts how often each batch was begun."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def begin(self, request: int) -> int:
        """Count an attempt at the batch whose first prompt has this number."""
        self._counts[request] = self._counts.get(request, 0) + 1
        return self._counts[request]


class _CountedDecoder(RayDecoder):
    """A decoder that refuses a batch of which too many workers have died."""

    def __init__(
        self,
        *,
        counter: Any,
        version: str,
        samples: SampleConfig = ONE_ANSWER,
        **arguments: Any,
    ) -> None:
        if jaxdave.__version__ != version:
            raise ValueError(
                f"a worker has jaxdave {jaxdave.__version__} and this machine has "
                f"{version}; install the same on all hosts"
            )
        super().__init__(group_size=samples.group_size, **arguments)
        self._counter, self._samples = counter, samples

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        import ray

        first = int(batch["request"][0])
        attempt: Any = ray.get(self._counter.begin.remote(first))
        if attempt > MAX_ATTEMPTS:
            raise ValueError(
                f"{MAX_ATTEMPTS} workers have died at the batch that begins with "
                f"prompt {self._samples.index_of(first)}, perhaps for want of memory; "
                "try a smaller --batch-size, and go on with --resume"
            )
        answers = super().__call__(batch)["answer"]
        size = len(answers)
        return {"answer": answers, "first": [first] * size, "attempt": [attempt] * size}


def _blocks(
    prompts: Sequence[EncodedPrompt], batch_size: int, reads_drafts: bool
) -> list[Any]:
    """Prompts as tables of whole batches."""
    import pyarrow as pa

    batches = -(-len(prompts) // batch_size)
    size = batch_size * -(-batches // MAX_BLOCKS)
    has_stops = any(prompt.stops for prompt in prompts)
    tables = []
    for at in range(0, len(prompts), size):
        block = prompts[at : at + size]
        columns = {
            "request": pa.array([one.request for one in block], pa.int64()),
            "prompt_ids": pa.array(
                [np.asarray(one.ids, np.int32) for one in block], pa.list_(pa.int32())
            ),
        }
        if reads_drafts:
            columns["draft_text"] = pa.array(
                [one.draft_text for one in block], pa.string()
            )
        if has_stops:
            columns["stop"] = pa.array(
                [list(one.stops) for one in block], pa.list_(pa.string())
            )
        tables.append(pa.table(columns))
    return tables


@contextlib.contextmanager
def _without_bars(ray: Any) -> Iterator[None]:
    """No progress bars of Ray Data's; the caller has its own."""
    context = ray.data.DataContext.get_current()
    before = {name: getattr(context, name) for name in _BARS}
    try:
        for name in _BARS:
            setattr(context, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _warn_of_deaths(table: Any, samples: SampleConfig) -> None:
    """Say which batches were decoded again."""
    rows = zip(table["first"].to_pylist(), table["attempt"].to_pylist(), strict=True)
    for first, attempt in dict.fromkeys(rows):
        if attempt > 1:
            LOGGER.warning(
                "the batch that begins with prompt %d was decoded again, as its worker "
                "had died",
                samples.index_of(first),
            )


def _worker_error(error: BaseException) -> ValueError:
    """What a worker has raised, without what Ray has wrapped it in."""
    # However it is wrapped, the last line is the worker's error, or Ray's own.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    own = _OWN_ERROR.fullmatch(lines[-1].strip())
    if own is not None:
        return ValueError(own["message"])
    return ValueError(f"the Ray workers cannot go on: {one_line(lines[-1])[:300]}")

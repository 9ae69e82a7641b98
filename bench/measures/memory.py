"""M7, M8: what a compiled decode needs beside its weights, and what compiling costs."""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile

import jax

from bench import startup
from bench.decode import compiled_by
from bench.harness import common
from bench.harness.machine import query_tokens
from bench.harness.measure import Book, Plan
from bench.harness.models import Subject
from jaxdave.core.config import ModelConfig
from jaxdave.models import transformer
from jaxdave.numerics.weight_layout import to_device_layout

_FROM, _TO = 1, 8
_STARTS = 3
"""Processes that are started each way; one takes seconds."""
IMPORT = "import jax; jax.devices()"


def used(bench) -> dict[str, int]:
    """Bytes of a decode loop: temporaries, and outputs that are not its own inputs."""
    found = bench.memory()
    alias = found.alias_size_in_bytes
    return {
        "temp": found.temp_size_in_bytes,
        "output": found.output_size_in_bytes,
        "fresh": found.temp_size_in_bytes + found.output_size_in_bytes - alias,
    }


def memory(subject: Subject, plan: Plan, book: Book) -> None:
    """M7: growth with d, and with sequence length and vocabulary."""
    drafts = sorted({point["d"] for point in book.points.get("drafts", ())
                     if point["model"] == subject.name} | {_FROM, _TO})  # fmt: skip
    found = {}
    for d in drafts:
        bench = subject.bench(d, numerics=plan.numerics)
        bench.result()
        found[d] = used(bench)
        book.add("memory", model=subject.name, d=d, **found[d])
    grown = found[_TO]["fresh"] - found[_FROM]["fresh"]
    what = f"KB more at d={_TO} than at d={_FROM}; aim: K/V, activations, a chunk"
    most = allowed(subject, _TO)
    book.at_most("M7", subject.label, what, grown / 1e3, round(most / 1e3, 1))


def allowed(subject: Subject, d: int) -> int:
    """Bytes of K/V and activations of a call's tokens, and of one head chunk."""
    c, spec = subject.config, subject.spec(d)
    tokens = query_tokens(spec)
    kv = 2 * c.num_layers * c.kv_heads * c.head_dim
    layer = 4 * c.hidden + (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.inter
    reads = spec.num_states * spec.layout.block_length + spec.layout.window_length
    return 4 * (tokens * (kv + layer) + reads * spec.model.head_chunk)


def dependence(subject: Subject, plan: Plan, book: Book) -> None:
    """M7: the same model at a longer bucket, and with more vocabulary."""
    base = subject.bench(_TO, numerics=plan.numerics)
    base.result()
    longer = dataclasses.replace(subject, prompts=[subject.prompts[0] * 12])
    # A head of one chunk is not cut; of two, XLA unrolls the loop.
    small, wide, wider = (
        _changed(subject, vocab_rows=rows, vocab_size=rows)
        for rows in (8192, 32768, 65536)
    )
    plain = used(base)["fresh"]
    for what, before, after in (
        ("KB more at a bucket 8 times longer", None, longer),
        ("KB more at vocabulary 32768 than at 8192 (one head chunk)", small, wide),
        ("KB more at vocabulary 65536 than at 32768", wide, wider),
    ):
        sizes = [plain]
        for one in (before, after):
            if one is not None:
                bench = one.bench(_TO, numerics=plan.numerics)
                bench.result()
                sizes.append(used(bench)["fresh"])
        book.at_most("M7", subject.label, what, (sizes[-1] - sizes[-2]) / 1e3, 1.0)


def compiling(subject: Subject, plan: Plan, book: Book) -> None:
    """M8: recompilation, growth with layers."""
    bench = subject.bench(_TO, numerics=plan.numerics)
    again = compiled_by(bench, [subject.prompts[0][::-1]])
    what = "compilations of a second prompt of the bucket"
    book.at_most("M8", subject.label, what, float(again), 0.0)
    seconds = []
    for layers in (4, 8):
        one = _changed(subject, num_layers=layers, max_positions=8192 + layers)
        seconds.append(one.bench(_TO, numerics=plan.numerics).result().compile_seconds)
        book.add("compile", model=subject.name, layers=layers, seconds=seconds[-1])
    ratio = seconds[1] / seconds[0]
    book.at_most("M8", subject.label, "compile time, 8 layers over 4", ratio, 1.1)


def warm_start(subject: Subject, plan: Plan, book: Book) -> None:
    """M8: `jaxdave generate` with a warm cache, less importing jax."""
    own = []
    with tempfile.TemporaryDirectory() as cache:
        startup.once(cache, "generate", startup.PROMPT)
        for _ in range(min(plan.rounds, _STARTS)):
            bare = common.seconds(_import_jax)
            own.append(startup.once(cache, "generate", startup.PROMPT) - bare)
    what = "seconds of a warm `jaxdave generate` beyond importing jax"
    book.at_most("M8", subject.label, what, statistics.median(own), 0.5)


def _import_jax() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True, env=os.environ.copy())


def _changed(subject: Subject, **changes) -> Subject:
    """The subject with another config, and random weights of it."""
    config: ModelConfig = dataclasses.replace(subject.config, **changes)
    params = jax.block_until_ready(
        to_device_layout(transformer.init(config, 0), config)
    )
    return dataclasses.replace(subject, config=config, params=params)

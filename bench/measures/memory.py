"""What a compiled decode needs beside its weights, and what compiling it costs."""

import dataclasses
import statistics
import tempfile

import jax

from bench import startup
from bench.decode import count_compilations
from bench.harness.machine import query_tokens
from bench.harness.measure import (
    COMPILE_TIME,
    DECODE_MEMORY,
    WARM_START,
    Plan,
    ResultsBook,
)
from bench.harness.models import BenchModel
from bench.harness.network_only import DecodeBench
from jaxdave.core.config import ModelConfig
from jaxdave.models import transformer
from jaxdave.numerics.weight_layout import to_device_layout

_SHORT, _LONG = 1, 8
"""Draft lengths between which memory may grow by what the drafts' tokens need."""

_MAX_STARTS = 3
"""Processes started each way for warm-start; one takes seconds."""


def loop_memory(bench: DecodeBench) -> dict[str, int]:
    """Read the memory of a decode loop that has been run.

    Args:
        bench: the decode.

    Returns:
        Bytes of "temp" (temporaries), "output", and "fresh": temporaries and outputs
        that do not reuse the memory of donated inputs.
    """
    stats = bench.memory()
    aliased = stats.alias_size_in_bytes
    return {
        "temp": stats.temp_size_in_bytes,
        "output": stats.output_size_in_bytes,
        "fresh": stats.temp_size_in_bytes + stats.output_size_in_bytes - aliased,
    }


def measure_draft_memory(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take decode-memory: growth with the draft length.

    Args:
        model: the model.
        plan: the numerics.
        book: gets the finding and the points "memory"; draft lengths that it has points
            "drafts" of are measured, too.
    """
    timed_lengths = {
        point["d"]
        for point in book.points.get("drafts", ())
        if point["model"] == model.name
    }
    memory = {}
    for d in sorted(timed_lengths | {_SHORT, _LONG}):
        memory[d] = _decode_and_read(model, d, plan)
        book.add_point("memory", model=model.name, d=d, **memory[d])
    growth = memory[_LONG]["fresh"] - memory[_SHORT]["fresh"]
    what = f"KB more at d={_LONG} than at d={_SHORT}; aim: K/V, activations, a chunk"
    target = round(draft_memory_bound(model, _LONG) / 1e3, 1)
    book.add_at_most(DECODE_MEMORY, model.label, what, growth / 1e3, target)


def draft_memory_bound(model: BenchModel, draft_steps: int) -> int:
    """Compute what the drafts of a call may need.

    Args:
        model: the model.
        draft_steps: drafts of the call.

    Returns:
        Bytes of the keys, values and activations of its tokens, and of the logits of
        one head chunk, all in float32.
    """
    c, spec = model.config, model.spec(draft_steps)
    tokens = query_tokens(spec)
    kv = 2 * c.num_layers * c.kv_heads * c.head_dim
    layer = 4 * c.hidden + (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.inter
    reads = spec.num_states * spec.layout.block_length + spec.layout.window_length
    return 4 * (tokens * (kv + layer) + reads * spec.model.head_chunk)


def measure_memory_growth(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take decode-memory: growth with sequence length and vocabulary, best none.

    Args:
        model: the model; variants of it get random weights.
        plan: the numerics.
        book: gets the findings.
    """
    base = _decode_and_read(model, _LONG, plan)["fresh"]
    longer = dataclasses.replace(model, prompts=[model.prompts[0] * 12])
    longer_growth = _decode_and_read(longer, _LONG, plan)["fresh"] - base
    what = "KB more at a bucket 8 times longer"
    book.add_at_most(DECODE_MEMORY, model.label, what, longer_growth / 1e3, 1.0)
    # A head of one chunk is not cut; of two, XLA unrolls the loop.
    sizes = {
        rows: _decode_and_read(
            _with_config(model, vocab_rows=rows, vocab_size=rows), _LONG, plan
        )["fresh"]
        for rows in (8192, 32768, 65536)
    }
    for what, before, after in (
        ("KB more at vocabulary 32768 than at 8192 (one head chunk)", 8192, 32768),
        ("KB more at vocabulary 65536 than at 32768", 32768, 65536),
    ):
        growth = sizes[after] - sizes[before]
        book.add_at_most(DECODE_MEMORY, model.label, what, growth / 1e3, 1.0)


def measure_compile_time(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take compile-time: recompilation in a bucket, and growth with the layers.

    Args:
        model: the model; variants of it get random weights.
        plan: the numerics.
        book: gets the findings and the points "compile".
    """
    bench = model.bench(_LONG, numerics=plan.numerics)
    compilations = count_compilations(bench, [model.prompts[0][::-1]])
    what = "compilations of a second prompt of the bucket"
    book.add_at_most(COMPILE_TIME, model.label, what, float(compilations), 0.0)
    seconds = []
    for layers in (4, 8):
        # Another max_positions: a variant equal to the model would be compiled already.
        variant = _with_config(
            model, num_layers=layers, max_positions=8192 + layers
        ).bench(_LONG, numerics=plan.numerics)
        seconds.append(variant.decode().compile_seconds)
        book.add_point("compile", model=model.name, layers=layers, seconds=seconds[-1])
    ratio = seconds[1] / seconds[0]
    what = "compile time, 8 layers over 4"
    book.add_at_most(COMPILE_TIME, model.label, what, ratio, 1.1)


def measure_warm_start(model: BenchModel, plan: Plan, book: ResultsBook) -> None:
    """Take warm-start: `jaxdave generate` with a warm cache, less importing jax.

    Args:
        model: the demo model.
        plan: rounds, of which at most three are run.
        book: gets the finding.
    """
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        startup.time_command(cache, "generate", startup.PROMPT)
        for _ in range(min(plan.rounds, _MAX_STARTS)):
            import_seconds = startup.run_python(startup.IMPORT_JAX)
            command_seconds = startup.time_command(cache, "generate", startup.PROMPT)
            seconds.append(command_seconds - import_seconds)
    what = "seconds of a warm `jaxdave generate` beyond importing jax"
    book.add_at_most(WARM_START, model.label, what, statistics.median(seconds), 0.6)


def _decode_and_read(model: BenchModel, d: int, plan: Plan) -> dict[str, int]:
    """The memory of the decode loop of one draft length."""
    bench = model.bench(d, numerics=plan.numerics)
    bench.decode()
    return loop_memory(bench)


def _with_config(model: BenchModel, **changes) -> BenchModel:
    """The model with another config, and random weights of it."""
    config: ModelConfig = dataclasses.replace(model.config, **changes)
    params = jax.block_until_ready(
        to_device_layout(transformer.init(config, 0), config)
    )
    return dataclasses.replace(model, config=config, params=params)

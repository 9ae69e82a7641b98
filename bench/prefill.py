"""The prefill of a prompt one token past a power of two, against one token less.

    python -m bench.prefill [--rounds 12] [--lengths 64 128] [--cpu]

Shapes are padded to powers of two so that few programs serve all lengths; a prompt that
has just missed one should not pay for the padding. Random models of 30M parameters, one
row, float32: a block-causal one, and one under full attention without a cache, whose
prefill is what every call is: the evaluation of the whole row, prompt and room.
Prompts end at each length, and where prompt and window together fill its bucket.

Times are printed, never asserted. With --cpu they are seconds of all cores, which say
more where other processes run.
"""

import dataclasses
from typing import Any

import numpy as np

from bench.harness import report, timing
from bench.harness.models import random_config
from bench.harness.network_only import DecodeBench
from jaxdave.core.config import ModelConfig
from jaxdave.engine.batching import pack_prompts
from jaxdave.engine.decoders import Decoder, freedave
from jaxdave.models import transformer
from jaxdave.numerics.weight_layout import to_device_layout

TARGET = 1.15
"""Of the time, at most."""
ROOM = 64
"""New tokens."""


def make_decoder(config: ModelConfig, cache: str | None) -> Decoder:
    """Build the decoder that is measured, without drafts.

    Args:
        config: the model.
        cache: its cache rule; None for a block-causal model.

    Returns:
        The decoder.
    """
    return freedave(config, draft_steps=1, max_new_tokens=ROOM, cache=cache)


def measure_edge(
    decoder: Decoder, params: Any, length: int, rounds: int, cpu: bool
) -> dict[str, Any]:
    """Time the prefills of prompts of a length and of one token more.

    Args:
        decoder: the decoder.
        params: the model's parameters.
        length: tokens of the shorter prompt.
        rounds: alternating rounds.
        cpu: time in seconds of all cores.

    Returns:
        A row of the table.
    """
    time_one = timing.time_cores if cpu else timing.time_call
    prompts = [[(7 * i) % 64 for i in range(size)] for size in (length, length + 1)]
    benches = [DecodeBench(decoder, params, [prompt]) for prompt in prompts]
    times = timing.time_alternately(
        [lambda one=one: time_one(one.prefill) for one in benches], rounds
    )
    ratio = timing.median_with_interval(times[:, 1] / times[:, 0])
    buckets = [pack_prompts(decoder, [prompt])[1] for prompt in prompts]
    return {
        "tokens": f"{length} and {length + 1}",
        "buckets": " and ".join(map(str, buckets)),
        "ms": " and ".join(f"{1e3 * one:.1f}" for one in np.median(times, 0)),
        "ratio": str(ratio),
        "target": f"{TARGET} {'met' if ratio.median <= TARGET else 'missed'}",
    }


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="alternating repeats")
    parser.add_argument("--cpu", action="store_true", help="seconds of all cores")
    parser.add_argument("--lengths", type=int, nargs="*", default=[64, 128])
    args = parser.parse_args()
    results = report.start_report("random")
    block_causal = random_config("30M")
    full = dataclasses.replace(
        block_causal, attention="full", block_length=32, qk_norm=False, kv_heads=8
    )
    table = []
    for name, config, cache in (
        ("block-causal", block_causal, None),
        ("full, none", full, "none"),
    ):
        params = to_device_layout(transformer.init(config, 0), config)
        decoder = make_decoder(config, cache)
        window = decoder.spec.layout.window_length
        edges = [*args.lengths, *(2 * length - window for length in args.lengths)]
        table += [
            {"attention": name}
            | measure_edge(decoder, params, edge, args.rounds, args.cpu)
            for edge in sorted(set(edges))
        ]
    results.add_table("Prefills one token past an edge, median [95 %]", table)
    results.finish(args.out)


if __name__ == "__main__":
    main()

"""Loop efficiency: the share of a decode that is the network, and FreeDave over static.

    python -m bench.decode [--draft-steps 8] [--rounds 15] [--regret 2 4 8]

    efficiency = (verify calls x one bare call + the bare prefill) / wall of generate

The parts are those of bench/harness/network_only.py; the wall time is that of all of
`generate` on the host's clock. The prompts of a batch have one length. Under `exact` a
row that has ended is skipped, so a round counts by its live rows; otherwise every row
is computed in every round. A part and the decode are timed in the same alternating
rounds.

Asserts that a second prompt of a bucket compiles nothing. Times are printed, never
asserted.
"""

from collections import defaultdict
from typing import Any

import jax
import numpy as np

from bench.harness import report, timing
from bench.harness.loading import LoadedModel, load_model
from bench.harness.network_only import DecodeBench
from jaxdave.core.config import Numerics
from jaxdave.demo_tasks import problem_sets
from jaxdave.engine import generation
from jaxdave.engine.decoders import NUMERICS, freedave, static

TARGETS = {1: 0.85, 8: 0.95}
"""Target for the efficiency by batch size."""

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def measure_efficiency(
    name: str, bench: DecodeBench, rounds: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure the efficiency of a decoder, and where its time goes.

    Args:
        name: name of the decoder in the tables.
        bench: the decode.
        rounds: alternating rounds.

    Returns:
        A row of the table of efficiencies, and one of the table of times.
    """
    verify = [row.nfe.verify for row in bench.decode().completions]
    batch_size = len(verify)
    exact = bench.decoder.spec.numerics is Numerics.EXACT
    calls = sum(verify) / batch_size if exact else max(verify)
    parts = bench.compile_parts()
    timers = [bench.time_decode, bench.time_prefill]
    timers += [lambda f=f: timing.time_call(f, 5) for f in parts.values()]
    times = timing.time_alternately(timers, rounds) * 1e3
    wall, prefill, *rest = (float(value) for value in np.median(times, 0))
    ms = dict(zip(parts, rest, strict=True))
    # Columns 2 and 3 are the bare call and the bare prefill.
    share = timing.median_with_interval(
        (calls * times[:, 2] + times[:, 3]) / times[:, 0]
    )
    target = TARGETS[batch_size]
    head = {"decoder": name, "batch": batch_size}
    efficiency = head | {
        "verify rounds": max(verify),
        "counted": round(calls, 2),
        "bare call ms": ms["call"],
        "bare prefill ms": ms["prefill"],
        "wall ms": wall,
        "efficiency": str(share),
        "target": f"{target} {'met' if share.median >= target else 'missed'}",
    }
    breakdown = head | {
        "forward": ms["forward"],
        "head reads": ms["call"] - ms["forward"],
        "draft": ms["draft"],
        "a verify call": ms["verify"],
        "a round of the loop": (wall - prefill) / calls,
        "round - bare": (wall - prefill) / calls - ms["call"],
        "opening": prefill,
        "opening - bare prefill": prefill - ms["prefill"],
    }
    return efficiency, breakdown


def compare_speed(benches: dict[str, DecodeBench], rounds: int) -> list[dict[str, Any]]:
    """Measure the tokens a second of several decoders of the same prompts.

    Args:
        benches: the decodes by name; static ones have names that begin with "static".
        rounds: alternating rounds.

    Returns:
        Rows of the table; speeds are compared with the fastest static decoder.
    """
    rows = [bench.decode().completions for bench in benches.values()]
    tokens = np.array([sum(r.valid_tokens for r in of_bench) for of_bench in rows])
    seconds = timing.time_alternately([b.time_decode for b in benches.values()], rounds)
    rate, names = tokens / seconds, list(benches)
    static_indices = [i for i, name in enumerate(names) if name.startswith("static")]
    best = max(static_indices, key=lambda i: np.median(rate[:, i]))
    texts = [[r.token_ids for r in of_bench] for of_bench in rows]
    table = []
    for i, (name, of_bench) in enumerate(zip(names, rows, strict=True)):
        ratio = timing.median_with_interval(rate[:, i] / rate[:, best])
        same = sum(map(tuple.__eq__, texts[i], texts[best]))
        table.append(
            {
                "decoder": name,
                "batch": len(of_bench),
                "calls": sum(r.nfe.total for r in of_bench),
                "tokens": int(tokens[i]),
                "tokens/s": round(float(np.median(rate[:, i]))),
                "over the fastest static": str(ratio),
                "same texts": f"{same}/{len(of_bench)}",
            }
        )
    return table


def count_compilations(bench: DecodeBench, other_prompts: list[list[int]]) -> int:
    """Count the compilations that a second decode of a bucket causes.

    Args:
        bench: the decode; it is run first.
        other_prompts: token ids of prompts of the same bucket.

    Returns:
        The number of compilations.
    """
    bench.decode()
    compilations: list[str] = []

    def on_event(event: str, *_, **__) -> None:
        if event == _COMPILE_EVENT:
            compilations.append(event)

    # Listeners stay registered; this one is read before anything else can reach it.
    jax.monitoring.register_event_duration_secs_listener(on_event)
    result = generation.generate(bench.decoder, bench.params, other_prompts)
    return len(compilations) + (result.compile_seconds > 0)


def prompts_of_one_length(model: LoadedModel, count: int) -> list[list[int]]:
    """Select word problems whose prompts have the same number of tokens.

    Args:
        model: the model whose tokenizer counts.
        count: how many to select.

    Returns:
        Token ids of the longest such prompts.
    """
    by_length = defaultdict(list)
    for ids in model.encode_prompts(
        problem_sets.load("words_long") + problem_sets.load("words_test")
    ):
        by_length[len(ids)].append(ids)
    longest = max(length for length, group in by_length.items() if len(group) >= count)
    return by_length[longest][:count]


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--draft-steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15, help="alternating repeats")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--regret", type=int, nargs="*", default=[], help="fixed d to time beside auto"
    )
    args = parser.parse_args()
    results, model = report.start_report(args.weights), load_model(args.weights)
    prompts = prompts_of_one_length(model, 9)
    efficiencies: list[dict[str, Any]] = []
    breakdowns: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    compilations = 0
    for batch_size in (1, 8):
        batch = prompts[:batch_size]
        benches = {}
        for numerics in NUMERICS:
            settings = {"max_new_tokens": args.max_new_tokens, "numerics": numerics}
            drafted = freedave(model.config, draft_steps=args.draft_steps, **settings)
            for name, decoder in (
                ("static", static(model.config, **settings)),
                (f"freedave d={args.draft_steps}", drafted),
            ):
                bench = DecodeBench(decoder, model.params, batch)
                benches[f"{name}, {numerics}"] = bench
        for name, bench in benches.items():
            compilations += count_compilations(bench, prompts[1 : batch_size + 1])
            efficiency, breakdown = measure_efficiency(name, bench, args.rounds)
            efficiencies.append(efficiency)
            breakdowns.append(breakdown)
        for d in ("auto", *args.regret):
            decoder = freedave(
                model.config, draft_steps=d, max_new_tokens=args.max_new_tokens
            )
            bench = DecodeBench(decoder, model.params, batch)
            benches[f"freedave d={d}, guarded"] = bench
        speeds.extend(compare_speed(benches, args.rounds))
    results.add_table(
        "Loop efficiency, median [95 % interval] of paired rounds", efficiencies
    )
    results.add_table(
        "Where the time goes, ms (a round and a call carry all rows)", breakdowns
    )
    results.add_table("Tokens a second, whole generate, alternating", speeds)
    sentence = "a second prompt of a bucket compiles nothing"
    claim = report.Claim(f"{sentence} (compiled: {compilations})", compilations == 0)
    results.claims.append(claim)
    results.finish(args.out)


if __name__ == "__main__":
    main()

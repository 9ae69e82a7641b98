"""How much of a decode is the network: loop efficiency, and FreeDave against static.

    python -m bench.decode [--draft-steps 8] [--rounds 15]

    efficiency = (verify calls x one bare call + the bare prefill) / wall of generate

The parts are those of `bare.py`; the wall is all of `run.generate` on the host's clock.
The prompts of a batch have one length. Under `exact` an ended row is skipped, so a
round counts by its live rows; under `fast` every row is computed in every round. The
two-fold time of a part and of the decode are taken in the same alternating rounds.

It asserts that a second prompt of a bucket compiles nothing. Times are printed, never
asserted.
"""

from collections import defaultdict
from typing import Any

import jax
import numpy as np

from bench.harness import common
from bench.harness.network_only import Bench
from jaxdave.demo_tasks import problem_sets
from jaxdave.engine import generation
from jaxdave.engine.decoders import NUMERICS, freedave, static

TARGETS = {1: 0.85, 8: 0.95}
COMPILED = "/jax/core/compile/backend_compile_duration"


def measure(name: str, bench: Bench, rounds: int) -> tuple[dict, dict]:
    """The efficiency of one decoder, and where its time goes: two table rows."""
    verify = [row.nfe.verify for row in bench.result().completions]
    size, exact = len(verify), bench.decoder.spec.exact
    calls = sum(verify) / size if exact else max(verify)
    parts = bench.parts()
    timers = [bench.generate, bench.fast_prefill]
    timers += [lambda f=f: common.seconds(f, 5) for f in parts.values()]
    found = common.alternate(timers, rounds) * 1e3
    wall, opening, *rest = (float(value) for value in np.median(found, 0))
    ms = dict(zip(parts, rest, strict=True))
    share = common.spread((calls * found[:, 2] + found[:, 3]) / found[:, 0])
    target = TARGETS[size]
    head = {"decoder": name, "batch": size}
    efficiency = head | {
        "verify rounds": max(verify),
        "counted": round(calls, 2),
        "bare call ms": ms["call"],
        "bare prefill ms": ms["prefill"],
        "wall ms": wall,
        "efficiency": str(share),
        "target": f"{target} {'met' if share.median >= target else 'missed'}",
    }
    where = head | {
        "forward": ms["forward"],
        "head reads": ms["call"] - ms["forward"],
        "draft": ms["draft"],
        "a verify call": ms["verify"],
        "a round of the loop": (wall - opening) / calls,
        "round - bare": (wall - opening) / calls - ms["call"],
        "opening": opening,
        "opening - bare prefill": opening - ms["prefill"],
    }
    return efficiency, where


def speed(benches: dict[str, Bench], rounds: int) -> list[dict[str, Any]]:
    """Tokens a second of every decoder, and its ratio to the fastest static's."""
    rows = [bench.result().completions for bench in benches.values()]
    tokens = np.array([sum(r.valid_tokens for r in made) for made in rows])
    found = common.alternate([b.generate for b in benches.values()], rounds)
    rate, names = tokens / found, list(benches)
    plain = [i for i, name in enumerate(names) if name.startswith("static")]
    best = max(plain, key=lambda i: np.median(rate[:, i]))
    texts = [[r.token_ids for r in made] for made in rows]
    return [
        {
            "decoder": name,
            "batch": len(made),
            "calls": sum(r.nfe.total for r in made),
            "tokens": int(tokens[i]),
            "tokens/s": round(float(np.median(rate[:, i]))),
            "over the fastest static": str(common.spread(rate[:, i] / rate[:, best])),
            "same texts": f"{sum(map(tuple.__eq__, texts[i], texts[best]))}"
            f"/{len(made)}",
        }
        for i, (name, made) in enumerate(zip(names, rows, strict=True))
    ]


def compiled_by(bench: Bench, other: list[list[int]]) -> int:
    """How many compilations a decode of other prompts of the bucket causes."""
    bench.result()
    seen: list[str] = []
    # Listeners stay registered; this one is read before anything else can reach it.
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: seen.append(event) if event == COMPILED else None
    )
    result = generation.generate(bench.decoder, bench.params, other)
    return len(seen) + (result.compile_seconds > 0)


def equal_lengths(model: common.Loaded, count: int) -> list[list[int]]:
    """The longest prompts of one length, from the sets of word problems."""
    by_length = defaultdict(list)
    for ids in model.ids(
        problem_sets.load("words_long") + problem_sets.load("words_test")
    ):
        by_length[len(ids)].append(ids)
    most = max(length for length, group in by_length.items() if len(group) >= count)
    return by_length[most][:count]


def main() -> None:
    """The command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--draft-steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15, help="alternating repeats")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--regret", type=int, nargs="*", default=[], help="fixed d to time beside auto"
    )
    args = parser.parse_args()
    report, model = common.begin(args.weights), common.load(args.weights)
    prompts = equal_lengths(model, 9)
    tables: tuple[list, list, list] = ([], [], [])
    again = 0
    for size in (1, 8):
        benches = {}
        room_of, rest = args.max_new_tokens, (model.params, prompts[:size])
        for numerics in NUMERICS:
            room = {"max_new_tokens": args.max_new_tokens, "numerics": numerics}
            drafted = freedave(model.config, draft_steps=args.draft_steps, **room)
            benches |= {
                f"{name}, {numerics}": Bench(decoder, model.params, prompts[:size])
                for name, decoder in (
                    ("static", static(model.config, **room)),
                    (f"freedave d={args.draft_steps}", drafted),
                )
            }
        for name, bench in benches.items():
            again += compiled_by(bench, prompts[1 : size + 1])
            for table, row in zip(
                tables, measure(name, bench, args.rounds), strict=False
            ):
                table.append(row)
        benches |= {
            f"freedave d={d}, guarded": Bench(
                freedave(model.config, draft_steps=d, max_new_tokens=room_of), *rest
            )
            for d in ("auto", *args.regret)
        }
        tables[2].extend(speed(benches, args.rounds))
    report.table("Loop efficiency, median [95 % interval] of paired rounds", tables[0])
    report.table(
        "Where the time goes, ms (a round and a call carry all rows)", tables[1]
    )
    report.table("Tokens a second, whole generate, alternating", tables[2])
    sentence = f"a second prompt of a bucket compiles nothing (compiled: {again})"
    report.claims.append(common.Claim(sentence, again == 0))
    report.finish(args.out)


if __name__ == "__main__":
    main()

"""Is the text one and the same, whatever the draft length and the batch?

    python -m bench.guard [--problems 167] [--dtypes float32 bfloat16]

Every problem is decoded with 1, 8 and 32 drafts, alone and in batches of 8, under
guarded numerics, and every text compared with that of one draft alone, which is static
decoding in its own program. Guard calls are counted. Under `--numerics exact` drafts
are capped in one program.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from bench.harness import common
from jaxdave.core.prediction import ErrorBound
from jaxdave.demo_tasks import problem_sets
from jaxdave.engine import autotune, decoders
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion

DRAFTS, BATCHES = (1, 8, 32), (1, 8)
MOST_GUARDS = 0.05
"""Guard calls among all calls in bfloat16."""


class Way(NamedTuple):
    """One way to decode: how many drafts, how many rows at once."""

    drafts: int
    rows: int


def decoder_of(config, drafts: int, temperature: float, numerics: str) -> Decoder:
    """Static for one draft; under exact numerics one program with a cap."""
    slots = DRAFTS[-1] if numerics == "exact" else drafts
    made = decoders.freedave(
        config, draft_steps=slots, max_new_tokens=64, temperature=temperature,
        numerics=numerics,
    )  # fmt: skip
    return dataclasses.replace(made, max_num_drafts=drafts)


def decode(decoder: Decoder, params, prompts: Sequence, rows: int) -> list[Completion]:
    """The rows of all prompts, so many at once."""
    found: list[Completion] = []
    for at in range(0, len(prompts), rows):
        found += generate(decoder, params, prompts[at : at + rows], seed=7).completions
    return found


def table(
    loaded: common.Loaded, dtype: str, prompts, temperature: float, numerics: str
) -> list[dict[str, Any]]:
    """A row for every way."""
    cast = lambda a: a.astype(dtype)  # noqa: E731
    params = jax.tree.map(cast, loaded.params)
    made, want = [], None
    for way in (Way(d, b) for d in DRAFTS for b in BATCHES):
        decoder = decoder_of(loaded.config, way.drafts, temperature, numerics)
        rows = decode(decoder, params, prompts, way.rows)
        texts = [(row.token_ids, row.finish_reason) for row in rows]
        want = texts if want is None else want
        calls = sum(row.nfe.total for row in rows)
        guards = sum(row.nfe.recheck for row in rows)
        made.append(
            {
                "dtype": dtype,
                "T": temperature,
                "d": way.drafts,
                "batch": way.rows,
                "decodes": len(rows),
                "identical": sum(map(tuple.__eq__, texts, want)),
                "calls": calls,
                "guard calls": guards,
                "share": round(guards / calls, 4),
            }
        )
    return made


def main() -> None:
    """The command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--problems", type=int, default=167)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--numerics", choices=("guarded", "exact"), default="guarded")
    args = parser.parse_args()
    report, loaded = common.begin(args.weights), common.load(args.weights)
    sets = [problem_sets.load(name) for name in ("words_test", "lists_test")]
    problems = [p for pair in zip(*sets, strict=False) for p in pair][: args.problems]
    prompts, rows = loaded.ids(problems), []
    for dtype in args.dtypes:
        for temperature in (0.0, 0.7):
            rows += table(loaded, dtype, prompts, temperature, args.numerics)
    report.table(f"Texts under {args.numerics}, against one draft alone", rows)
    total, same = (sum(row[k] for row in rows) for k in ("decodes", "identical"))
    report.claims.append(common.Claim(f"{same} of {total} identical", same == total))
    worst = max(row["share"] for row in rows)
    sentence = f"guard calls are at most {worst:.1%} of all (aim {MOST_GUARDS:.0%})"
    report.claims.append(common.Claim(sentence, worst <= MOST_GUARDS))
    seen = [found for _, found in autotune.MEASUREMENTS.values()]
    if seen:
        most = map(max, zip(*(found.error for found in seen), strict=True))
        told = zip(ErrorBound._fields, most, strict=True)
        told = ", ".join(f"{name} {error:.2g}" for name, error in told)
        print(f"largest differences measured: {told}")
    report.finish(args.out)


if __name__ == "__main__":
    main()

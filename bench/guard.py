"""Texts under guarded numerics: one and the same for every draft length and batch.

    python -m bench.guard [--problems 167] [--dtypes float32 bfloat16]
        [--numerics guarded|exact] [--drafts 1 8 32] [--batches 1 8]

Every problem is decoded with 1, 8 and 32 drafts, alone and in batches of 8, and every
text is compared with that of one draft alone, which is static decoding in its own
compiled program. Rechecks are counted: the calls in which a decision was too close
for the measured numerical error, so that it was computed again in the trusted shape.
Under `--numerics exact` all draft lengths run in one program, with a cap on its drafts.

The mixture of experts, 63 problems, 1,008 decodes with drafts (d 2 and 8, batches of 1
and 8, temperatures 0 and 0.7, float32 and bfloat16) beside 504 without:

    python -m bench.guard --weights bench/models/llada2-1m --problems 63 --drafts 1 2 8
        --numerics guarded, and again with exact

There texts are to be identical in all decodes, and rechecks at most 5 % of the calls of
each setting under guarded numerics.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from bench.harness import report
from bench.harness.loading import LoadedModel, load_model
from jaxdave.core.prediction import ErrorBound
from jaxdave.demo_tasks import problem_sets
from jaxdave.engine import autotune, decoders
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion

DRAFT_LENGTHS, BATCH_SIZES = (1, 8, 32), (1, 8)
MAX_RECHECK_SHARE = 0.05
"""Target for the share of rechecks among all calls."""


class Setting(NamedTuple):
    """A way to decode the same problems.

    Attributes:
        num_drafts: drafts of a call.
        batch_size: prompts decoded at once.
    """

    num_drafts: int
    batch_size: int


def settings_of(drafts: Sequence[int], batches: Sequence[int]) -> list[Setting]:
    """Every number of drafts in batches of every size."""
    return [Setting(*pair) for pair in itertools.product(drafts, batches)]


SETTINGS = settings_of(DRAFT_LENGTHS, BATCH_SIZES)


def build_decoder(
    config, num_drafts: int, temperature: float, numerics: str, most: int
) -> Decoder:
    """Build a decoder of the static policy.

    Args:
        config: the model.
        num_drafts: drafts of a call; 1 is static decoding.
        temperature: sampling temperature.
        numerics: "guarded": a program for each number of drafts; "exact": one program
            for the largest, with a cap.
        most: the largest number of drafts.

    Returns:
        The decoder.
    """
    decoder = decoders.freedave(
        config,
        draft_steps=most if numerics == "exact" else num_drafts,
        max_new_tokens=64,
        temperature=temperature,
        numerics=numerics,
    )
    return dataclasses.replace(decoder, max_num_drafts=num_drafts)


def decode(
    decoder: Decoder, params, prompts: Sequence[Sequence[int]], batch_size: int
) -> list[Completion]:
    """Decode prompts in batches.

    Args:
        decoder: the decoder.
        params: the model's parameters.
        prompts: token ids of the prompts.
        batch_size: prompts decoded at once.

    Returns:
        One row per prompt.
    """
    rows: list[Completion] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        rows += generate(decoder, params, batch, seed=7).completions
    return rows


def compare_settings(
    loaded: LoadedModel,
    dtype: str,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    numerics: str,
    settings: Sequence[Setting],
) -> list[dict[str, Any]]:
    """Decode prompts in every setting and compare the texts with the first one's.

    Args:
        loaded: the model.
        dtype: dtype that its parameters are cast to.
        prompts: token ids of the prompts.
        temperature: sampling temperature.
        numerics: "guarded" or "exact".
        settings: the ways to decode.

    Returns:
        A table row for every setting.
    """
    most = max(setting.num_drafts for setting in settings)
    params = jax.tree.map(lambda a: a.astype(dtype), loaded.params)
    table, expected = [], None
    for setting in settings:
        decoder = build_decoder(
            loaded.config, setting.num_drafts, temperature, numerics, most
        )
        rows = decode(decoder, params, prompts, setting.batch_size)
        texts = [(row.token_ids, row.finish_reason) for row in rows]
        expected = texts if expected is None else expected
        calls = sum(row.nfe.total for row in rows)
        rechecks = sum(row.nfe.recheck for row in rows)
        table.append(
            {
                "dtype": dtype,
                "T": temperature,
                "d": setting.num_drafts,
                "batch": setting.batch_size,
                "decodes": len(rows),
                "identical": sum(map(tuple.__eq__, texts, expected)),
                "calls": calls,
                "rechecks": rechecks,
                "share": round(rechecks / calls, 4),
            }
        )
        print(table[-1], flush=True)
    return table


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--problems", type=int, default=167)
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--numerics", choices=("guarded", "exact"), default="guarded")
    parser.add_argument("--drafts", type=int, nargs="*", default=DRAFT_LENGTHS)
    parser.add_argument("--batches", type=int, nargs="*", default=BATCH_SIZES)
    args = parser.parse_args()
    results, loaded = report.start_report(args.weights), load_model(args.weights)
    sets = [problem_sets.load(name) for name in ("words_test", "lists_test")]
    problems = [p for pair in zip(*sets, strict=False) for p in pair][: args.problems]
    prompts, rows = loaded.encode_prompts(problems), []
    for dtype in args.dtypes:
        for temperature in (0.0, 0.7):
            settings = settings_of(args.drafts, args.batches)
            rows += compare_settings(
                loaded, dtype, prompts, temperature, args.numerics, settings
            )
    results.add_table(f"Texts under {args.numerics}, against one draft alone", rows)
    total, same = (sum(row[k] for row in rows) for k in ("decodes", "identical"))
    results.claims.append(report.Claim(f"{same} of {total} identical", same == total))
    share = max(row["share"] for row in rows)
    sentence = f"rechecks are at most {share:.2%} of all (aim {MAX_RECHECK_SHARE:.0%})"
    results.claims.append(report.Claim(sentence, share <= MAX_RECHECK_SHARE))
    _print_measured_errors()
    results.finish(args.out)


def _print_measured_errors() -> None:
    """The largest numerical errors that guarded decodes of this process measured."""
    measurements = [found for _, found in autotune.MEASUREMENTS.values()]
    if measurements:
        largest = map(max, zip(*(found.error for found in measurements), strict=True))
        named = zip(ErrorBound._fields, largest, strict=True)
        text = ", ".join(f"{name} {error:.2g}" for name, error in named)
        print(f"largest differences measured: {text}")


if __name__ == "__main__":
    main()

"""FreeDave over policies that edit: calls, texts, and what editing is good for.

    python -m bench.editing [--weights FOLDER] [--limit N]

Plan, fixed before any held-out problem was decoded:

- Model: bench/models/sdar-edit-1m, that of `jaxdave train --recipe edit-demo`, which
  has learnt to replace wrong tokens, its own guesses among them, in blocks of 16.
  Problems: all 500 of words_test and all 200 of lists_test, held out by their
  skeletons. Temperature 0, guarded numerics, 48 tokens at most, batches of 16, d=8.
- Arms: LLaDA2.1's Speedy Mode (`llada2_s`: 0.5 / 0.0) and Quality Mode (`llada2_q`:
  0.7 / 0.5), each undrafted and with drafts; and each mode's M2T rule without editing
  (`low_confidence_dynamic`: the same threshold, else the best one).
- Statistics: calls undrafted over calls drafted, a ratio of sums over problems, with a
  95 % bootstrap interval over problems; the share of texts that are identical; right
  answers with and without editing, and the difference with a 95 % interval for paired
  shares (`harness.paired`); masks filled with another token than the finished answer
  has, and what edits did (`EditCounts`).
- Claims: every text identical; no answer takes more calls with drafts than without, its
  rechecks aside; at least 1.6 times fewer calls in each mode; S Mode right more often
  with editing than without, the interval of the difference above 0.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.harness import report
from bench.harness.loading import LoadedModel, load_model
from bench.harness.paired import accuracy_change, ratio_of_sums
from jaxdave import policies
from jaxdave.core.policy_api import Policy
from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import is_correct
from jaxdave.engine import decoders
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion
from jaxdave.engine.streaming import snapshots

DEMO = Path(__file__).parent / "models" / "sdar-edit-1m"
SETS = ("words_test", "lists_test")
DRAFTS = 8
MAX_NEW_TOKENS = 48
BATCH_SIZE = 16
MODES = {"S": (policies.llada2_s, 0.5), "Q": (policies.llada2_q, 0.7)}
"""By name: the maker of the mode's policy, and its threshold."""
MIN_RATIO = 1.6


def make_decoder(loaded: LoadedModel, policy: Policy, num_drafts: int) -> Decoder:
    """The decoder of an arm; one draft is the policy alone."""
    return decoders.freedave(
        loaded.config, policy, draft_steps=num_drafts, max_new_tokens=MAX_NEW_TOKENS
    )


def batches_of(
    prompts: Sequence[list[int]],
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Split prompts into batches of one size.

    Args:
        prompts: token ids of the prompts.

    Yields:
        Indices of some prompts, and a batch that begins with those and repeats the
        last.
    """
    # Alike in length, so that few programs are compiled.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), BATCH_SIZE):
        own = order[start : start + BATCH_SIZE]
        batch = [prompts[i] for i in own]
        yield own, batch + [batch[-1]] * (BATCH_SIZE - len(batch))


def decode(
    loaded: LoadedModel, policy: Policy, prompts: Sequence[list[int]], num_drafts: int
) -> list[Completion]:
    """Decode prompts in batches.

    Args:
        loaded: the model.
        policy: what is decoded with.
        prompts: token ids of the prompts.
        num_drafts: drafts of a call; 1 is the policy alone.

    Returns:
        One row per prompt.
    """
    decoder = make_decoder(loaded, policy, num_drafts)
    found: dict[int, Completion] = {}
    for own, batch in batches_of(prompts):
        rows = generate(decoder, loaded.params, batch).completions
        found |= dict(zip(own, rows, strict=False))
    return [found[i] for i in range(len(prompts))]


class EditCounts(NamedTuple):
    """What the steps of some undrafted decodes did to the tokens of their canvases.

    Attributes:
        edited_answers: answers of which a token was replaced.
        fills: masks that were filled.
        wrong_fills: of those, with another token than the finished answer has there.
        edits: tokens that were replaced.
        mends: of those, edits to the token that the finished answer has.
        spoils: of those, edits of a token that the finished answer has.
    """

    edited_answers: int
    fills: int
    wrong_fills: int
    edits: int
    mends: int
    spoils: int


def count_edits(
    loaded: LoadedModel, policy: Policy, prompts: Sequence[list[int]]
) -> EditCounts:
    """Decode undrafted, a step a call, and compare the canvases before and after each.

    Args:
        loaded: the model.
        policy: what is decoded with.
        prompts: token ids of the prompts.

    Returns:
        The counts, over all of each canvas behind its prompt.
    """
    decoder = make_decoder(loaded, policy, 1)
    mask = loaded.config.mask_id
    counts = np.zeros(len(EditCounts._fields), int)
    for own, batch in batches_of(prompts):
        seen = [one.tokens_BT for one in snapshots(decoder, loaded.params, batch)]
        for row in range(len(own)):
            # What behind an answer was never decoded is mask throughout.
            states = [tokens_BT[row, len(batch[row]) :] for tokens_BT in seen]
            last, after = states[-1], np.array(states[1:])
            before = np.array(states[:-1])
            fills = (before == mask) & (after != mask)
            edits = (before != mask) & (after != before)
            counts += [
                edits.any(),
                fills.sum(),
                (fills & (after != last)).sum(),
                edits.sum(),
                (edits & (after == last)).sum(),
                (edits & (before == last)).sum(),
            ]
    return EditCounts(*counts.tolist())


def unguarded(row: Completion) -> int:
    """Calls of an answer, but for its rechecks."""
    return row.nfe.total - row.nfe.recheck


def measure_mode(
    loaded: LoadedModel, name: str, problems: Sequence[Any], results: report.Report
) -> dict[str, Any]:
    """Decode a mode in all its arms.

    Args:
        loaded: the model.
        name: a key of `MODES`.
        problems: the problems.
        results: gets the claims.

    Returns:
        The mode's row of the table.
    """
    maker, threshold = MODES[name]
    prompts = loaded.encode_prompts(problems)
    plain = decode(loaded, maker(), prompts, 1)
    drafted = decode(loaded, maker(), prompts, DRAFTS)
    length = loaded.config.block_length
    rule = policies.low_confidence_dynamic(length, threshold)
    unedited = decode(loaded, rule, prompts, 1)

    def right(rows: Sequence[Completion]) -> list[bool]:
        texts = [loaded.codec.decode(row.token_ids) for row in rows]
        # Only what is not the reference answer has to be run.
        return [
            t == p.answer or is_correct(p, t)
            for p, t in zip(problems, texts, strict=True)
        ]

    pairs = list(zip(plain, drafted, strict=True))
    same = sum(a.token_ids == b.token_ids for a, b in pairs)
    calls = [row.nfe.total for row in plain]
    drafted_calls = [row.nfe.total for row in drafted]
    ratio = ratio_of_sums(calls, drafted_calls)
    with_edits, without = right(plain), right(unedited)
    gain = accuracy_change(without, with_edits)
    claims = [
        report.Claim(f"{name}: every text is identical", same == len(problems)),
        report.Claim(
            f"{name}: no answer takes more calls with drafts",
            all(unguarded(b) <= unguarded(a) for a, b in pairs),
        ),
        report.Claim(
            f"{name}: {MIN_RATIO} times fewer calls", ratio.value >= MIN_RATIO
        ),
    ]
    results.claims.extend(claims)
    if name == "S":
        results.claims.append(
            report.Claim("S: right more often with editing", gain.low > 0)
        )
    return {
        "mode": name,
        "problems": len(problems),
        "identical": f"{same / len(problems):.2%}",
        "calls": sum(calls),
        f"d={DRAFTS}": sum(drafted_calls),
        "rechecks": sum(row.nfe.recheck for row in drafted),
        "times fewer": str(ratio),
        "right": f"{np.mean(with_edits):.1%}",
        "right without edits": f"{np.mean(without):.1%}",
        "difference": str(gain),
        "calls without edits": sum(row.nfe.total for row in unedited),
        "tokens": sum(row.valid_tokens for row in plain),
        **count_edits(loaded, maker(), prompts)._asdict(),
    }


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.set_defaults(weights=str(DEMO))
    parser.add_argument("--limit", type=int, help="problems of each set")
    args = parser.parse_args()
    results = report.start_report(args.weights)
    loaded = load_model(args.weights)
    problems = [p for name in SETS for p in problem_sets.load(name)[: args.limit]]
    rows = [measure_mode(loaded, name, problems, results) for name in MODES]
    results.add_table(f"FreeDave over editing modes, d={DRAFTS}, temperature 0", rows)
    results.finish(args.out)


if __name__ == "__main__":
    main()

"""The demo model on its test sets: right answers, and calls with and without drafts.

    python -m bench.demo [--limit N]

Calls are those of the answers as decoded: decoding stops at the end token, so nothing
after it counts. "reference" is the number of calls that the public static loop spends
on the same path, to the end of the block in which the answer ends.
"""

from collections.abc import Sequence

from bench.harness import report
from bench.harness.loading import LoadedModel, load_model
from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import baselines, is_correct
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion

DRAFT_LENGTHS = (2, 4, 8, 16)
BATCH_SIZE = 16


def decode(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], draft_steps: int
) -> list[Completion]:
    """Decode prompts with the static policy, in batches.

    Args:
        loaded: the model.
        prompts: token ids of the prompts.
        draft_steps: drafts of a call; 1 is static decoding.

    Returns:
        One row per prompt.
    """
    decoder = decoders.freedave(
        loaded.config, draft_steps=draft_steps, max_new_tokens=48
    )
    rows: list[Completion] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        rows += generate(decoder, loaded.params, batch).completions
    return rows


def measure_set(loaded: LoadedModel, name: str, limit: int | None) -> dict:
    """Decode a test set without drafts and with every draft length.

    Args:
        loaded: the model.
        name: name of the set.
        limit: only so many of its problems; None takes all.

    Returns:
        The set's row of the table.
    """
    problems = problem_sets.load(name)[:limit]
    prompts = loaded.encode_prompts(problems)
    static_rows = decode(loaded, prompts, 1)
    texts = [loaded.codec.decode(row.token_ids) for row in static_rows]
    right = sum(is_correct(p, t) for p, t in zip(problems, texts, strict=True))
    table_row = {
        "set": name,
        "problems": len(problems),
        "right": right,
        "share": f"{right / len(problems):.1%}",
        "tokens": sum(row.valid_tokens for row in static_rows),
        "steps": sum(row.steps for row in static_rows),
        "reference": sum(row.reference_nfe for row in static_rows),
        "static": sum(row.nfe.total for row in static_rows),
        # Calls that decide what was too close to call; part of the total.
        "rechecks": sum(row.nfe.recheck for row in static_rows),
    }
    num_decodes = len(problems) * len(DRAFT_LENGTHS)
    identical = num_decodes
    for d in DRAFT_LENGTHS:
        rows = decode(loaded, prompts, d)
        table_row[f"d={d}"] = sum(row.nfe.total for row in rows)
        pairs = zip(static_rows, rows, strict=True)
        identical -= sum(a.token_ids != b.token_ids for a, b in pairs)
    table_row["identical"] = f"{identical / num_decodes:.2%}"
    print(name, table_row, flush=True)
    return table_row


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--limit", type=int, help="problems of each set")
    args = parser.parse_args()
    results = report.start_report(args.weights)
    loaded = load_model(args.weights)
    rows = [measure_set(loaded, name, args.limit) for name in problem_sets.SETS]
    total = {k: sum(r[k] for r in rows) for k in rows[0] if isinstance(rows[0][k], int)}
    rows.append({**dict.fromkeys(rows[0], ""), "set": "all", **total})
    results.add_table("Calls on the demo's test sets, temperature 0", rows)
    ratios = [
        {
            "d": d,
            "static / FreeDave": total["static"] / total[f"d={d}"],
            "reference / FreeDave": total["reference"] / total[f"d={d}"],
            "answer tokens per call": total["tokens"] / total[f"d={d}"],
        }
        for d in DRAFT_LENGTHS
    ]
    results.add_table("Ratios of sums over all sets", ratios)
    at_8 = {row["d"]: row for row in ratios}[8]
    results.claims.extend(
        [
            report.Claim(
                "static spends one call per policy step, and its rechecks",
                total["static"] == total["steps"] + total["rechecks"],
            ),
            report.Claim(
                "d=8: 3.0 times fewer than static", at_8["static / FreeDave"] >= 3
            ),
            report.Claim(
                "d=8: 3.75 times fewer than the public static loop",
                at_8["reference / FreeDave"] >= 3.75,
            ),
        ]
    )
    words = problem_sets.load("words_test")
    print("\nbaselines on words_test:", baselines(words))
    results.finish(args.out)


if __name__ == "__main__":
    main()

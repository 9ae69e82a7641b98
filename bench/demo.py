"""The demo model on its frozen test sets: right answers, and calls with and without
drafts.

    python -m bench.demo [--limit N]

Calls are of the answers as decoded: decoding stops at the end token, so nothing after
it counts. "reference" is what the public static loop would spend on the same path.
"""

from bench.harness import common
from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import baselines, is_correct
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate

DRAFTS = (2, 4, 8, 16)
BATCH = 16


def decode(loaded: common.Loaded, ids, draft_steps: int):
    """All rows of a set, static for one draft."""
    decoder = decoders.freedave(
        loaded.config, draft_steps=draft_steps, max_new_tokens=48
    )
    parts = [ids[at : at + BATCH] for at in range(0, len(ids), BATCH)]
    return [
        r for part in parts for r in generate(decoder, loaded.params, part).completions
    ]


def measure(loaded: common.Loaded, name: str, limit: int | None) -> dict:
    """One set's row of the table, with its sums."""
    problems = problem_sets.load(name)[:limit]
    ids = loaded.ids(problems)
    plain = decode(loaded, ids, 1)
    texts = [loaded.codec.decode(row.token_ids) for row in plain]
    right = sum(is_correct(p, t) for p, t in zip(problems, texts, strict=True))
    calls = sum(row.nfe.total for row in plain)
    found = {
        "set": name,
        "problems": len(problems),
        "right": right,
        "share": f"{right / len(problems):.1%}",
        "tokens": sum(row.valid_tokens for row in plain),
        "steps": sum(row.steps for row in plain),
        "reference": sum(row.reference_nfe for row in plain),
        "static": calls,
    }
    same = len(problems) * len(DRAFTS)
    for d in DRAFTS:
        rows = decode(loaded, ids, d)
        found[f"d={d}"] = sum(row.nfe.total for row in rows)
        same -= sum(
            a.token_ids != b.token_ids for a, b in zip(plain, rows, strict=True)
        )
    found["identical"] = f"{same / len(problems) / len(DRAFTS):.2%}"
    print(name, found, flush=True)
    return found


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--limit", type=int, help="problems of each set")
    args = parser.parse_args()
    report = common.begin(args.weights)
    loaded = common.load(args.weights)
    rows = [measure(loaded, name, args.limit) for name in problem_sets.SETS]
    total = {k: sum(r[k] for r in rows) for k in rows[0] if isinstance(rows[0][k], int)}
    rows.append({**dict.fromkeys(rows[0], ""), "set": "all", **total})
    report.table("Calls on the demo's test sets, temperature 0", rows)
    ratios = [
        {
            "d": d,
            "static / FreeDave": total["static"] / total[f"d={d}"],
            "reference / FreeDave": total["reference"] / total[f"d={d}"],
            "answer tokens per call": total["tokens"] / total[f"d={d}"],
        }
        for d in DRAFTS
    ]
    report.table("Ratios of sums over all sets", ratios)
    at = {row["d"]: row for row in ratios}[8]
    report.claims.extend(
        [
            common.Claim(
                "static spends one call per policy step, the prefill included",
                total["static"] == total["steps"],
            ),
            common.Claim(
                "d=8: 3.0 times fewer than static", at["static / FreeDave"] >= 3
            ),
            common.Claim(
                "d=8: 3.75 times fewer than the public static loop",
                at["reference / FreeDave"] >= 3.75,
            ),
        ]
    )
    words = problem_sets.load("words_test")
    print("\nbaselines on words_test:", baselines(words))
    report.finish(args.out)


if __name__ == "__main__":
    main()

"""Every policy on a demo model: right answers, calls without and with drafts.

    python -m bench.policies [--weights llada-1m] [--limit 60] [--draft-steps 8]

Text must be identical with and without drafts, whatever the policy; it is asserted, and
so is that drafts never cost a call. Steps of scheduled policies are set so that they
commit a block in half as many steps as it has tokens.
"""

from typing import Any

from bench import common
from jaxdave import decoders, policies
from jaxdave.run import generate
from jaxdave.tasks import frozen
from jaxdave.tasks.grade import grade

BATCH = 10
SETS = ("words_test", "lists_test")


def chosen(name: str, length: int) -> str:
    """What `--policy` would be given: half a block's length of steps, if it has any."""
    entry = next(e for e in policies.listing() if e.name == name)
    steps = max(1, length // 2)
    return f"{name}:steps={steps}" if "steps" in entry.parameters else name


def decode(
    loaded: common.Loaded, text: str, ids, draft_steps: int, cap: int, room: int
):
    """All rows under a policy, in programs with `draft_steps` drafts."""
    policy = policies.parse(text)
    decoder = decoders.build(
        loaded.config, policy, draft_steps, cap, max_new_tokens=room
    )
    parts = [ids[at : at + BATCH] for at in range(0, len(ids), BATCH)]
    return [r for part in parts for r in generate(decoder, loaded.params, part).rows]


def measure(loaded: common.Loaded, text: str, problems, d: int, room: int) -> dict:
    """One policy's row of the table."""
    ids = loaded.ids(problems)
    plain = decode(loaded, text, ids, d, 1, room)
    quick = decode(loaded, text, ids, d, d, room)
    texts = [loaded.codec.decode(row.token_ids) for row in plain]
    right = sum(grade(p, t) for p, t in zip(problems, texts, strict=True))
    calls, fewer = (sum(r.nfe.total for r in rows) for rows in (plain, quick))
    same = sum(a.token_ids == b.token_ids for a, b in zip(plain, quick, strict=True))
    row: dict[str, Any] = {
        "policy": text,
        "right": f"{right / len(problems):.1%}",
        "calls": calls,
        "with drafts": fewer,
        "times fewer": calls / fewer,
        "identical": f"{same} of {len(problems)}",
        "dearer": sum(
            a.nfe.total < b.nfe.total for a, b in zip(plain, quick, strict=True)
        ),
    }
    print(row, flush=True)
    return row


def main() -> None:
    """The command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--limit", type=int, default=30, help="problems of each set")
    parser.add_argument("--draft-steps", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--only", nargs="*", help="names of policies")
    args = parser.parse_args()
    report, loaded = common.begin(args.weights), common.load(args.weights)
    problems = [p for name in SETS for p in frozen.load(name)[: args.limit]]
    names = args.only or [entry.name for entry in policies.listing()]
    rows = [
        measure(
            loaded,
            chosen(name, loaded.config.block_length),
            problems,
            args.draft_steps,
            args.max_new_tokens,
        )
        for name in names
    ]
    report.table(f"Policies on {args.weights}, drafts d={args.draft_steps}", rows)
    same = all(
        row["identical"] == f"{len(problems)} of {len(problems)}" for row in rows
    )
    report.claims.append(common.Claim("drafts never change a policy's text", same))
    cheap = all(row["dearer"] == 0 for row in rows)
    report.claims.append(common.Claim("drafts never cost a call", cheap))
    report.finish(args.out)


if __name__ == "__main__":
    main()

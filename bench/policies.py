"""Every policy on a demo model: right answers, calls without and with drafts.

    python -m bench.policies [--weights llada-1m] [--limit 60] [--draft-steps 4 8]
        [--cache none|prefix|dual] [--draft nested|tree] [--only static threshold]

Text must be identical with and without drafts, whatever the policy; it is asserted, and
so is that drafts never cost a call. Steps of scheduled policies are set so that they
commit a block in half as many steps as it has tokens. All numbers of drafts run in one
program, compiled for the most of them; a block-causal window is as long as those need,
so that fewer drafts there may be a little better off than in a program of their own.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from bench import ceilings
from bench.harness import common
from jaxdave import policies
from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import is_correct
from jaxdave.drafting import tree
from jaxdave.drafting.nested import nested
from jaxdave.engine import decoders
from jaxdave.engine.decode_config import CACHE_RULES
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion

BATCH = 10
SETS = ("words_test", "lists_test")


def chosen(name: str, length: int) -> str:
    """What `--policy` would be given: half a block's length of steps, if it has any."""
    entry = next(e for e in policies.listing() if e.name == name)
    steps = max(1, length // 2)
    return f"{name}:steps={steps}" if "steps" in entry.parameters else name


def decode(loaded: common.Loaded, text: str, ids, cap: int, args) -> list[Completion]:
    """All rows under a policy with at most `cap` drafts, in the one program for all."""
    policy, draft = policies.parse(text), nested
    if args.draft == "tree":
        draft = tree.tree_or_nested(
            loaded.tables, loaded.config, policy, cache=args.cache
        )
    decoder = decoders.freedave(
        loaded.config,
        policy,
        draft_steps=max(args.draft_steps),
        draft=draft,
        max_new_tokens=args.max_new_tokens,
        cache=args.cache,
        lossy=True,
    )
    decoder = dataclasses.replace(decoder, max_num_drafts=cap)
    parts = [ids[at : at + BATCH] for at in range(0, len(ids), BATCH)]
    return [
        r for part in parts for r in generate(decoder, loaded.params, part).completions
    ]


def measure(loaded: common.Loaded, text: str, problems, args) -> dict[str, Any]:
    """One policy's row of the table."""
    ids = loaded.ids(problems)
    plain = decode(loaded, text, ids, 1, args)
    texts = [loaded.codec.decode(row.token_ids) for row in plain]
    right = sum(is_correct(p, t) for p, t in zip(problems, texts, strict=True))
    row: dict[str, Any] = {
        "policy": text,
        "right": f"{right / len(problems):.1%}",
        "calls": calls_of(plain),
        "tokens/call": tokens_of(plain) / calls_of(plain),
        "identical": 0,
        "dearer": 0,
    }
    for d in args.draft_steps:
        quick = decode(loaded, text, ids, d, args)
        row[f"calls, d={d}"] = calls_of(quick)
        row[f"times fewer, d={d}"] = calls_of(plain) / calls_of(quick)
        row[f"tokens/call, d={d}"] = tokens_of(quick) / calls_of(quick)
        pairs = list(zip(plain, quick, strict=True))
        row["identical"] += sum(a.token_ids == b.token_ids for a, b in pairs)
        row["dearer"] += sum(a.nfe.total < b.nfe.total for a, b in pairs)
    row["identical"] = f"{row['identical']} of {len(ids) * len(args.draft_steps)}"
    print(row, flush=True)
    return row


def calls_of(rows: Sequence[Completion]) -> int:
    """Network calls of all rows."""
    return sum(row.nfe.total for row in rows)


def tokens_of(rows: Sequence[Completion]) -> int:
    """Valid tokens of all rows."""
    return sum(row.valid_tokens for row in rows)


def options() -> argparse.Namespace:
    """The command line."""
    parser = common.parser(__doc__)
    names = [entry.name for entry in policies.listing()]
    parser.add_argument("--limit", type=int, default=30, help="problems of each set")
    parser.add_argument("--draft-steps", type=int, nargs="+", default=[8])
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--draft", choices=("nested", "tree"), default="nested")
    parser.add_argument("--cache", choices=CACHE_RULES, help="for full attention: dual")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    return parser.parse_args()


def check(loaded: common.Loaded, args) -> None:
    """Exit 2 with a sentence for settings that no decoder can be built with."""
    try:
        for d in args.draft_steps:
            decoders.freedave(
                loaded.config, draft_steps=d, cache=args.cache,
                max_new_tokens=args.max_new_tokens,
            )  # fmt: skip
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """Measure, print, assert."""
    args = options()
    report, loaded = common.begin(args.weights), common.load(args.weights)
    check(loaded, args)
    problems = [p for name in SETS for p in problem_sets.load(name)[: args.limit]]
    texts = [chosen(name, loaded.config.block_length) for name in args.only]
    rows = [measure(loaded, text, problems, args) for text in texts]
    drafts = ", ".join(map(str, args.draft_steps))
    report.table(f"Policies on {args.weights}, drafts d={drafts}", rows)
    room = args.max_new_tokens
    report.table(
        "Ceilings for a policy of one token a step, all drafts right",
        [ceilings.row(loaded.config, args.cache, room, d) for d in args.draft_steps],
    )
    total = len(problems) * len(args.draft_steps)
    same = all(row["identical"] == f"{total} of {total}" for row in rows)
    report.claims.append(common.Claim("drafts never change a policy's text", same))
    cheap = all(row["dearer"] == 0 for row in rows)
    report.claims.append(common.Claim("drafts never cost a call", cheap))
    report.finish(args.out)


if __name__ == "__main__":
    main()

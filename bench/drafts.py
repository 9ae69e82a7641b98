"""Which drafts save how many calls: nested, trees, all subsets, canvases of guesses.

    python -m bench.drafts [--weights llada-1m] [--limit 30] [--draft-steps 8 32]
        [--only trees hints]

The policy is one token a step. "floor" is what perfect drafts would take: one call for
the first token of a request (under a cache rule: of a block) and one for every d more.
Draft texts are the answer itself, its first half before the end of another answer, and
another answer; "copies" asks a question again that the prompt has answered. Every text
must be that of one draft a call, in the same program, and no row may take more calls.
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from bench.harness import common
from bench.policies import calls_of
from jaxdave import policies
from jaxdave.demo_tasks import problem_sets
from jaxdave.drafting import text_drafts, tree
from jaxdave.drafting.guesses import with_guesses
from jaxdave.drafting.nested import nested
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion

BATCH = 10
ROOM = 64
KINDS = ("trees", "hints")


def decode(loaded: common.Loaded, policy, draft, slots: int, cap: int, ids, told=None):
    """All rows with at most `cap` drafts a call."""
    decoder = decoders.freedave(
        loaded.config, policy, draft_steps=slots, draft=draft, max_new_tokens=ROOM
    )
    decoder = dataclasses.replace(decoder, max_num_drafts=min(cap, slots))
    rows: list[Completion] = []
    for at in range(0, len(ids), BATCH):
        part = slice(at, at + BATCH)
        rows += generate(
            decoder, loaded.params, ids[part], draft_text=told and told[part]
        ).completions
    return rows


def floor(loaded: common.Loaded, row: Completion, d: int) -> int:
    """Calls of a row were all drafts right."""
    causal = loaded.config.attention == "block_causal"
    size = row.steps if causal else loaded.config.block_length
    starts = range(0, row.steps, size)
    return sum(1 + -(-(min(size, row.steps - at) - 1) // d) for at in starts)


def compared(plain: Sequence[Completion], quick: Sequence[Completion]) -> bool:
    """Whether texts are the same and no row is dearer."""
    pairs = list(zip(plain, quick, strict=True))
    same = all(a.token_ids == b.token_ids for a, b in pairs)
    return same and all(b.nfe.total <= a.nfe.total for a, b in pairs)


def of_trees(loaded: common.Loaded, ids, d: int) -> dict[str, Any]:
    """One number of drafts: calls of every draft function."""
    one, config = policies.static(1), loaded.config
    drafts = {"nested": nested, "tree": tree.tree_or_nested(loaded.tables, config, one)}
    if config.block_length <= 4:
        drafts["subsets"] = tree.subsets(config.block_length)
    plain = decode(loaded, one, nested, d, 1, ids)
    found: dict[str, Any] = {"d": d, "static": calls_of(plain)}
    found["floor"] = sum(floor(loaded, row, d) for row in plain)
    fine = True
    for name, draft in drafts.items():
        rows = decode(loaded, one, draft, d, d, ids)
        found[name], fine = calls_of(rows), fine and compared(plain, rows)
        found[f"{name}, saved"] = f"{1 - calls_of(rows) / found['nested']:.1%}"
    found["nested / floor"] = found["nested"] / found["floor"]
    return found | {"same text, none dearer": fine}


def answers(loaded: common.Loaded, policy, ids, d: int) -> list[list[int]]:
    """What is answered without drafts, end tokens included."""
    rows = decode(
        loaded,
        policy,
        with_guesses(nested, text_drafts.user_text, reads_text=True),
        d,
        1,
        ids,
    )
    return [[*row.token_ids, loaded.config.stop_ids[0]] for row in rows]


def of_hints(loaded: common.Loaded, policy, problems, d: int) -> list[dict[str, Any]]:
    """One policy: calls with draft texts, and where the answer is in the prompt."""
    ids = loaded.ids(problems)
    base = tree.tree_or_nested(loaded.tables, loaded.config, policy)
    told = with_guesses(base, text_drafts.user_text, reads_text=True)
    right = answers(loaded, policy, ids, d)
    others = right[1:] + right[:1]
    half = [
        a[: len(a) // 2] + b[len(b) // 2 :] for a, b in zip(right, others, strict=True)
    ]
    texts = {"none": [[]] * len(ids), "right": right, "half right": half}
    texts["wrong"] = others
    plain = decode(loaded, policy, told, d, 1, ids, texts["none"])
    found = [
        _hinted(plain, name, decode(loaded, policy, told, d, d, ids, text))
        for name, text in texts.items()
    ]
    again = [
        loaded.codec.encode_messages(
            [
                {"role": "user", "content": problem.prompt},
                {"role": "assistant", "content": problem.answer},
                {"role": "user", "content": problem.prompt},
            ]
        )
        for problem in problems
    ]
    plain = decode(loaded, policy, base, d, 1, again)
    for name, draft in (
        ("own", base),
        ("copied", with_guesses(base, text_drafts.prompt_lookup)),
    ):
        rows = decode(loaded, policy, draft, d, d, again)
        found.append(_hinted(plain, f"copies, {name} drafts", rows))
    return [{"policy": policy.name, "d": d, **row} for row in found]


def _hinted(plain, name: str, quick) -> dict[str, Any]:
    return {
        "draft text": name,
        "without drafts": calls_of(plain),
        "calls": calls_of(quick),
        "same text, none dearer": compared(plain, quick),
    }


def main() -> None:
    """Measure, print, assert."""
    parser = common.parser(__doc__)
    parser.add_argument("--limit", type=int, default=30, help="problems of each set")
    parser.add_argument("--draft-steps", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    if args.limit < 1 or min(args.draft_steps) < 1:
        print("--limit and --draft-steps must be at least 1", file=sys.stderr)
        sys.exit(2)
    report, loaded = common.begin(args.weights), common.load(args.weights)
    sets = ("words_test", "lists_test")
    problems = [p for name in sets for p in problem_sets.load(name)[: args.limit]]
    rows: list[dict[str, Any]] = []
    if "trees" in args.only:
        rows = [of_trees(loaded, loaded.ids(problems), d) for d in args.draft_steps]
        report.table(f"Calls by drafts, {args.weights}, {len(problems)} problems", rows)
    if "hints" in args.only:
        kinds = policies.static(1), policies.left_to_right(1)
        d = args.draft_steps[0]
        told = [r for policy in kinds for r in of_hints(loaded, policy, problems, d)]
        report.table(f"Calls by draft texts, {args.weights}", told)
        rows = rows + told
    fine = all(row["same text, none dearer"] for row in rows)
    report.claims.append(common.Claim("the same text, and no row is dearer", fine))
    report.finish(args.out)


if __name__ == "__main__":
    main()

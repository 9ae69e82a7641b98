"""Network calls by kind of draft: nested, trees, all subsets, and draft texts.

    python -m bench.drafts [--weights llada-1m] [--limit 30] [--draft-steps 8 32]
        [--only trees hints] [--temperature 0.7] [--tokens-per-step 2]
    python -m bench.drafts --only policies --draft-steps 8 16 --limit 500
    python -m bench.drafts --only ceilings --limit 10
    python -m bench.drafts --only seconds --limit 6 [--rounds 16]
    python -m bench.drafts --only transfer --limit 40 --weights llada-1m

The policy decodes one token a step, or of trees as many as `--tokens-per-step` says;
at a temperature draft texts are left out. "floor" is what perfect drafts would take:
one call for the first step of a request (under a cache rule: of a block) and one for
every d more. Draft texts are the answer itself, its first half before the end of
another answer, and another answer; "copies" asks a question again that the prompt has
answered. Every text must be that of one draft a call, in the same program, and no row
may take more calls.

`--only policies` counts the calls of other rules against one token a step, the whole
answer's, on all four test sets (900 problems): of the rule alone, of the rule with the
default drafts, and of perfect drafts (for block-causal models), with 95 % bootstrap
intervals of the ratios. Every text must be that of the rule alone, in a program of its
own.

`--only ceilings` counts what an oracle that knows the coming states would take, on all
four sets: "order known", while it drafts tokens that the last prediction ranks first;
"and runner-ups", first or second; "perfect", any. What default drafts take more than
"order known" is lost to the order of commits; what that takes more than "perfect", to
tokens that the model cannot know yet.

`--only transfer` calibrates a table on 30 problems of each test set and counts the
calls of all sets with each, on problems behind those 30, against the set's own table.

`--only seconds` times decodes at batch 1 in alternating rounds, all four sets: a rule
alone, with fixed numbers of drafts, and with "auto", each with the default draft
function. Ratios are medians of paired rounds, with 95 % bootstrap intervals.
"""

import sys
from collections.abc import Sequence
from typing import Any

from bench.harness import report
from bench.harness.draft_decodes import decode, is_lossless, perfect_draft_calls
from bench.harness.draft_rules import (
    PUBLISHED,
    compare_ceilings,
    compare_policies,
    compare_seconds,
)
from bench.harness.draft_transfer import compare_transfer
from bench.harness.loading import LoadedModel, load_model
from bench.policies import total_calls
from jaxdave import policies
from jaxdave.demo_tasks import problem_sets
from jaxdave.drafting import text_drafts, tree
from jaxdave.drafting.guesses import with_guesses
from jaxdave.drafting.nested import nested
from jaxdave.engine.results import Completion

KINDS = ("trees", "hints", "policies", "ceilings", "transfer", "seconds")
DEFAULT_KINDS = KINDS[:2]


def compare_trees(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    num_drafts: int,
    temperature: float = 0.0,
    tokens_per_step: int = 1,
) -> dict[str, Any]:
    """Count the calls of nested drafts, of trees and of all subsets of a small block.

    Args:
        loaded: the model.
        prompts: token ids of the prompts.
        num_drafts: drafts of a call.
        temperature: temperature of the decodes.
        tokens_per_step: tokens that a step commits.

    Returns:
        A row of the table.
    """
    static, config = policies.static(tokens_per_step), loaded.config
    draft_fns = {
        "nested": nested,
        "tree": tree.tree_or_nested(
            loaded.tables, config, static, temperature=temperature
        ),
    }
    if config.block_length <= 4 and temperature == 0 and tokens_per_step == 1:
        draft_fns["subsets"] = tree.subsets(config.block_length)

    def decoded(draft, cap: int) -> list[Completion]:
        return decode(
            loaded, static, draft, num_drafts, cap, prompts, temperature=temperature
        )

    plain = decoded(nested, 1)
    table_row: dict[str, Any] = {"d": num_drafts, "static": total_calls(plain)}
    table_row["floor"] = sum(
        perfect_draft_calls(loaded, row, num_drafts, tokens_per_step) for row in plain
    )
    all_lossless = True
    for name, draft in draft_fns.items():
        rows = decoded(draft, num_drafts)
        table_row[name] = calls = total_calls(rows)
        all_lossless = all_lossless and is_lossless(plain, rows)
        table_row[f"{name}, saved"] = f"{1 - calls / table_row['nested']:.1%}"
    table_row["nested / floor"] = table_row["nested"] / table_row["floor"]
    return table_row | {"same text, none dearer": all_lossless}


def decode_answers(
    loaded: LoadedModel, policy, prompts: Sequence[Sequence[int]], num_drafts: int
) -> list[list[int]]:
    """Decode the answers without drafts, in the program that takes draft texts.

    Args:
        loaded: the model.
        policy: the policy.
        prompts: token ids of the prompts.
        num_drafts: drafts that the program is compiled for.

    Returns:
        Token ids of the answers, the end token included.
    """
    draft = with_guesses(nested, text_drafts.user_text, reads_text=True)
    rows = decode(loaded, policy, draft, num_drafts, 1, prompts)
    return [[*row.token_ids, loaded.config.stop_ids[0]] for row in rows]


def compare_draft_texts(
    loaded: LoadedModel, policy, problems: Sequence, num_drafts: int
) -> list[dict[str, Any]]:
    """Count the calls with draft texts, and where the answer is in the prompt.

    Args:
        loaded: the model.
        policy: the policy.
        problems: the problems.
        num_drafts: drafts of a call.

    Returns:
        Rows of the table.
    """
    prompts = loaded.encode_prompts(problems)
    base = tree.tree_or_nested(loaded.tables, loaded.config, policy)
    with_text = with_guesses(base, text_drafts.user_text, reads_text=True)
    right = decode_answers(loaded, policy, prompts, num_drafts)
    wrong = right[1:] + right[:1]
    half_right = [
        a[: len(a) // 2] + b[len(b) // 2 :] for a, b in zip(right, wrong, strict=True)
    ]
    texts = {"none": [[]] * len(prompts), "right": right, "half right": half_right}
    texts["wrong"] = wrong
    plain = decode(loaded, policy, with_text, num_drafts, 1, prompts, texts["none"])
    table = []
    for name, text in texts.items():
        rows = decode(loaded, policy, with_text, num_drafts, num_drafts, prompts, text)
        table.append(_draft_text_row(plain, name, rows))
    # The same question again, below its answer: the prompt is the draft text.
    repeated = [
        loaded.codec.encode_messages(
            [
                {"role": "user", "content": problem.prompt},
                {"role": "assistant", "content": problem.answer},
                {"role": "user", "content": problem.prompt},
            ]
        )
        for problem in problems
    ]
    plain = decode(loaded, policy, base, num_drafts, 1, repeated)
    for name, draft in (
        ("own", base),
        ("copied", with_guesses(base, text_drafts.prompt_lookup)),
    ):
        rows = decode(loaded, policy, draft, num_drafts, num_drafts, repeated)
        table.append(_draft_text_row(plain, f"copies, {name} drafts", rows))
    return [{"policy": policy.name, "d": num_drafts, **row} for row in table]


def _draft_text_row(
    plain: Sequence[Completion], name: str, drafted: Sequence[Completion]
) -> dict[str, Any]:
    return {
        "draft text": name,
        "without drafts": total_calls(plain),
        "calls": total_calls(drafted),
        "same text, none dearer": is_lossless(plain, drafted),
    }


def _prompts_of_all_sets(loaded: LoadedModel, limit: int) -> list[list[int]]:
    """Token ids of the first problems of each test set."""
    parts = (problem_sets.load(name)[:limit] for name in problem_sets.SETS)
    return loaded.encode_prompts([problem for part in parts for problem in part])


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--limit", type=int, default=30, help="problems of each set")
    parser.add_argument("--draft-steps", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=DEFAULT_KINDS)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--tokens-per-step", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=16, help="of --only seconds")
    args = parser.parse_args()
    if min(args.limit, args.rounds, args.tokens_per_step, *args.draft_steps) < 1:
        message = "--limit, --draft-steps, --tokens-per-step and --rounds: at least 1"
        print(message, file=sys.stderr)
        sys.exit(2)
    results, loaded = report.start_report(args.weights), load_model(args.weights)
    sets = ("words_test", "lists_test")
    problems = [p for name in sets for p in problem_sets.load(name)[: args.limit]]
    rows: list[dict[str, Any]] = []
    if "trees" in args.only:
        prompts = loaded.encode_prompts(problems)
        rows = [
            compare_trees(loaded, prompts, d, args.temperature, args.tokens_per_step)
            for d in args.draft_steps
        ]
        title = f"Calls by drafts, {args.weights}, {len(problems)} problems"
        title += f", temperature {args.temperature:g}, {args.tokens_per_step} a step"
        results.add_table(title, rows)
    if "hints" in args.only and args.temperature == 0:
        text_rows = []
        for policy in (policies.static(1), policies.left_to_right(1)):
            num_drafts = args.draft_steps[0]
            text_rows += compare_draft_texts(loaded, policy, problems, num_drafts)
        results.add_table(f"Calls by draft texts, {args.weights}", text_rows)
        rows = rows + text_rows
    if "policies" in args.only:
        prompts = _prompts_of_all_sets(loaded, args.limit)
        rule_rows = compare_policies(loaded, prompts, args.draft_steps)
        title = f"Calls by policies, {args.weights}, {len(prompts)} problems"
        results.add_table(title, rule_rows)
        results.add_table("Published figures, of other models", list(PUBLISHED))
        rows = rows + rule_rows
    if "ceilings" in args.only:
        prompts = _prompts_of_all_sets(loaded, args.limit)
        ceiling_rows = compare_ceilings(loaded, prompts, args.draft_steps)
        title = f"Calls of an oracle's drafts, {args.weights}, {len(prompts)} problems"
        results.add_table(title, ceiling_rows)
        rows = rows + ceiling_rows
    if "transfer" in args.only:
        transfer_rows = compare_transfer(loaded, args.draft_steps, args.limit)
        title = f"Calls by what was calibrated on, {args.weights}"
        results.add_table(title, transfer_rows)
    if "seconds" in args.only:
        prompts = _prompts_of_all_sets(loaded, args.limit)
        second_rows = compare_seconds(loaded, prompts, args.rounds)
        title = f"Seconds at batch 1, {args.weights}, {len(prompts)} problems"
        results.add_table(title, second_rows)
        rows = rows + second_rows
    if rows:  # calls by what was calibrated on make no claim
        all_lossless = all(row["same text, none dearer"] for row in rows)
        claim = report.Claim("the same text, and no row is dearer", all_lossless)
        results.claims.append(claim)
    results.finish(args.out)


if __name__ == "__main__":
    main()

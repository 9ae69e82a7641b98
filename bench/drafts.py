"""Network calls by kind of draft: nested, trees, all subsets, and draft texts.

    python -m bench.drafts [--weights llada-1m] [--limit 30] [--draft-steps 8 32]
        [--only trees hints] [--temperature 0.7]
    python -m bench.drafts --only policies --draft-steps 8 16 --limit 500
    python -m bench.drafts --only ceilings --limit 10

The policy decodes one token a step; at a temperature draft texts are left out. "floor"
is what perfect drafts would take: one call for the first token of a request (under a
cache rule: of a block) and one for every d more. Draft texts are the answer itself, its
first half before the end of another answer, and another answer; "copies" asks a
question again that the prompt has answered. Every text must be that of one draft a
call, in the same program, and no row may take more calls.

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
"""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from bench.harness import report
from bench.harness.loading import LoadedModel, load_model
from bench.harness.oracle_drafts import decode_path, decode_with_oracle, oracle
from bench.harness.paired import ratio_of_sums
from bench.policies import total_calls
from jaxdave import policies
from jaxdave.demo_tasks import problem_sets
from jaxdave.drafting import text_drafts, tree
from jaxdave.drafting.guesses import with_guesses
from jaxdave.drafting.nested import nested
from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion

BATCH_SIZE = 10
MAX_NEW_TOKENS = 64
KINDS = ("trees", "hints", "policies", "ceilings")
DEFAULT_KINDS = KINDS[:2]
RULES = {
    "static": policies.static(1),
    "threshold 0.9": policies.threshold(0.9),
    "entropy bounded": policies.entropy_bounded(),
}
PUBLISHED = (
    {
        "method": "FreeDave, arXiv 2510.00294",
        "models": "Dream",
        "against": "one token a step",
        "reported": "3.78 times fewer calls",
    },
    {
        "method": "SSD, arXiv 2510.04147",
        "models": "not looked up",
        "against": "one token a step",
        "reported": "3.46 times as fast",
    },
    {
        "method": "Spiffy, arXiv 2509.18085 v4",
        "models": "LLaDA, Dream, SDAR",
        "against": "one token a step; wraps a threshold",
        "reported": "up to 8.6 times fewer calls, 6.3 times as fast",
    },
)
"""What their authors report, of their models and tasks."""


def make_decoder(
    loaded: LoadedModel, policy, draft, slots: int, temperature: float = 0.0
) -> decoders.Decoder:
    """The decoder of a count.

    Args:
        loaded: the model.
        policy: the policy.
        draft: the draft function.
        slots: drafts that the program is compiled for.
        temperature: temperature of the decode.

    Returns:
        The decoder.
    """
    return decoders.freedave(
        loaded.config,
        policy,
        draft_steps=slots,
        draft=draft,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=temperature,
    )


def decode(
    loaded: LoadedModel,
    policy,
    draft,
    slots: int,
    num_drafts: int,
    prompts: Sequence[Sequence[int]],
    draft_texts: Sequence[Sequence[int]] | None = None,
    temperature: float = 0.0,
) -> list[Completion]:
    """Decode prompts in batches.

    Args:
        loaded: the model.
        policy: the policy.
        draft: the draft function.
        slots: drafts that the program is compiled for.
        num_drafts: cap on the drafts of a call.
        prompts: token ids of the prompts.
        draft_texts: token ids of an expected answer per prompt.
        temperature: temperature of the decode.

    Returns:
        One row per prompt.
    """
    decoder = make_decoder(loaded, policy, draft, slots, temperature)
    decoder = dataclasses.replace(decoder, max_num_drafts=min(num_drafts, slots))
    rows: list[Completion] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        rows += generate(
            decoder,
            loaded.params,
            prompts[batch],
            draft_text=draft_texts and draft_texts[batch],
        ).completions
    return rows


def perfect_draft_calls(loaded: LoadedModel, row: Completion, num_drafts: int) -> int:
    """Count the calls of a row if all its drafts were right.

    Args:
        loaded: the model.
        row: the row as decoded without drafts.
        num_drafts: drafts of a call.

    Returns:
        Calls, the prefill included.
    """
    causal = loaded.config.attention == "block_causal"
    # Under a cache rule every block begins with a refresh, which commits one token.
    stretch = row.steps if causal else loaded.config.block_length
    starts = range(0, row.steps, stretch)
    return sum(
        1 + -(-(min(stretch, row.steps - start) - 1) // num_drafts) for start in starts
    )


def is_lossless(plain: Sequence[Completion], drafted: Sequence[Completion]) -> bool:
    """Compare decodes without and with drafts.

    Args:
        plain: rows decoded without drafts.
        drafted: the same rows with drafts.

    Returns:
        True if all texts are the same and no row takes more calls with drafts, rechecks
        aside.
    """
    pairs = list(zip(plain, drafted, strict=True))
    same = all(a.token_ids == b.token_ids for a, b in pairs)
    # Rechecks come by chance of near ties.
    return same and all(
        b.nfe.total - b.nfe.recheck <= a.nfe.total - a.nfe.recheck for a, b in pairs
    )


def compare_trees(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    num_drafts: int,
    temperature: float = 0.0,
) -> dict[str, Any]:
    """Count the calls of nested drafts, of trees and of all subsets of a small block.

    Args:
        loaded: the model.
        prompts: token ids of the prompts.
        num_drafts: drafts of a call.
        temperature: temperature of the decodes.

    Returns:
        A row of the table.
    """
    static, config = policies.static(1), loaded.config
    draft_fns = {
        "nested": nested,
        "tree": tree.tree_or_nested(
            loaded.tables, config, static, temperature=temperature
        ),
    }
    if config.block_length <= 4 and temperature == 0:
        draft_fns["subsets"] = tree.subsets(config.block_length)

    def decoded(draft, cap: int) -> list[Completion]:
        return decode(
            loaded, static, draft, num_drafts, cap, prompts, temperature=temperature
        )

    plain = decoded(nested, 1)
    table_row: dict[str, Any] = {"d": num_drafts, "static": total_calls(plain)}
    table_row["floor"] = sum(
        perfect_draft_calls(loaded, row, num_drafts) for row in plain
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


def compare_policies(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], draft_steps: Sequence[int]
) -> list[dict[str, Any]]:
    """Count the calls of rules, alone and with drafts, against one token a step.

    Args:
        loaded: the model.
        prompts: token ids of the prompts.
        draft_steps: numbers of drafts.

    Returns:
        Rows of the table.
    """
    is_causal = loaded.config.attention == "block_causal"
    static_calls: list[int] = []
    table = []
    for name, policy in RULES.items():
        plain = decode(loaded, policy, nested, 1, 1, prompts)
        calls = [row.nfe.total for row in plain]
        static_calls = static_calls or calls
        for d in draft_steps:
            draft = tree.tree_or_nested(loaded.tables, loaded.config, policy)
            rows = decode(loaded, policy, draft, d, d, prompts)
            drafted = [row.nfe.total for row in rows]
            floor = [perfect_draft_calls(loaded, row, d) for row in plain]
            table_row = {
                "policy": name,
                "d": d,
                "alone": sum(calls),
                "drafted": sum(drafted),
                "perfect": sum(floor) if is_causal else "",
                "fewer than static": str(ratio_of_sums(static_calls, drafted)),
                "perfect, fewer": sum(static_calls) / sum(floor) if is_causal else "",
                "same text, none dearer": is_lossless(plain, rows),
            }
            print(table_row, flush=True)
            table.append(table_row)
    return table


def compare_ceilings(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], draft_steps: Sequence[int]
) -> list[dict[str, Any]]:
    """Count the calls of drafts by oracles that know more and more.

    Args:
        loaded: the model.
        prompts: token ids of the prompts.
        draft_steps: numbers of drafts.

    Returns:
        Rows of the table.
    """
    oracles = {"order known": 1, "and runner-ups": 2, "perfect": None}
    table = []
    for name, policy in RULES.items():
        plain = decode(loaded, policy, nested, 1, 1, prompts)
        path_decoder = make_decoder(loaded, policy, nested, max(draft_steps))
        paths = [decode_path(path_decoder, loaded.params, list(p)) for p in prompts]
        for d in draft_steps:
            draft = tree.tree_or_nested(loaded.tables, loaded.config, policy)
            drafted = decode(loaded, policy, draft, d, d, prompts)
            all_lossless = is_lossless(plain, drafted)
            table_row: dict[str, Any] = {"policy": name, "d": d}
            table_row |= {"alone": total_calls(plain), "default": total_calls(drafted)}
            for label, num_ranks in oracles.items():
                decoder = make_decoder(loaded, policy, oracle(num_ranks), d)
                rows = [
                    decode_with_oracle(decoder, loaded.params, list(prompt), path)
                    for prompt, path in zip(prompts, paths, strict=True)
                ]
                all_lossless = all_lossless and is_lossless(plain, rows)
                table_row[label] = calls = total_calls(rows)
                table_row[f"{label}, saved"] = f"{1 - calls / table_row['default']:.1%}"
            table_row["same text, none dearer"] = all_lossless
            print(table_row, flush=True)
            table.append(table_row)
    return table


def _draft_text_row(
    plain: Sequence[Completion], name: str, drafted: Sequence[Completion]
) -> dict[str, Any]:
    return {
        "draft text": name,
        "without drafts": total_calls(plain),
        "calls": total_calls(drafted),
        "same text, none dearer": is_lossless(plain, drafted),
    }


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--limit", type=int, default=30, help="problems of each set")
    parser.add_argument("--draft-steps", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=DEFAULT_KINDS)
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    if args.limit < 1 or min(args.draft_steps) < 1:
        print("--limit and --draft-steps must be at least 1", file=sys.stderr)
        sys.exit(2)
    results, loaded = report.start_report(args.weights), load_model(args.weights)
    sets = ("words_test", "lists_test")
    problems = [p for name in sets for p in problem_sets.load(name)[: args.limit]]
    rows: list[dict[str, Any]] = []
    if "trees" in args.only:
        prompts = loaded.encode_prompts(problems)
        rows = [
            compare_trees(loaded, prompts, d, args.temperature)
            for d in args.draft_steps
        ]
        title = f"Calls by drafts, {args.weights}, {len(problems)} problems"
        title += f", temperature {args.temperature:g}"
        results.add_table(title, rows)
    if "hints" in args.only and args.temperature == 0:
        text_rows = []
        for policy in (policies.static(1), policies.left_to_right(1)):
            num_drafts = args.draft_steps[0]
            text_rows += compare_draft_texts(loaded, policy, problems, num_drafts)
        results.add_table(f"Calls by draft texts, {args.weights}", text_rows)
        rows = rows + text_rows
    if "policies" in args.only:
        parts = (problem_sets.load(name)[: args.limit] for name in problem_sets.SETS)
        every = [p for part in parts for p in part]
        prompts = loaded.encode_prompts(every)
        rule_rows = compare_policies(loaded, prompts, args.draft_steps)
        title = f"Calls by policies, {args.weights}, {len(every)} problems"
        results.add_table(title, rule_rows)
        results.add_table("Published figures, of other models", list(PUBLISHED))
        rows = rows + rule_rows
    if "ceilings" in args.only:
        parts = (problem_sets.load(name)[: args.limit] for name in problem_sets.SETS)
        prompts = loaded.encode_prompts([p for part in parts for p in part])
        ceiling_rows = compare_ceilings(loaded, prompts, args.draft_steps)
        title = f"Calls of an oracle's drafts, {args.weights}, {len(prompts)} problems"
        results.add_table(title, ceiling_rows)
        rows = rows + ceiling_rows
    all_lossless = all(row["same text, none dearer"] for row in rows)
    claim = report.Claim("the same text, and no row is dearer", all_lossless)
    results.claims.append(claim)
    results.finish(args.out)


if __name__ == "__main__":
    main()

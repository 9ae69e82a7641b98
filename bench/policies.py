"""Every policy on a demo model: right answers, calls without and with drafts.

    python -m bench.policies [--weights llada-1m] [--limit 60] [--draft-steps 4 8]
        [--cache none|prefix|dual] [--draft nested|tree] [--only static threshold]

Asserts that, under every policy, the text is identical with and without drafts, and
that drafts never cost a call. Steps of scheduled policies are set so that they commit a
block in half as many steps as it has tokens. All numbers of drafts run in one program,
compiled for the largest; a block-causal window is as long as those need, so fewer
drafts can take fewer calls there than in a program of their own.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from bench import ceilings
from bench.harness import report
from bench.harness.loading import LoadedModel, load_model
from jaxdave import policies
from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import is_correct
from jaxdave.drafting import tree
from jaxdave.drafting.nested import nested
from jaxdave.engine import decoders
from jaxdave.engine.decode_config import CACHE_RULES
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion

BATCH_SIZE = 10
SETS = ("words_test", "lists_test")


def policy_text(name: str, block_length: int) -> str:
    """Write a policy as `--policy` takes it.

    Args:
        name: name of the policy.
        block_length: tokens of a block.

    Returns:
        The name; with half a block's length as the number of steps, if it has steps.
    """
    entry = next(e for e in policies.listing() if e.name == name)
    steps = max(1, block_length // 2)
    return f"{name}:steps={steps}" if "steps" in entry.parameters else name


def decode(
    loaded: LoadedModel,
    text: str,
    prompts: Sequence[Sequence[int]],
    num_drafts: int,
    args: argparse.Namespace,
) -> list[Completion]:
    """Decode prompts in batches, in one program for all numbers of drafts.

    Args:
        loaded: the model.
        text: the policy, as `--policy` takes it.
        prompts: token ids of the prompts.
        num_drafts: cap on the drafts of a call.
        args: the command line.

    Returns:
        One row per prompt.
    """
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
    decoder = dataclasses.replace(decoder, max_num_drafts=num_drafts)
    rows: list[Completion] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        rows += generate(decoder, loaded.params, batch).completions
    return rows


def measure_policy(
    loaded: LoadedModel, text: str, problems: Sequence, args: argparse.Namespace
) -> dict[str, Any]:
    """Decode all problems under a policy, without and with drafts.

    Args:
        loaded: the model.
        text: the policy, as `--policy` takes it.
        problems: the problems.
        args: the command line.

    Returns:
        The policy's row of the table.
    """
    prompts = loaded.encode_prompts(problems)
    plain = decode(loaded, text, prompts, 1, args)
    texts = [loaded.codec.decode(row.token_ids) for row in plain]
    right = sum(is_correct(p, t) for p, t in zip(problems, texts, strict=True))
    table_row: dict[str, Any] = {
        "policy": text,
        "right": f"{right / len(problems):.1%}",
        "calls": total_calls(plain),
        "tokens/call": total_tokens(plain) / total_calls(plain),
        "identical": 0,
        "dearer": 0,
    }
    for d in args.draft_steps:
        drafted = decode(loaded, text, prompts, d, args)
        table_row[f"calls, d={d}"] = total_calls(drafted)
        table_row[f"times fewer, d={d}"] = total_calls(plain) / total_calls(drafted)
        table_row[f"tokens/call, d={d}"] = total_tokens(drafted) / total_calls(drafted)
        pairs = list(zip(plain, drafted, strict=True))
        table_row["identical"] += sum(a.token_ids == b.token_ids for a, b in pairs)
        table_row["dearer"] += sum(a.nfe.total < b.nfe.total for a, b in pairs)
    num_decodes = len(prompts) * len(args.draft_steps)
    table_row["identical"] = f"{table_row['identical']} of {num_decodes}"
    print(table_row, flush=True)
    return table_row


def total_calls(rows: Sequence[Completion]) -> int:
    """Count the network calls of all rows.

    Args:
        rows: decoded rows.

    Returns:
        Calls, prefills included.
    """
    return sum(row.nfe.total for row in rows)


def total_tokens(rows: Sequence[Completion]) -> int:
    """Count the answer tokens of all rows.

    Args:
        rows: decoded rows.

    Returns:
        Tokens up to the end token.
    """
    return sum(row.valid_tokens for row in rows)


def parse_arguments() -> argparse.Namespace:
    """Parse the command line.

    Returns:
        The options.
    """
    parser = report.argument_parser(__doc__)
    names = [entry.name for entry in policies.listing()]
    parser.add_argument("--limit", type=int, default=30, help="problems of each set")
    parser.add_argument("--draft-steps", type=int, nargs="+", default=[8])
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--draft", choices=("nested", "tree"), default="nested")
    parser.add_argument("--cache", choices=CACHE_RULES, help="for full attention: dual")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    return parser.parse_args()


def check_settings(loaded: LoadedModel, args: argparse.Namespace) -> None:
    """Check that decoders can be built with the settings.

    Args:
        loaded: the model.
        args: the command line.

    Raises:
        SystemExit: with status 2 and a sentence on stderr, if none can.
    """
    try:
        for d in args.draft_steps:
            decoders.freedave(
                loaded.config,
                draft_steps=d,
                cache=args.cache,
                max_new_tokens=args.max_new_tokens,
            )
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def main() -> None:
    """Run the benchmark."""
    args = parse_arguments()
    results, loaded = report.start_report(args.weights), load_model(args.weights)
    check_settings(loaded, args)
    problems = [p for name in SETS for p in problem_sets.load(name)[: args.limit]]
    texts = [policy_text(name, loaded.config.block_length) for name in args.only]
    rows = [measure_policy(loaded, text, problems, args) for text in texts]
    drafts = ", ".join(map(str, args.draft_steps))
    results.add_table(f"Policies on {args.weights}, drafts d={drafts}", rows)
    results.add_table(
        "Ceilings for a policy of one token a step, all drafts right",
        [
            ceilings.ceiling_row(loaded.config, args.cache, args.max_new_tokens, d)
            for d in args.draft_steps
        ],
    )
    total = len(problems) * len(args.draft_steps)
    same = all(row["identical"] == f"{total} of {total}" for row in rows)
    results.claims.append(report.Claim("drafts never change a policy's text", same))
    cheap = all(row["dearer"] == 0 for row in rows)
    results.claims.append(report.Claim("drafts never cost a call", cheap))
    results.finish(args.out)


if __name__ == "__main__":
    main()

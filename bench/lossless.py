"""Is the text the same? FreeDave against its policy, decode by decode.

    python -m bench.lossless [--decodes 10900] [--numerics guarded|exact|fast]
        [--kept FILE]

One decode is one request under one policy, temperature, draft length and batch, decoded
with drafts and without. Under `exact` plain decoding is the same compiled program with
a cap of one draft, and every text must be identical; under `fast` it is the one-draft
program, and the share of identical texts is measured. A small part of them all is drawn
from every second case, as most of its time would go into compiling otherwise. With
`--kept` a case that has been swept is written down, and a run that was cut off goes on
after it.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from bench.harness import common
from jaxdave import policies
from jaxdave.core.config import ModelConfig
from jaxdave.core.policy_api import Policy
from jaxdave.demo_tasks import problem_sets
from jaxdave.engine import decoders
from jaxdave.engine.bitwise_check import slot_probe
from jaxdave.engine.generation import generate
from jaxdave.models import transformer
from jaxdave.runtime.files import replace_file

SETS = ("words_test", "words_long", "words_names", "lists_test")
ALL = 10900
PART = 0.25
"""Of fewer than this share of all decodes only every second case is drawn from."""
COLD_HOT = (0.0, 0.7)
GROUP = (8, 1, 1)
"""Rows of consecutive batches: every draw mixes batches of eight and of one."""


class Case(NamedTuple):
    """One program: where its prompts come from, and the settings of the decode."""

    source: str
    policy: Policy
    draft_steps: int
    temperature: float
    settings: dict[str, Any]

    @property
    def decodes(self) -> int:
        """How many the whole sweep makes of it."""
        return 900 if self.source == "demo" else 350


def demo_cases() -> list[Case]:
    """The demo model: 900 prompts each; every second case has every d, and both T."""
    plain = [
        Case("demo", policies.static(1), d, t, {})
        for d, both in zip((2, 4, 8, 16), (COLD_HOT, COLD_HOT[::-1]) * 2, strict=True)
        for t in both
    ]
    return [*plain, Case("demo", policies.threshold(0.9), 8, 0.0, {})]


def random_cases() -> list[Case]:
    """Tiny random models: 350 prompts each over seven models."""
    one, two, ltr = policies.static(1), policies.static(2), policies.left_to_right(1)
    loose = policies.threshold(0.3)
    rows = [
        (1, one, 8, 0.0, {}),
        (2, one, 4, 0.7, {}),
        (4, two, 8, 0.0, {}),
        (8, loose, 16, 0.7, {}),
        (8, one, 16, 0.0, {}),
        (4, ltr, 2, 0.0, {}),
        (4, loose, 8, 0.7, {"top_k": 5}),
        (32, one, 8, 0.7, {"top_p": 0.9}),
    ]
    return [
        Case(f"random, block {block}", policy, d, t, {**more, "block_length": block})
        for block, policy, d, t, more in rows
    ]


def tiny_config() -> ModelConfig:
    """A transformer small enough to draw thousands of decodes from."""
    return ModelConfig(
        name="tiny", family="sdar", num_layers=2, hidden=32, inter=64, heads=4,
        kv_heads=2, head_dim=8, rotary_dim=8, vocab_rows=40, vocab_size=37, mask_id=36,
        pad_id=35, stop_ids=(34,), qk_norm=True, rope_theta=1e4, max_positions=512,
    )  # fmt: skip


@functools.cache
def tiny_params(config: ModelConfig, seed: int) -> Any:
    """Random weights, scaled up so that predictions vary with what is committed."""
    params = transformer.init(config, seed)
    return jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, params)


def chosen_cases(decodes: int) -> tuple[list[Case], int]:
    """The cases of about so many decodes, and one in how many prompts they take."""
    cases = [*demo_cases(), *random_cases()]
    cases = cases[::2] if decodes < PART * ALL else cases
    return cases, max(1, round(sum(case.decodes for case in cases) / decodes))


def batches(prompts: Sequence, step: int) -> Iterator[list]:
    """Every `step`-th prompt, in batches of the sizes of `GROUP` in turn."""
    chosen, turn = list(prompts)[::step], 0
    while chosen:
        size = GROUP[turn % len(GROUP)]
        if len(chosen) < size:
            size = 1
        yield chosen[:size]
        chosen, turn = chosen[size:], turn + 1


def draws(case: Case, loaded: common.Loaded, prompts, step: int) -> Iterator[tuple]:
    """(config, params, batch of prompts, most new tokens) of a case."""
    if case.source == "demo":
        for batch in batches(prompts, step):
            yield loaded.config, loaded.params, batch, 48
        return
    config = tiny_config()
    for seed in range(7):
        rng = np.random.default_rng(seed)
        drawn = [
            rng.integers(0, 34, rng.integers(1, 30)).tolist()
            for _ in range(max(1, 50 // step))
        ]
        for batch in batches(drawn, 1):
            yield config, tiny_params(config, seed), batch, 16


def compare(case: Case, numerics: str, config, params, batch, most: int):
    """Rows of the plain decode and of the drafted one."""
    settings = {
        "max_new_tokens": most,
        "temperature": case.temperature,
        "numerics": numerics,
        **case.settings,
    }
    drafted = decoders.freedave(
        config, case.policy, draft_steps=case.draft_steps, **settings
    )
    slots = case.draft_steps if drafted.numerics == "exact" else 1
    plain = decoders.freedave(config, case.policy, draft_steps=slots, **settings)
    plain = plain.undrafted()
    pair = [generate(d, params, batch, seed=len(batch[0])) for d in (plain, drafted)]
    return pair[0].completions, pair[1].completions


def sweep(case: Case, numerics: str, loaded, prompts, step: int, tick) -> dict:
    """The table row of one case."""
    same = total = plain_calls = drafted_calls = 0
    first = ""
    for drawn in draws(case, loaded, prompts, step):
        for a, b in zip(*compare(case, numerics, *drawn), strict=True):
            equal = (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
            if not equal and not first:
                pairs = zip(a.token_ids, b.token_ids, strict=False)
                first = str(
                    next((i for i, (x, y) in enumerate(pairs) if x != y), "end")
                )
            same, total = same + equal, total + 1
            plain_calls += a.nfe.total
            drafted_calls += b.nfe.total
        tick(len(drawn[2]))
    return {
        "model": case.source,
        "policy": case.policy.name,
        "d": case.draft_steps,
        "T": case.temperature,
        "filter": ", ".join(f"{k}={v}" for k, v in case.settings.items() if "top" in k),
        "decodes": total,
        "identical": same,
        "first difference": first,
        "calls plain": plain_calls,
        "calls drafted": drafted_calls,
    }


def once(kept: Path | None, key: str, make: Callable[[], dict]) -> dict:
    """The row of a case: read from the lines of `kept`, or made and added to them."""
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    found = dict(json.loads(line) for line in lines)
    if key not in found:
        found[key] = make()
        if kept:
            lines.append(json.dumps([key, found[key]]))
            replace_file(kept, "\n".join(lines).encode())
    return found[key]


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--decodes", type=int, default=ALL, help="about how many")
    parser.add_argument("--numerics", choices=decoders.NUMERICS, default="guarded")
    parser.add_argument("--kept", type=Path, help="file of the cases done so far")
    args = parser.parse_args()
    if args.decodes < 1:
        parser.error(f"--decodes {args.decodes} must be at least 1")
    report = common.begin(args.weights)
    loaded = common.load(args.weights)
    prompts = loaded.ids([p for name in SETS for p in problem_sets.load(name)])
    cases, step = chosen_cases(args.decodes)
    rows = []
    with Progress(console=Console(file=sys.stderr)) as progress:
        total = sum(case.decodes for case in cases) / step
        task = progress.add_task("decodes", total=total)
        for case in cases:
            tick = lambda n: progress.advance(task, n)  # noqa: E731
            swept = sweep, case, args.numerics, loaded, prompts, step, tick
            make = functools.partial(*swept)
            settings = args.weights, args.numerics, step
            names = case.source, case.policy.name, *case[2:], *settings
            rows.append(once(args.kept, repr(names), make))
    total, same = (sum(row[k] for row in rows) for k in ("decodes", "identical"))
    if args.numerics == "exact":
        probe = slot_probe(
            decoders.freedave(loaded.config, draft_steps=8).spec, loaded.params
        )
        report.machine["slot_probe"] = probe._asdict()
        report.claims.append(common.Claim(f"slots agree: {probe}", probe.holds))
    report.table(f"Identical texts under {args.numerics} numerics", rows)
    share = f"{same} of {total} texts identical ({same / total:.4%})"
    print("\n" + share)
    if args.numerics != "fast":
        report.claims.append(
            common.Claim(f"drafts never change the text: {share}", same == total)
        )
    report.claims.append(
        common.Claim(
            "drafts never cost a call",
            all(row["calls drafted"] <= row["calls plain"] for row in rows),
        )
    )
    report.finish(args.out)


if __name__ == "__main__":
    main()

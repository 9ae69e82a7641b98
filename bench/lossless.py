"""Losslessness: the text with drafts against the text without, decode by decode.

    python -m bench.lossless [--decodes 10900] [--numerics guarded|exact|fast]
        [--kept FILE]

A decode is one request under one policy, temperature, draft length and batch, decoded
with drafts and without. Under `exact` decoding without drafts is the same compiled
program with a cap of one draft, and every text must be identical. Under `guarded` it is
the one-draft program, and every text must be identical, too. Under `fast` the share of
identical texts is measured.

If few decodes are asked for, they are taken from every second or fourth case, as most
of the time would go into compiling otherwise. With `--kept` every finished case is
written to a file, and a run that was cut off continues after the last of them.
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

from bench.harness import report
from bench.harness.loading import LoadedModel, load_model
from jaxdave import policies
from jaxdave.core.config import ModelConfig
from jaxdave.core.policy_api import Policy
from jaxdave.demo_tasks import problem_sets
from jaxdave.engine import decoders
from jaxdave.engine.bitwise_check import slot_probe
from jaxdave.engine.generation import generate
from jaxdave.engine.results import Completion
from jaxdave.models import transformer
from jaxdave.runtime.files import replace_file

SETS = ("words_test", "words_long", "words_names", "lists_test")

NUM_DECODES = 10900
"""Decodes of the whole sweep."""

ALL_CASES_SHARE = 0.25
"""Smallest share of the whole sweep that is taken from all cases."""

HALF_CASES_SHARE = 0.025
"""Smallest share that is taken from every second case."""

BATCH_SIZES = (8, 1, 1)
"""Sizes of consecutive batches: every sample mixes batches of eight and of one."""

NUM_RANDOM_MODELS, PROMPTS_PER_RANDOM_MODEL = 7, 50
_TEMPERATURES = (0.0, 0.7)


class Case(NamedTuple):
    """A compiled program with the source of its prompts.

    Attributes:
        source: "demo", or the name of a family of random models.
        policy: the policy.
        draft_steps: drafts of a call.
        temperature: sampling temperature.
        settings: further keyword arguments of the decoder.
    """

    source: str
    policy: Policy
    draft_steps: int
    temperature: float
    settings: dict[str, Any]

    @property
    def num_decodes(self) -> int:
        """Decode of the case in the whole sweep."""
        if self.source == "demo":
            return 900
        return NUM_RANDOM_MODELS * PROMPTS_PER_RANDOM_MODEL


def demo_cases() -> list[Case]:
    """List the cases of the demo model, 900 prompts each.

    Returns:
        The cases, ordered so that every second one has every draft length, and both
        temperatures.
    """
    static_cases = [
        Case("demo", policies.static(1), d, temperature, {})
        for d, temperatures in zip(
            (2, 4, 8, 16), (_TEMPERATURES, _TEMPERATURES[::-1]) * 2, strict=True
        )
        for temperature in temperatures
    ]
    return [*static_cases, Case("demo", policies.threshold(0.9), 8, 0.0, {})]


def random_cases() -> list[Case]:
    """List the cases of tiny random models, 350 prompts each over seven models.

    Returns:
        The cases: several policies, block lengths and filters.
    """
    static_1, static_2 = policies.static(1), policies.static(2)
    left_to_right, threshold = policies.left_to_right(1), policies.threshold(0.3)
    rows = [
        (1, static_1, 8, 0.0, {}),
        (2, static_1, 4, 0.7, {}),
        (4, static_2, 8, 0.0, {}),
        (8, threshold, 16, 0.7, {}),
        (8, static_1, 16, 0.0, {}),
        (4, left_to_right, 2, 0.0, {}),
        (4, threshold, 8, 0.7, {"top_k": 5}),
        (32, static_1, 8, 0.7, {"top_p": 0.9}),
    ]
    return [
        Case(f"random, block {block}", policy, d, t, {**more, "block_length": block})
        for block, policy, d, t, more in rows
    ]


def tiny_config() -> ModelConfig:
    """Build the config of a transformer small enough for thousands of decodes.

    Returns:
        The config.
    """
    return ModelConfig(
        name="tiny",
        family="sdar",
        num_layers=2,
        hidden=32,
        inter=64,
        heads=4,
        kv_heads=2,
        head_dim=8,
        rotary_dim=8,
        vocab_rows=40,
        vocab_size=37,
        mask_id=36,
        pad_id=35,
        stop_ids=(34,),
        qk_norm=True,
        rope_theta=1e4,
        max_positions=512,
    )


@functools.cache
def tiny_params(config: ModelConfig, seed: int) -> Any:
    """Initialise a tiny model, scaled up so that its predictions vary with its input.

    Args:
        config: the model.
        seed: seed of the initialisation.

    Returns:
        The parameters; kept, as each initialisation compiles for seconds.
    """
    params = transformer.init(config, seed)
    return jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, params)


def select_cases(num_decodes: int) -> tuple[list[Case], int]:
    """Select the cases for a sweep of about so many decodes.

    Args:
        num_decodes: decodes to make, at least 1.

    Returns:
        The cases, and the step n with which every n-th of their prompts is taken.
    """
    cases = [*demo_cases(), *random_cases()]
    if num_decodes < ALL_CASES_SHARE * NUM_DECODES:
        cases = cases[:: 2 if num_decodes >= HALF_CASES_SHARE * NUM_DECODES else 4]
    step = round(sum(case.num_decodes for case in cases) / num_decodes)
    return cases, max(1, step)


def batches(prompts: Sequence, step: int) -> Iterator[list]:
    """Split prompts into batches of the sizes of `BATCH_SIZES` in turn.

    Args:
        prompts: the prompts.
        step: take every `step`-th of them.

    Yields:
        Batches; the last prompts come one by one.
    """
    rest, turn = list(prompts)[::step], 0
    while rest:
        size = BATCH_SIZES[turn % len(BATCH_SIZES)]
        if len(rest) < size:
            size = 1
        yield rest[:size]
        rest, turn = rest[size:], turn + 1


def case_batches(
    case: Case, loaded: LoadedModel, prompts: Sequence, step: int
) -> Iterator[tuple]:
    """Draw the batches of a case.

    Args:
        case: the case.
        loaded: the demo model.
        prompts: the demo's prompts.
        step: take every `step`-th prompt.

    Yields:
        (config, params, batch of prompts, max_new_tokens).
    """
    if case.source == "demo":
        for batch in batches(prompts, step):
            yield loaded.config, loaded.params, batch, 48
        return
    config = tiny_config()
    for seed in range(NUM_RANDOM_MODELS):
        rng = np.random.default_rng(seed)
        random_prompts = [
            rng.integers(0, 34, rng.integers(1, 30)).tolist()
            for _ in range(max(1, PROMPTS_PER_RANDOM_MODEL // step))
        ]
        for batch in batches(random_prompts, 1):
            yield config, tiny_params(config, seed), batch, 16


def decode_both(
    case: Case,
    numerics: str,
    config: ModelConfig,
    params: Any,
    batch: list,
    max_new_tokens: int,
) -> tuple[list[Completion], list[Completion]]:
    """Decode a batch without drafts and with them.

    Args:
        case: policy and settings.
        numerics: "guarded", "exact" or "fast".
        config: the model.
        params: its parameters.
        batch: token ids of the prompts.
        max_new_tokens: length of the answers.

    Returns:
        The rows without drafts, and the rows with them.
    """
    settings = {
        "max_new_tokens": max_new_tokens,
        "temperature": case.temperature,
        "numerics": numerics,
        **case.settings,
    }
    drafted = decoders.freedave(
        config, case.policy, draft_steps=case.draft_steps, **settings
    )
    # Exact numerics promise equal bits within one program, so there the decode without
    # drafts must be the same program with a cap.
    slots = case.draft_steps if drafted.numerics == "exact" else 1
    plain = decoders.freedave(config, case.policy, draft_steps=slots, **settings)
    plain = plain.undrafted()
    plain_rows, drafted_rows = (
        list(generate(decoder, params, batch, seed=len(batch[0])).completions)
        for decoder in (plain, drafted)
    )
    return plain_rows, drafted_rows


def sweep_case(
    case: Case,
    numerics: str,
    loaded: LoadedModel,
    prompts: Sequence,
    step: int,
    on_progress: Callable[[int], None],
) -> dict[str, Any]:
    """Make and compare all decodes of a case.

    Args:
        case: the case.
        numerics: "guarded", "exact" or "fast".
        loaded: the demo model.
        prompts: the demo's prompts.
        step: take every `step`-th prompt.
        on_progress: called with the number of decodes after every batch.

    Returns:
        The case's row of the table.
    """
    identical = total = plain_calls = drafted_calls = 0
    first_difference = ""
    for config, params, batch, max_new_tokens in case_batches(
        case, loaded, prompts, step
    ):
        both = decode_both(case, numerics, config, params, batch, max_new_tokens)
        for a, b in zip(*both, strict=True):
            is_equal = (a.token_ids, a.finish_reason) == (b.token_ids, b.finish_reason)
            if not is_equal and not first_difference:
                first_difference = _first_difference(a.token_ids, b.token_ids)
            identical, total = identical + is_equal, total + 1
            plain_calls += a.nfe.total
            drafted_calls += b.nfe.total
        on_progress(len(batch))
    return {
        "model": case.source,
        "policy": case.policy.name,
        "d": case.draft_steps,
        "T": case.temperature,
        "filter": ", ".join(f"{k}={v}" for k, v in case.settings.items() if "top" in k),
        "decodes": total,
        "identical": identical,
        "first difference": first_difference,
        "calls plain": plain_calls,
        "calls drafted": drafted_calls,
    }


def _first_difference(a: Sequence[int], b: Sequence[int]) -> str:
    """The first index at which two texts differ, "end" if one begins with the other."""
    pairs = enumerate(zip(a, b, strict=False))
    return str(next((index for index, (x, y) in pairs if x != y), "end"))


def read_or_compute(path: Path | None, key: str, compute: Callable[[], dict]) -> dict:
    """Read the row of a case from the file of finished cases, or compute and add it.

    Args:
        path: the file, a JSON list [key, row] a line; None keeps nothing.
        key: what the row is of.
        compute: computes the row.

    Returns:
        The row.
    """
    lines = path.read_text().splitlines() if path and path.exists() else []
    rows = dict(json.loads(line) for line in lines)
    if key not in rows:
        rows[key] = compute()
        if path:
            lines.append(json.dumps([key, rows[key]]))
            replace_file(path, "\n".join(lines).encode())
    return rows[key]


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument(
        "--decodes", type=int, default=NUM_DECODES, help="about how many"
    )
    parser.add_argument("--numerics", choices=decoders.NUMERICS, default="guarded")
    parser.add_argument("--kept", type=Path, help="file of the cases done so far")
    args = parser.parse_args()
    if args.decodes < 1:
        parser.error(f"--decodes {args.decodes} must be at least 1")
    results = report.start_report(args.weights)
    loaded = load_model(args.weights)
    prompts = loaded.encode_prompts([p for s in SETS for p in problem_sets.load(s)])
    cases, step = select_cases(args.decodes)
    rows = []
    with Progress(console=Console(file=sys.stderr)) as progress:
        total = sum(case.num_decodes for case in cases) / step
        task = progress.add_task("decodes", total=total)

        def on_progress(count: int) -> None:
            progress.advance(task, count)

        for case in cases:
            compute = functools.partial(
                sweep_case, case, args.numerics, loaded, prompts, step, on_progress
            )
            settings = args.weights, args.numerics, step
            key = repr((case.source, case.policy.name, *case[2:], *settings))
            rows.append(read_or_compute(args.kept, key, compute))
    total, same = (sum(row[k] for row in rows) for k in ("decodes", "identical"))
    if args.numerics == "exact":
        probe = slot_probe(
            decoders.freedave(loaded.config, draft_steps=8).spec, loaded.params
        )
        results.machine["slot_probe"] = probe._asdict()
        results.claims.append(report.Claim(f"slots agree: {probe}", probe.holds))
    results.add_table(f"Identical texts under {args.numerics} numerics", rows)
    share = f"{same} of {total} texts identical ({same / total:.4%})"
    print("\n" + share)
    if args.numerics != "fast":
        results.claims.append(
            report.Claim(f"drafts never change the text: {share}", same == total)
        )
    results.claims.append(
        report.Claim(
            "drafts never cost a call",
            all(row["calls drafted"] <= row["calls plain"] for row in rows),
        )
    )
    results.finish(args.out)


if __name__ == "__main__":
    main()

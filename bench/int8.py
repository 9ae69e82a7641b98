"""Int8 weights beside float ones: right answers, bytes, and seconds of a call.

    python -m bench.int8 [--limit 60] [--rounds 9]

The demo answers some problems of each frozen test set with float32, bfloat16 and int8
weights (activations in float32). Then a bare call, without drafts and with 8, of the 1M
and of a random 30M model is timed with each kind of weights, in alternating rounds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bench.decode import prompts_of_one_length
from bench.demo import decode
from bench.harness import models, report, timing
from bench.harness.loading import LoadedModel, load_model
from bench.harness.network_only import DecodeBench
from jaxdave.core.config import ModelConfig
from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import is_correct
from jaxdave.numerics.quantization import quantize_params
from jaxdave.numerics.weight_layout import to_device_layout, to_stacked

DRAFT_LENGTH = 8


def _keep(params: Any) -> Any:
    return params


def to_bfloat16(params: Any) -> Any:
    """Cast parameters to bfloat16.

    Args:
        params: parameters in any layout.

    Returns:
        The cast parameters.
    """
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)


def _to_bfloat16_int8(params: Any) -> Any:
    return quantize_params(to_bfloat16(params))


KINDS: dict[str, Callable[[Any], Any]] = {
    "float32": _keep,
    "bfloat16": to_bfloat16,
    "int8": quantize_params,
    "int8, bfloat16": _to_bfloat16_int8,
}
"""How float32 parameters become those of each kind; "int8, bfloat16" is int8 weights
with bfloat16 activations."""


def params_of_kind(kind: str, params: Any, config: ModelConfig) -> Any:
    """Convert a float32 model's parameters.

    Args:
        kind: a key of `KINDS`.
        params: float32 parameters in the layout of this machine.
        config: the model.

    Returns:
        Parameters of the kind, in the layout of this machine.
    """
    return to_device_layout(KINDS[kind](to_stacked(params)), config)


def num_bytes(params: Any) -> int:
    """Count the bytes of all leaves.

    Args:
        params: parameters.

    Returns:
        Bytes.
    """
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def compare_answers(loaded: LoadedModel, name: str, limit: int) -> dict[str, Any]:
    """Count the problems that each kind of weights solves, and texts that differ.

    Args:
        loaded: the model.
        name: a frozen test set.
        limit: number of problems.

    Returns:
        The set's row of the table.
    """
    problems = problem_sets.load(name)[:limit]
    prompts, table_row, texts = loaded.encode_prompts(problems), {}, {}
    for kind in ("float32", "bfloat16", "int8"):
        params = params_of_kind(kind, loaded.params, loaded.config)
        model = LoadedModel(loaded.config, params, loaded.codec)
        rows = decode(model, prompts, DRAFT_LENGTH)
        texts[kind] = [row.token_ids for row in rows]
        answers = [loaded.codec.decode(row.token_ids) for row in rows]
        right = sum(map(is_correct, problems, answers))
        table_row[f"right, {kind}"] = f"{right}/{len(problems)}"
        table_row[f"calls, {kind}"] = sum(row.nfe.total for row in rows)
    same = sum(map(tuple.__eq__, texts["float32"], texts["int8"]))
    table_row["int8 text as float32"] = f"{same}/{len(problems)}"
    return {"set": name, **table_row}


def compare_calls(size: str, rounds: int) -> list[dict[str, Any]]:
    """Time a bare call with each kind of weights, and count bytes.

    Args:
        size: one of `models.SIZES`.
        rounds: alternating rounds.

    Returns:
        Rows of the table.
    """
    model = models.bench_model(size, prompts_of_one_length)
    params = {kind: params_of_kind(kind, model.params, model.config) for kind in KINDS}
    rows = []
    for d in (1, DRAFT_LENGTH):
        benches = {
            kind: DecodeBench(model.decoder(d), kind_params, model.prompts[:1])
            for kind, kind_params in params.items()
        }
        timers, temporary_bytes = [], {}
        for kind, bench in benches.items():
            call = bench.compile_parts("call", state=bench.prefill())["call"]
            timers.append(lambda f=call: timing.time_call(f, 5))
            bench.decode()
            # All kinds share the spec: read before the next one's loop replaces it.
            temporary_bytes[kind] = bench.memory().temp_size_in_bytes
        seconds = timing.time_alternately(timers, rounds)
        for index, kind in enumerate(KINDS):
            ratio = timing.median_with_interval(seconds[:, index] / seconds[:, 0])
            rows.append(
                {
                    "model": size,
                    "d": d,
                    "kind": kind,
                    "MB of leaves": num_bytes(params[kind]) / 1e6,
                    "of float32": num_bytes(params[kind]) / num_bytes(model.params),
                    "MB of temporaries": temporary_bytes[kind] / 1e6,
                    "call over float32's": str(ratio),
                }
            )
    return rows


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--limit", type=int, default=60, help="problems of each set")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    results, loaded = report.start_report(args.weights), load_model(args.weights)
    answers = [compare_answers(loaded, name, args.limit) for name in problem_sets.SETS]
    results.add_table("Answers, temperature 0", answers)
    rows = [row for size in ("1M", "30M") for row in compare_calls(size, args.rounds)]
    results.add_table("Bytes and bare calls", rows)
    shares = [row["of float32"] for row in rows if row["kind"] == "int8"]
    sentence = "int8 leaves take at most 0.27 of float32's bytes"
    results.claims.append(report.Claim(sentence, max(shares) <= 0.27))
    results.finish(args.out)


if __name__ == "__main__":
    main()

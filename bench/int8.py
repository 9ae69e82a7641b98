"""Int8 weights beside float ones: right answers, bytes, and seconds of a call.

    python -m bench.int8 [--limit 60] [--rounds 9]

The demo answers some problems of each frozen test set as float32, bfloat16 and int8
(activations float32). Then a bare call, plain and with 8 drafts, of the 1M and of a
random 30M model in each of the kinds, in alternating rounds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bench.decode import equal_lengths
from bench.demo import decode
from bench.harness import common, models
from bench.harness.network_only import Bench
from jaxdave.core.config import ModelConfig
from jaxdave.demo_tasks import problem_sets
from jaxdave.demo_tasks.grade import is_correct
from jaxdave.numerics.quantization import quantize_params
from jaxdave.numerics.weight_layout import to_device_layout, to_stacked

DRAFTS = 8


def half(params: Any) -> Any:
    """The parameters in bfloat16."""
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)


KINDS: dict[str, Callable[[Any], Any]] = {
    "float32": lambda params: params,
    "bfloat16": half,
    "int8": quantize_params,
    "int8, bfloat16": lambda params: quantize_params(half(params)),
}
"""How the parameters of a float32 model become those of each kind."""


def of_kind(kind: str, params: Any, config: ModelConfig) -> Any:
    """A float32 model's parameters as a kind has them, as this machine reads them."""
    return to_device_layout(KINDS[kind](to_stacked(params)), config)


def nbytes(params: Any) -> int:
    """Bytes of all leaves."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def answers(loaded: common.Loaded, name: str, limit: int) -> dict[str, Any]:
    """How many problems of a set each kind solves, and where int8 writes otherwise."""
    problems = problem_sets.load(name)[:limit]
    ids, found, texts = loaded.ids(problems), {}, {}
    for kind in ("float32", "bfloat16", "int8"):
        params = of_kind(kind, loaded.params, loaded.config)
        model = common.Loaded(loaded.config, params, loaded.codec)
        rows = decode(model, ids, DRAFTS)
        texts[kind] = [row.token_ids for row in rows]
        said = [loaded.codec.decode(row.token_ids) for row in rows]
        right = sum(map(is_correct, problems, said))
        found[f"right, {kind}"] = f"{right}/{len(problems)}"
        found[f"calls, {kind}"] = sum(row.nfe.total for row in rows)
    same = sum(map(tuple.__eq__, texts["float32"], texts["int8"]))
    return {"set": name, **found, "int8 text as float32": f"{same}/{len(problems)}"}


def calls(size: str, rounds: int) -> list[dict[str, Any]]:
    """Bytes, and seconds of a bare call over float32's, of each kind."""
    subject = models.subject(size, equal_lengths)
    params = {kind: of_kind(kind, subject.params, subject.config) for kind in KINDS}
    rows = []
    for d in (1, DRAFTS):
        benches = {
            kind: Bench(subject.decoder(d), made, subject.prompts[:1])
            for kind, made in params.items()
        }
        timers, temporary = [], {}
        for kind, bench in benches.items():
            call = bench.parts("call", at=bench.begun())["call"]
            timers.append(lambda f=call: common.seconds(f, 5))
            bench.result()
            temporary[kind] = bench.memory().temp_size_in_bytes
        found = common.alternate(timers, rounds)
        for index, kind in enumerate(KINDS):
            ratio = common.spread(found[:, index] / found[:, 0])
            rows.append(
                {
                    "model": size,
                    "d": d,
                    "kind": kind,
                    "MB of leaves": nbytes(params[kind]) / 1e6,
                    "of float32": nbytes(params[kind]) / nbytes(subject.params),
                    "MB of temporaries": temporary[kind] / 1e6,
                    "call over float32's": str(ratio),
                }
            )
    return rows


def main() -> None:
    """The command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--limit", type=int, default=60, help="problems of each set")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    report, loaded = common.begin(args.weights), common.load(args.weights)
    right = [answers(loaded, name, args.limit) for name in problem_sets.SETS]
    report.table("Answers, temperature 0", right)
    rows = [row for size in ("1M", "30M") for row in calls(size, args.rounds)]
    report.table("Bytes and bare calls", rows)
    small = [row["of float32"] for row in rows if row["kind"] == "int8"]
    sentence = "int8 leaves take at most 0.27 of float32's bytes"
    report.claims.append(common.Claim(sentence, max(small) <= 0.27))
    report.finish(args.out)


if __name__ == "__main__":
    main()

"""Mixtures of experts: how many experts a call touches, and what a layer's call costs.

    python -m bench.experts [--rounds 15] [--problems 20] [--skip-time] [--skip-count]
        [--skip-ties]

**Count.** Distinct experts of a layer that a call touches, mean over layers and calls,
without drafts (d = 1) and with 2, 4 and 8; all positions of a call count, as all are
computed. Beside it what independent, uniform choices would touch: with n tokens, C of X
experts each, X (1 - (1 - C / X)^n). Models: the trained demo (bench/models/llada2-1m)
in its blocks of 4, and in blocks of 32 that it has not learnt; and random weights (2
layers of 64 features) with the routers of LLaDA2-mini (256 experts, the best 8 of 4 of
8 groups) in blocks of 32 and of SDAR-30B-A3B (128 experts, 8 of them) in blocks of 4.
Prompts: the first of words_test. Static policy, temperature 0, batch 1, `fast` numerics
(no guard calls), 48 new tokens; prefills do not count.

**Time.** One layer of LLaDA2-mini's shape (2048 features, 256 experts of 512, the best
8 of 4 of 8 groups by sigmoid scores, no shared expert), random weights, float32, 48
random tokens, one thread: the layer's call, router and choice included, against the
products of its distinct experts alone. Those are laid out in advance: an array of its
own for each matrix, in the order [in, out] or [out, in] that is multiplied by faster
here, and for each expert the rows of just its tokens; what is timed is one compiled
SwiGLU an expert, called one after another from Python. Nothing is routed, gathered or
added up there, and no row is empty. Alternating pairs, processor time; the figure is
the median of the ratios with a 95 % bootstrap interval. The aim is at most 1.3; the
lowest bound, reading the same bytes once (a sum over them), is printed beside it.

**Ties.** How often guarded numerics doubt a state, a block, because of its routers: the
share of margins (`models.router_trace`) within the smallest error bound, of 81,920
tokens whose router logits are drawn, normal with deviations of 0.5, 1 and 3, and biases
with 0.05; and how often a block of so many independent tokens and layers has one. A
trained model's logits are not such draws; the figure says what to expect of its shape.
"""

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bench.harness import report, timing
from bench.harness.loading import LoadedModel, load_model
from bench.train import ONE_THREAD
from jaxdave.core.config import ModelConfig
from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.demo_tasks import problem_sets
from jaxdave.engine import decoders
from jaxdave.engine.autotune import MIN_ERROR_BOUND
from jaxdave.engine.generation import generate
from jaxdave.models import router as router_module
from jaxdave.models import transformer
from jaxdave.models.experts import ExpertMatrices, Experts, mix_experts
from jaxdave.models.presets import preset
from jaxdave.numerics.weight_layout import to_device_layout
from jaxdave.runtime.machine import this_machine
from jaxdave.runtime.platform import compiler_options

DRAFT_LENGTHS = (1, 2, 4, 8)
DEMO = Path(__file__).parent / "models" / "llada2-1m"
TARGET = 1.3
"""Of the time of the products alone, at most."""
TOKENS = 48
_LLADA2 = preset("llada2-mini").experts
assert _LLADA2 is not None
MINI = dataclasses.replace(_LLADA2, shared_inter=0, dense_layers=0)
"""LLaDA2-mini's experts, without the shared one."""
SDAR_30B = ExpertsConfig(count=128, per_token=8, inter=768, renormalize=True)


def independent(config: ExpertsConfig, tokens: int) -> float:
    """Distinct experts that independent, uniform choices touch on average.

    Args:
        config: the experts.
        tokens: tokens that choose.

    Returns:
        Their number.

    Example:
        >>> round(independent(SDAR_30B, 4))
        29
    """
    return config.count * (1 - (1 - config.per_token / config.count) ** tokens)


def count_touched(
    config: ModelConfig, params: Any, prompts: list[list[int]], draft_steps: int
) -> dict[str, Any]:
    """Decode prompts and count the experts that their calls touch.

    Args:
        config: the model.
        params: its parameters.
        prompts: token ids.
        draft_steps: drafts of a call.

    Returns:
        A row of the table.
    """
    touched: dict[int, list[int]] = {}
    plain = router_module.route_traced

    def record(expert_SC) -> None:
        choices = np.asarray(expert_SC)
        touched.setdefault(len(choices), []).append(len(np.unique(choices)))

    def counting(*args, **options):
        routing, trace = plain(*args, **options)
        jax.debug.callback(record, routing.expert_SC)
        return routing, trace

    with mock.patch.object(router_module, "route_traced", counting):
        decoder = decoders.freedave(
            config, draft_steps=draft_steps, max_new_tokens=48, numerics="fast"
        )
        for prompt in prompts:
            generate(decoder, params, [prompt])
        jax.effects_barrier()
    # The loop's calls have one size, and there are more of them than prefills.
    tokens = Counter({n: len(calls) for n, calls in touched.items()}).most_common(1)
    size = tokens[0][0]
    assert config.experts is not None
    expected = independent(config.experts, size)
    mean = float(np.mean(touched[size]))
    return {
        "block": config.block_length,
        "d": draft_steps,
        "tokens of a call": size,
        "experts touched": round(mean, 1),
        "of": config.experts.count,
        "independent": round(expected, 1),
        "share": round(mean / expected, 2),
    }


def count_table(loaded: LoadedModel, problems: int) -> list[dict[str, Any]]:
    """Count the experts that calls touch, for every model and draft length.

    Args:
        loaded: the trained demo.
        problems: how many prompts.

    Returns:
        The table.
    """
    prompts = loaded.encode_prompts(problem_sets.load("words_test")[:problems])
    small = dataclasses.replace(
        loaded.config, num_layers=2, hidden=64, inter=64, head_dim=16, rotary_dim=16
    )
    cases = [("trained", loaded.config, loaded.params)]
    cases.append(
        (
            "trained, other blocks",
            dataclasses.replace(loaded.config, block_length=32),
            loaded.params,
        )
    )
    for name, block, experts in (
        ("random, LLaDA2-mini's router", 32, MINI),
        ("random, SDAR-30B-A3B's router", 4, SDAR_30B),
    ):
        own = dataclasses.replace(experts, inter=16)
        config = dataclasses.replace(small, experts=own, block_length=block)
        params = to_device_layout(transformer.init(config, 0), config)
        cases.append((name, config, params))
    table = []
    for name, config, params in cases:
        for d in DRAFT_LENGTHS:
            row = {"model": name, **count_touched(config, params, prompts, d)}
            print(row, flush=True)
            table.append(row)
    return table


def make_layer(hidden: int, config: ExpertsConfig) -> tuple[Any, dict[str, Any]]:
    """Make a layer with random weights.

    Args:
        hidden: features.
        config: its experts.

    Returns:
        Its structure, and its parameters.
    """
    shape = ModelConfig(
        name="layer", family="llada2", num_layers=1, hidden=hidden, inter=1, heads=1,
        kv_heads=1, head_dim=2, rotary_dim=2, vocab_rows=8, vocab_size=8, mask_id=7,
        pad_id=6, stop_ids=(6,), experts=config,
    )  # fmt: skip
    machine = this_machine()
    built = nnx.eval_shape(
        lambda: Experts(shape, dtype=jnp.float32, rngs=nnx.Rngs(0), machine=machine)
    )
    graph, state = nnx.split(built)
    # A million random numbers again and again: more would take minutes to draw.
    draws = np.random.default_rng(0).standard_normal(1_000_003).astype(np.float32)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(np.resize(draws, leaf.shape) * hidden**-0.5),
        nnx.to_pure_dict(state),
    )
    router = np.random.default_rng(1).standard_normal((hidden, config.count))
    params["router"]["kernel"] = jnp.asarray(router * hidden**-0.5, jnp.float32)
    params["router"]["bias"] = jnp.zeros(config.count)
    return graph, params


def time_layer(hidden: int, config: ExpertsConfig, rounds: int) -> dict[str, Any]:
    """Time a layer's call beside its experts' products alone.

    Args:
        hidden: features.
        config: the layer's experts.
        rounds: alternating pairs.

    Returns:
        A row of the table.
    """
    options = compiler_options(this_machine())
    graph, params = make_layer(hidden, config)
    draws = np.random.default_rng(2).standard_normal((TOKENS, hidden))
    x_SE = jnp.asarray(draws, jnp.float32)

    def layer(params, x_SE):
        return nnx.merge(graph, params)(x_SE)

    compiled = jax.jit(layer, compiler_options=options).lower(params, x_SE).compile()
    logits = router_module.router_logits(x_SE, params["router"]["kernel"])
    routing = router_module.route(logits, params["router"]["bias"], config)
    expert_SC = np.asarray(routing.expert_SC)
    distinct = np.unique(expert_SC)
    stacks = ExpertMatrices(
        *(params["experts"][name]["kernel"] for name in ExpertMatrices._fields)
    )
    # The layer computes what the products alone do.
    ours = mix_experts(x_SE, routing, stacks, this_machine())
    np.testing.assert_allclose(compiled(params, x_SE), ours, rtol=1e-3, atol=1e-3)

    def products_alone(is_transposed: bool):
        def swiglu(x_RE, gate, up, down):
            if is_transposed:
                gate, up, down = gate.T, up.T, down.T
            return (jax.nn.silu(x_RE @ gate) * (x_RE @ up)) @ down

        one = jax.jit(swiglu, compiler_options=options)
        laid_out = []
        for expert in distinct:
            own = [np.asarray(stack[expert]) for stack in stacks]
            own = [np.ascontiguousarray(m.T) if is_transposed else m for m in own]
            rows = x_SE[np.any(expert_SC == expert, axis=1)]
            laid_out.append((rows, *map(jnp.array, own)))
        return lambda: [one(*arrays) for arrays in laid_out]

    def cores(function):
        return lambda: timing.time_cores(function)

    orders = {name: products_alone(name == "[out, in]") for name in ORDERS}
    tried = timing.time_alternately([cores(f) for f in orders.values()], 3)
    order = ORDERS[int(np.argmin(np.median(tried, axis=0)))]
    alone = orders[order]
    del orders
    num_bytes = len(distinct) * 3 * hidden * config.inter * 4
    flat = np.ones(num_bytes // 4, np.float32)
    seconds = timing.time_alternately(
        [cores(lambda: compiled(params, x_SE)), cores(alone), cores(flat.sum)], rounds
    )
    ratio = timing.median_with_interval(seconds[:, 0] / seconds[:, 1])
    call, products, read = np.median(seconds, axis=0)
    return {
        "tokens": TOKENS,
        "experts touched": len(distinct),
        "GB": num_bytes / 1e9,
        "call s": float(call),
        "products alone s": float(products),
        "order": order,
        "reading alone s": float(read),
        "call / products": str(ratio),
        "aim": f"<= {TARGET} {'met' if ratio.median <= TARGET else 'missed'}",
    }


ORDERS = ("[in, out]", "[out, in]")


def tie_table() -> list[dict[str, Any]]:
    """The table of near ties.

    Returns:
        A row for each shape and deviation.
    """
    traced = jax.jit(router_module.route_traced, static_argnums=2)
    shapes = {"LLaDA2-mini": (MINI, 19, 32), "SDAR-30B-A3B": (SDAR_30B, 48, 4)}
    table = []
    for name, (config, layers, length) in shapes.items():
        bias_X = None
        if config.bias != "none":
            bias_X = 0.05 * jax.random.normal(jax.random.key(1), (config.count,))
        for deviation in (0.5, 1.0, 3.0):
            keys = jax.random.split(jax.random.key(0), 20)
            near = [
                traced(
                    deviation * jax.random.normal(key, (4096, config.count)),
                    bias_X,
                    config,
                )[1].margin
                <= MIN_ERROR_BOUND
                for key in keys
            ]
            share = float(np.mean(near))
            table.append(
                {
                    "router": name,
                    "deviation": deviation,
                    "of tokens and layers": f"{share:.2e}",
                    "of blocks": round(1 - (1 - share) ** (layers * length), 3),
                    "block": length,
                    "layers": layers,
                }
            )
    return table


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.set_defaults(weights=str(DEMO))
    parser.add_argument("--rounds", type=int, default=15, help="alternating pairs")
    parser.add_argument("--problems", type=int, default=20)
    parser.add_argument("--skip-time", action="store_true")
    parser.add_argument("--skip-count", action="store_true")
    parser.add_argument("--skip-ties", action="store_true")
    args = parser.parse_args()
    # Before the first computation, or it comes too late.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} {ONE_THREAD}".strip()
    # Counting programs call back, and are not to be found on disk later.
    os.environ["JAXDAVE_NO_CACHE"] = "1"
    results = report.start_report(args.weights)
    if not args.skip_time:
        row = time_layer(2048, MINI, args.rounds)
        results.add_table("A layer's call against its experts' products alone", [row])
    if not args.skip_count:
        table = count_table(load_model(args.weights), args.problems)
        results.add_table("Distinct experts of a layer that a call touches", table)
    if not args.skip_ties:
        results.add_table("Blocks that guarded numerics doubt", tie_table())
    results.finish(args.out)


if __name__ == "__main__":
    main()

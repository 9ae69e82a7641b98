"""Nemotron's rule: calls per block, with and without drafts across a block's border.

    python -m bench.borders [--seeds 8] [--prompts 4]

The public loop spends a causal call behind every finished block: it makes the keys that
are kept, and predicts the next block's first token. Here the finished block is one more
state, which may be a draft. Five ways to decode the same text:

* plain: no drafts, so the causal call of every block is paid;
* border: drafts only of what lies behind the present block: when its last step is
  expected, the finished block, and the next one with its first token;
* inside: nested drafts, d of them, none of which leaves the present block;
* both: nested drafts, d of them;
* ceiling: plain less one call for every border, and for `both` as many calls as it
  takes when every draft is right, 1 + ceil((steps - 1) / d).

The plan, fixed before the run: random networks of 2 layers and 32 features with YaRN,
blocks of 32, 128 tokens (4 blocks and 3 borders an answer), the rule of threshold 0.9,
temperature 0, no end tokens. Matrices are normal of deviation 0.25, the
head `HEAD` times that, so that a block takes about a dozen steps (chosen on weights 100
and 101, which are not among those that count). The output of attention is scaled by
`GAINS`: the smaller, the less a prediction changes with the other tokens. 8 weights and
4 prompts for each; the mean of calls per block, with 95 % intervals of a bootstrap over
the weights. Random networks say nothing of a trained one's acceptance; the calls that a
border costs do not depend on it. Asserted: all texts are plain's, no answer takes more
calls than plain, and `border` saves at most two calls a border, the causal one and the
next block's first step. `fast` numerics, as the laws are tested elsewhere and rows then
go side by side; prompts of one bucket of lengths, as compiling is what takes long. (A
first run of this plan, under exact numerics and with prompts of up to 60 tokens, was
stopped after 15 minutes without a figure.)
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.harness import report
from jaxdave import policies
from jaxdave.core.config import ModelConfig, YarnScaling
from jaxdave.core.draft_api import DraftContext, DraftFn, DraftSet, DraftState
from jaxdave.core.param_paths import param_path
from jaxdave.drafting.nested import propose_nested
from jaxdave.engine import decoders
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.generation import generate
from jaxdave.models.param_shapes import param_shapes

BLOCK, ROOM, THRESHOLD = 32, 128, 0.9
GAINS = (0.1, 0.3, 1.0)
HEAD = 6.0
DRAFTS = (2, 8)
CONFIG = ModelConfig(
    name="random",
    family="nemotron",
    num_layers=2,
    hidden=32,
    inter=64,
    heads=4,
    kv_heads=2,
    head_dim=8,
    rotary_dim=8,
    vocab_rows=64,
    vocab_size=60,
    mask_id=59,
    pad_id=58,
    stop_ids=(58,),
    block_length=BLOCK,
    attention="causal_context",
    rope_theta=1e4,
    rope_scaling=YarnScaling(
        factor=16.0,
        positions=64,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        query_beta=0.1,
    ),
    max_positions=1024,
)


def first_open_block(context: DraftContext, tokens_NL: jax.Array) -> jax.Array:
    """The first block of a state that has a mask.

    Args:
        context: What is known of the row.
        tokens_NL: The state, int32 [1, L].

    Returns:
        Its index in the window, int32; a large number where there is no mask.
    """
    is_masked_L = tokens_NL[0] == context.mask_id
    return jnp.min(jnp.where(is_masked_L, context.block_L, BLOCK * ROOM))


def propose_inside(
    context: DraftContext, first: DraftState, num_drafts: int
) -> DraftSet:
    """Nested drafts that stay in the block of the row's own next state.

    Args:
        context: What is known of the row.
        first: The policy's own next state.
        num_drafts: Drafts in all.

    Returns:
        The drafts; those behind the border are not valid.
    """
    drafts = propose_nested(context, first, num_drafts)
    present = first_open_block(context, first.tokens_NL)
    block_K = jax.vmap(functools.partial(first_open_block, context))(drafts.tokens_KNL)
    return drafts._replace(valid_K=drafts.valid_K & (block_K <= present))


def propose_border(
    context: DraftContext, first: DraftState, num_drafts: int
) -> DraftSet:
    """The row's own next state and, if its block's last step is due, what follows.

    Args:
        context: What is known of the row.
        first: The policy's own next state.
        num_drafts: Drafts in all.

    Returns:
        Nested drafts, valid only if the very next one has left the block.
    """
    drafts = propose_nested(context, first, num_drafts)
    present = first_open_block(context, first.tokens_NL)
    is_due = first_open_block(context, drafts.tokens_KNL[1]) > present
    is_first_K = jnp.arange(num_drafts) == 0
    return drafts._replace(valid_K=drafts.valid_K & (is_first_K | is_due))


def random_params(seed: int, gain: float) -> Any:
    """Weights whose predictions vary.

    Args:
        seed: Of the draw.
        gain: Scale of what attention adds.

    Returns:
        The parameters.
    """
    draw = np.random.default_rng(seed).normal

    def random_leaf(key_path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_norm = "scale" in param_path(key_path)
        value = np.ones(leaf.shape) if is_norm else 0.25 * draw(size=leaf.shape)
        return jnp.asarray(value, leaf.dtype)

    shapes = param_shapes(CONFIG)
    params = jax.tree_util.tree_map_with_path(random_leaf, shapes)
    params["blocks"]["attn"]["o"]["kernel"] *= gain
    params["head"] *= HEAD
    return params


def ways() -> dict[str, Decoder]:
    """The decoders by their names."""
    rule = policies.threshold(THRESHOLD)

    def make(draft_steps: int, draft: Any) -> Decoder:
        return decoders.freedave(
            CONFIG,
            rule,
            draft_steps=draft_steps,
            draft=draft,
            max_new_tokens=ROOM,
            numerics="fast",
            no_stop=True,
        )

    inside, border = DraftFn(propose_inside), DraftFn(propose_border)
    result = {"plain": make(1, "nested"), "border": make(3, border)}
    for count in DRAFTS:
        result[f"inside, d={count}"] = make(count, inside)
        result[f"both, d={count}"] = make(count, "nested")
    return result


def prompts_of(seed: int, count: int) -> list[list[int]]:
    """Random prompts of 5 to 31 tokens.

    Args:
        seed: Of the draw.
        count: How many.

    Returns:
        Token ids.
    """
    draw = np.random.default_rng(seed)
    lengths = draw.integers(5, 32, count)
    return [draw.integers(0, 58, length).tolist() for length in lengths]


def interval(values: Sequence[float], seed: int = 0) -> str:
    """The mean, and its 95 % bootstrap interval.

    Args:
        values: One number per weights.
        seed: Of the bootstrap.

    Returns:
        Text such as "11.2 [10.1, 12.3]".
    """
    array, draw = np.asarray(values), np.random.default_rng(seed)
    means = array[draw.integers(0, len(array), (2000, len(array)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{array.mean():.2f} [{low:.2f}, {high:.2f}]"


def measure(seeds: int, prompts: int) -> tuple[list[dict[str, Any]], bool, bool, bool]:
    """Decode everything.

    Args:
        seeds: How many weights.
        prompts: How many prompts for each.

    Returns:
        (rows of the table; texts equal; no call more; at most one call a border).
    """
    blocks = ROOM // BLOCK
    made, rows = ways(), []
    is_same = is_fewer = is_bounded = True
    for gain in GAINS:
        per_block: dict[str, list[float]] = {}
        for seed in range(seeds):
            params = random_params(seed, gain)
            texts = prompts_of(1000 + seed, prompts)
            results = {
                name: generate(decoder, params, texts).completions
                for name, decoder in made.items()
            }
            plain = results["plain"]
            for name, answers in results.items():
                calls = [answer.nfe.total for answer in answers]
                per_block.setdefault(name, []).append(float(np.mean(calls)) / blocks)
                pairs = list(zip(answers, plain, strict=True))
                is_same &= all(a.token_ids == b.token_ids for a, b in pairs)
                is_fewer &= all(a.nfe.total <= b.nfe.total for a, b in pairs)
                if name == "border":
                    is_bounded &= all(
                        b.nfe.total - a.nfe.total <= 2 * (blocks - 1) for a, b in pairs
                    )
            steps = [answer.steps for answer in plain]
            without = (float(np.mean(steps)) - (blocks - 1)) / blocks
            per_block.setdefault("ceiling of border", []).append(without)
            for count in DRAFTS:
                fewest = [1 + math.ceil((n - 1) / count) for n in steps]
                name = f"ceiling, d={count}"
                per_block.setdefault(name, []).append(float(np.mean(fewest)) / blocks)
        rows.append(
            {"gain": gain, **{name: interval(v) for name, v in per_block.items()}}
        )
    return rows, is_same, is_fewer, is_bounded


def main() -> None:
    """Run the benchmark."""
    parser = report.argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    args = parser.parse_args()
    results = report.start_report("random")
    rows, is_same, is_fewer, is_bounded = measure(args.seeds, args.prompts)
    turned = [
        {"way": name, **{f"gain {row['gain']}": row[name] for row in rows}}
        for name in rows[0]
        if name != "gain"
    ]
    results.add_table("Calls per block", turned)
    for sentence, holds in (
        ("all texts are those of the plain rule", is_same),
        ("no answer takes more calls than the plain rule", is_fewer),
        ("drafts of the border save at most two calls each", is_bounded),
    ):
        results.claims.append(report.Claim(sentence, holds))
    results.finish(args.out)


if __name__ == "__main__":
    main()

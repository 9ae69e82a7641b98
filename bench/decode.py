"""How much of a decode is the network: loop efficiency, and FreeDave against static.

    efficiency = (verify calls x one bare call + the bare prefill) / wall of generate

A bare call is `Network.forward` on the drafts of a state from the middle of a decode,
with the head reads that a step cannot do without (the active block of every draft, the
whole window of one), over the rows as the program maps them, jitted alone. The wall is
all of `run.generate`: packing, prefill, loop, fetching and reading the rows. The bare
prefill is the same over the chunks that cover the prompt. At batch 8 the prompts have
one length. Under `exact` an ended row is skipped, so a round counts by its live rows;
under `fast` every row is computed in every round.

It asserts that a second prompt of a bucket compiles nothing. Times are printed, never
asserted.
"""

import dataclasses
from collections import defaultdict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import common
from jaxdave import decode, run
from jaxdave.decoders import Decoder, freedave, static
from jaxdave.tasks import frozen
from jaxdave.types import KVCache, RowState
from jaxdave.verify import successors, walk

TARGETS = {1: 0.85, 8: 0.95}
COMPILED = "/jax/core/compile/backend_compile_duration"


class Lane(NamedTuple):
    """A row, its tokens for the network [K, L] or [1, S], and whether it has ended."""

    row: RowState
    tokens: jax.Array
    done: jax.Array


@dataclasses.dataclass(frozen=True)
class Bench:
    """One decoder on some prompts: its decode, and its parts jitted alone."""

    decoder: Decoder
    params: Any
    prompts: list[list[int]]

    def generate(self) -> float:
        """The wall seconds of a whole decode."""
        return common.seconds(
            lambda: run.generate(self.decoder, self.params, self.prompts).rows[0].steps
        )

    def middle(self) -> tuple[decode.DecodeState, jax.Array]:
        """The state half-way through, and its rows' drafts [B, K, L]."""
        program, cap = self.decoder.program, jnp.int32(self.decoder.cap)
        arrays, length = run._pack(self.decoder, self.prompts, 0, None)
        state = jax.jit(lambda p, a: program.init(p, a, length))(self.params, arrays)
        step = jax.jit(lambda p, s: program.step(p, cap, s)[0])
        result = run.generate(self.decoder, self.params, self.prompts)
        for _ in range(min(row.nfe.verify for row in result.rows) // 2):
            state = step(self.params, state)
        return state, jax.vmap(self.draft)(state.rows).tokens_KL

    def draft(self, row: RowState):
        """The drafts of one row."""
        program = self.decoder.program
        return program.draft(program.grid, program.policy, row, program.draft_steps)

    def forward(self, lane: Lane, cache: KVCache):
        """The network alone."""
        program = self.decoder.program
        return program.network.forward(self.params, lane.tokens, lane.row.start, cache)

    def reads(self, hidden_KLE: jax.Array, row: RowState):
        """The head over one block of every draft, and over the window of one."""
        program = self.decoder.program
        grid, none = program.grid, jnp.zeros((hidden_KLE.shape[0],), jnp.int32)
        block_KWE = hidden_KLE[:, : grid.length]
        at_KW = jnp.broadcast_to(none[:, None], block_KWE.shape[:2])
        target = decode._read(program, self.params, block_KWE, row.key, at_KW, at_KW)
        hidden_LE = hidden_KLE[0, : grid.window_length]
        return target, decode._guess(program, self.params, hidden_LE, row)

    def call(self, lane: Lane, cache: KVCache):
        """One bare call of one row."""
        hidden_KLE, window = self.forward(lane, cache)
        return self.reads(hidden_KLE, lane.row), window

    def prefill(self, lane: Lane, cache: KVCache):
        """The bare prefill of one row: as many chunks as its prompt and window need."""
        size = self.decoder.program.prefill_chunk
        made = []
        for at in range(0, lane.tokens.shape[1], size):
            chunk = lane._replace(tokens=lane.tokens[:, at : at + size])
            made.append(self.forward(chunk, cache))
        return made, self.reads(made[-1][0], lane.row)

    def jitted(self, function, lanes: Lane, cache: KVCache):
        """A per-row function over all rows as the program maps them, ready to time."""
        over = jax.jit(self.decoder.program.over_rows(function))
        jax.block_until_ready(over(lanes, cache))
        return lambda: over(lanes, cache)


def covered(bench: Bench) -> jax.Array:
    """The prompts as the prefill's chunks see them [B, 1, S]."""
    program = bench.decoder.program
    length, size = len(bench.prompts[0]), program.prefill_chunk
    begin = length // program.grid.length * program.grid.length
    chunks = -(-(begin + program.grid.window_length) // size)
    tokens = np.full((len(bench.prompts), 1, chunks * size), 0, np.int32)
    tokens[:, 0, :length] = bench.prompts
    return jnp.asarray(tokens)


def parts(bench: Bench) -> dict[str, Any]:
    """Everything that is timed: each a call without arguments."""
    program = bench.decoder.program
    (rows, cache), drafts_BKL = bench.middle()
    alive = jnp.zeros_like(rows.done)
    lanes = Lane(rows, drafts_BKL, alive)
    cap = jnp.int32(bench.decoder.cap)

    def walked(lane, _):
        drafts = bench.draft(lane.row)
        return walk(successors(drafts, drafts.tokens_KL, program.sampling.noisy))

    state = decode.DecodeState(dataclasses.replace(rows, done=alive), cache)
    step = jax.jit(lambda p, s: program.step(p, cap, s))
    jax.block_until_ready(step(bench.params, state))
    return {
        "call": bench.jitted(bench.call, lanes, cache),
        "prefill": bench.jitted(
            bench.prefill, lanes._replace(tokens=covered(bench)), cache
        ),
        "forward": bench.jitted(bench.forward, lanes, cache),
        "draft": bench.jitted(lambda lane, _: bench.draft(lane.row), lanes, cache),
        "draft + walk": bench.jitted(walked, lanes, cache),
        "step": lambda: step(bench.params, state),
    }


def measure(name: str, bench: Bench, rounds: int) -> dict[str, dict[str, Any]]:
    """The efficiency of one decoder and where its time goes: two table rows."""
    result = run.generate(bench.decoder, bench.params, bench.prompts)
    verify = [row.nfe.verify for row in result.rows]
    size, exact = len(verify), bench.decoder.program.exact
    calls = sum(verify) / size if exact else max(verify)
    timed = parts(bench)
    timers = [bench.generate] + [
        lambda f=f: common.seconds(f, 5) for f in timed.values()
    ]
    found = common.alternate(timers, rounds)
    wall, ms = (
        found[:, 0],
        dict(zip(timed, np.median(found[:, 1:], 0) * 1e3, strict=True)),
    )
    share = common.spread((calls * found[:, 1] + found[:, 2]) / wall)
    target = TARGETS.get(size, TARGETS[8])
    head = {"decoder": name, "batch": size}
    return {
        "efficiency": head
        | {
            "verify rounds": max(verify),
            "calls counted": round(calls, 2),
            "bare call ms": ms["call"],
            "bare prefill ms": ms["prefill"],
            "wall ms": float(np.median(wall)) * 1e3,
            "efficiency": str(share),
            "target": f"{target} {'met' if share.median >= target else 'missed'}",
        },
        "where": head
        | {
            "forward": ms["forward"],
            "head reads": ms["call"] - ms["forward"],
            "draft": ms["draft"],
            "walk": ms["draft + walk"] - ms["draft"],
            "whole step": ms["step"],
            "step - bare": ms["step"] - ms["call"],
            "wall - rounds x step": float(np.median(wall)) * 1e3
            - calls * ms["step"]
            - ms["prefill"],
        },
    }


def speed(benches: dict[str, Bench], rounds: int) -> list[dict[str, Any]]:
    """Tokens a second of every decoder, and its ratio to the fastest static's."""
    rows = [run.generate(b.decoder, b.params, b.prompts).rows for b in benches.values()]
    tokens = np.array([sum(r.valid_tokens for r in made) for made in rows])
    found = common.alternate([b.generate for b in benches.values()], rounds)
    rate = tokens / found
    plain = [i for i, name in enumerate(benches) if name.startswith("static")]
    best = max(plain, key=lambda i: np.median(rate[:, i]))
    texts = [[r.token_ids for r in made] for made in rows]
    return [
        {
            "decoder": name,
            "batch": len(made),
            "calls": sum(r.nfe.total for r in made),
            "tokens": int(tokens[i]),
            "tokens/s": float(np.median(rate[:, i])),
            f"ratio to {list(benches)[best]}": str(
                common.spread(rate[:, i] / rate[:, best])
            ),
            "same texts": sum(
                a == b for a, b in zip(texts[i], texts[best], strict=True)
            ),
        }
        for i, (name, made) in enumerate(zip(benches, rows, strict=True))
    ]


def compiles_again(bench: Bench, other: list[list[int]]) -> int:
    """How many compilations a decode of other prompts of the bucket causes."""
    bench.generate()
    seen: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: seen.append(event) if event == COMPILED else None
    )
    result = run.generate(bench.decoder, bench.params, other)
    # Listeners cannot be taken out one by one; this one sees nothing that counts later.
    found = len(seen)
    return found + (result.compile_seconds > 0)


def equal_lengths(model: common.Loaded, count: int) -> list[list[int]]:
    """Prompts of one length, from the set with the longest answers."""
    by_length = defaultdict(list)
    for ids in model.ids(frozen.load("words_long") + frozen.load("words_test")):
        by_length[len(ids)].append(ids)
    usable = [group for group in by_length.values() if len(group) >= count]
    if not usable:
        raise SystemExit(f"no {count} prompts of the frozen sets have one length")
    return max(usable, key=lambda group: len(group[0]))[:count]


def main() -> None:
    """The command line."""
    args = common.parser(__doc__)
    args.add_argument("--draft-steps", type=int, default=8)
    args.add_argument("--rounds", type=int, default=15, help="alternating repeats")
    args.add_argument("--max-new-tokens", type=int, default=64)
    asked = args.parse_args()
    report, model = common.begin(asked.weights), common.load(asked.weights)
    prompts = equal_lengths(model, 9)
    efficiency, where, rates, again = [], [], [], 0
    for size in (1, 8):
        benches = {}
        for numerics in ("exact", "fast"):
            room = {"max_new_tokens": asked.max_new_tokens, "numerics": numerics}
            drafted = freedave(model.config, draft_steps=asked.draft_steps, **room)
            for name, decoder in (
                (f"static, {numerics}", static(model.config, **room)),
                (f"freedave d={asked.draft_steps}, {numerics}", drafted),
            ):
                bench = Bench(decoder, model.params, prompts[:size])
                benches[name] = bench
                again += compiles_again(bench, prompts[1 : size + 1])
                found = measure(name, bench, asked.rounds)
                efficiency.append(found["efficiency"])
                where.append(found["where"])
        rates += speed(benches, asked.rounds)
    report.table(
        "Loop efficiency (median [95 % interval] of paired rounds)", efficiency
    )
    report.table("Where a call's time goes, ms", where)
    report.table("Tokens a second, whole generate, alternating", rates)
    sentence = "a second prompt of the same bucket compiles nothing"
    report.claims.append(common.Claim(f"{sentence} (compiled: {again})", again == 0))
    report.finish(asked.out)


if __name__ == "__main__":
    main()

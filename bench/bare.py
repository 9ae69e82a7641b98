"""The parts of a decode, each jitted alone, so that they can be timed beside it.

A bare call is the network on the drafts of a state from the middle of a decode, with
the head reads that a step cannot do without: the active block of every draft and, where
drafts are made, the window of one. Rows are mapped as the program maps them, and none
has ended.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import common
from jaxdave import predict, run
from jaxdave.decode import DecodeState
from jaxdave.decoders import Decoder
from jaxdave.result import Result
from jaxdave.types import KVCache, RowState
from jaxdave.verify import successors, walk


class Lane(NamedTuple):
    """A row, its tokens for the network [K, L] or [1, S], and whether it has ended."""

    row: RowState
    tokens: jax.Array
    done: jax.Array


Part = Callable[[Any, Lane, KVCache], Any]


@dataclasses.dataclass(frozen=True)
class Bench:
    """One decoder and prompts of one length."""

    decoder: Decoder
    params: Any
    prompts: list[list[int]]

    def result(self) -> Result:
        """A whole decode."""
        return run.generate(self.decoder, self.params, self.prompts)

    def generate(self) -> float:
        """The wall seconds of a whole decode: packing, prefill, loop, reading rows."""
        return common.seconds(self.result)

    def opening(self) -> float:
        """The wall seconds of packing and prefill alone."""
        begin = lambda: run._begin(self.decoder, self.params, self.prompts, 0, None)  # noqa: E731
        return common.seconds(lambda: begin().state)

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Every part as a compiled call without arguments."""
        (rows, cache), drafts_BKL = self._middle()
        lanes = Lane(rows, drafts_BKL, jnp.zeros_like(rows.done))
        whole = lanes._replace(tokens=self._covered())
        return {
            "call": self._jitted(self._call, lanes, cache),
            "prefill": self._jitted(self._prefill, whole, cache),
            "forward": self._jitted(self._forward, lanes, cache),
            "draft": self._jitted(lambda _, x, __: self._draft(x.row), lanes, cache),
            "draft, walk": self._jitted(self._walk, lanes, cache),
        }

    def _middle(self) -> tuple[DecodeState, jax.Array]:
        """The state half-way through, and its rows' drafts [B, K, L]."""
        program, cap = self.decoder.program, jnp.int32(self.decoder.cap)
        verify = [row.nfe.verify for row in self.result().rows]
        state = run._begin(self.decoder, self.params, self.prompts, 0, None).state
        half = jax.jit(lambda p, s: program.run(p, cap, s, min(verify) // 2))
        state = half(self.params, state)
        return state, jax.vmap(self._draft)(state.rows).tokens_KL

    def _covered(self) -> jax.Array:
        """The prompts as far as the prefill goes [B, 1, S]."""
        program = self.decoder.program
        room, length = self._sizes()
        begin = len(self.prompts[0]) // program.grid.length * program.grid.length
        chunks = -(-(begin + program.grid.window_length) // length)
        tokens = np.full((len(self.prompts), 1, chunks * length), 0, np.int32)
        tokens[:, 0, : len(self.prompts[0])] = self.prompts
        return jnp.asarray(tokens)

    def _sizes(self) -> tuple[int, int]:
        """How far a prefill may go, and how many tokens it takes at a time."""
        room = run._pack(self.decoder, self.prompts, 0, None)[1]
        return room, min(self.decoder.program.prefill_chunk, room)

    def _jitted(self, part: Part, lanes: Lane, cache: KVCache) -> Callable[[], Any]:
        # The weights are an argument, as in the decode: as constants they would be
        # laid out anew by the compiler.
        def over(params, lanes, cache):
            mapped = self.decoder.program.over_rows(lambda x, c: part(params, x, c))
            return mapped(lanes, cache)

        made = jax.jit(over)
        jax.block_until_ready(made(self.params, lanes, cache))
        return lambda: made(self.params, lanes, cache)

    def _call(self, params, lane: Lane, cache: KVCache):
        hidden_KLE, window = self._forward(params, lane, cache)
        return self._reads(params, hidden_KLE, lane.row), window

    def _prefill(self, params, lane: Lane, cache: KVCache):
        size, made = self._sizes()[1], []
        for at in range(0, lane.tokens.shape[1], size):
            chunk = lane._replace(tokens=lane.tokens[:, at : at + size])
            made.append(self._forward(params, chunk, cache, jnp.int32(at)))
        return made, self._reads(params, made[-1][0], lane.row)

    def _forward(self, params, lane: Lane, cache: KVCache, at=None):
        start = lane.row.start if at is None else at
        return self.decoder.program.network.forward(params, lane.tokens, start, cache)

    def _reads(self, params, hidden_KLE: jax.Array, row: RowState):
        program = self.decoder.program
        block_KWE = hidden_KLE[:, : program.grid.length]
        zero_KW = jnp.zeros(block_KWE.shape[:2], jnp.int32)
        args = (program, params, block_KWE, row.key, zero_KW, zero_KW)
        hidden_LE = hidden_KLE[0, : program.grid.window_length]
        return predict.predict(*args), predict.guess(program, params, hidden_LE, row)

    def _draft(self, row: RowState):
        program = self.decoder.program
        return program.draft(program.grid, program.policy, row, program.draft_steps)

    def _walk(self, _, lane: Lane, __):
        drafts = self._draft(lane.row)
        noisy = self.decoder.program.sampling.noisy
        return walk(successors(drafts, drafts.tokens_KL, noisy))

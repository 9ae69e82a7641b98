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

from bench import common
from jaxdave import calls, predict, run
from jaxdave.decode import DecodeState
from jaxdave.decoders import Decoder
from jaxdave.result import Result
from jaxdave.types import KVCache, RowState


class Lane(NamedTuple):
    """A row, its tokens for the network [K, L], and whether it has ended."""

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
        begin = lambda: run.begin(self.decoder, self.params, self.prompts, 0, None)  # noqa: E731
        return common.seconds(lambda: begin().state)

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Every part as a compiled call without arguments."""
        (rows, cache), drafts_BKL = self._middle()
        lanes = Lane(rows, drafts_BKL, jnp.zeros_like(rows.done))
        return {
            "call": self._jitted(self._call, lanes, cache),
            "prefill": self._jitted(self._prefill, lanes, cache),
            "forward": self._jitted(self._forward, lanes, cache),
            "draft": self._jitted(
                lambda p, x, _: self._drafted(p, x.row), lanes, cache
            ),
            "verify": self._jitted(self._verify, lanes, cache),
        }

    def _middle(self) -> tuple[DecodeState, jax.Array]:
        """The state half-way through, and its rows' drafts [B, K, L]."""
        program, cap = self.decoder.program, jnp.int32(self.decoder.cap)
        verify = [row.nfe.verify for row in self.result().rows]
        state = run.begin(self.decoder, self.params, self.prompts, 0, None).state
        half = jax.jit(lambda p, s: program.run(p, cap, s, min(verify) // 2))
        state = half(self.params, state)
        drafted = jax.vmap(lambda row: self._drafted(self.params, row).tokens_KNL[:, 0])
        return state, drafted(state.rows)

    def _drafted(self, params, row: RowState):
        return calls.drafted(self.decoder.program, params, row)

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
        program, row = self.decoder.program, lane.row
        start = program.grid.first(row.begin)
        room = run._pack(self.decoder, self.prompts, 0, None)[1]
        window = program.grid.window_length
        tokens_T = jnp.where(
            jnp.arange(row.tokens_T.shape[0]) < row.begin,
            row.tokens_T,
            jnp.int32(program.grid.mask_id),
        )
        hidden_LE, made = program.network.prime(
            params, tokens_T, row.begin, start, row.end, window, room
        )
        return self._reads(params, hidden_LE[None], row), made

    def _forward(self, params, lane: Lane, cache: KVCache):
        row, forward = lane.row, self.decoder.program.network.forward
        return forward(params, lane.tokens, row.start, row.end, cache)

    def _reads(self, params, hidden_KLE: jax.Array, row: RowState):
        program = self.decoder.program
        block_KWE = hidden_KLE[:, : program.grid.length]
        zero_KW = jnp.zeros(block_KWE.shape[:2], jnp.int32)
        args = (program, params, block_KWE, row.key, zero_KW, zero_KW)
        hidden_LE = hidden_KLE[0, : program.grid.window_length]
        return predict.predict(*args), predict.guess(program, params, hidden_LE, row)

    def _verify(self, params, lane: Lane, cache: KVCache):
        cap = jnp.int32(self.decoder.cap)
        return calls.verify(self.decoder.program, params, cap, lane.row, cache)

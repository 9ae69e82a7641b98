"""The parts of a decode, each jitted alone, so that they can be timed beside it.

A bare call is the network on what it is asked in a state from the middle of a decode,
with the head reads that a step cannot do without: the active block of every draft and,
where drafts are made, the window of one. Rows are mapped as the program maps them, and
none has ended.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench.harness import common
from jaxdave.core.model_api import KVCache
from jaxdave.core.state import DecodeState, RowState, squeeze_axis
from jaxdave.decoding import loop as decode_loop
from jaxdave.decoding import rows
from jaxdave.decoding.block_states import query_model, states_to_query
from jaxdave.decoding.commit import commit
from jaxdave.decoding.loop import verify_call
from jaxdave.decoding.prefill_rows import PREFILL_LOOKAHEAD
from jaxdave.decoding.propose import propose_all
from jaxdave.engine import batching, generation
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.results import Result
from jaxdave.runtime import compilation
from jaxdave.sampling import predictions


class Lane(NamedTuple):
    """A row, what the network is asked of it, and whether it has ended."""

    row: RowState
    asked: Any
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
        return generation.generate(self.decoder, self.params, self.prompts)

    def generate(self) -> float:
        """The wall seconds of a whole decode: packing, prefill, loop, reading rows."""
        return common.seconds(self.result)

    def fast_prefill(self) -> float:
        """The wall seconds of packing and prefill alone."""
        return common.seconds(self.begun)

    def parts(
        self, *wanted: str, at: DecodeState | None = None
    ) -> dict[str, Callable[[], Any]]:
        """The wanted parts (by default all) as compiled calls without arguments.

        at: the state that they are asked in, by default that of half the calls; to
        get there the loop is compiled once more.
        """
        rows, cache = state = self._middle() if at is None else at
        asked = self._asked(state)
        lanes = Lane(rows, asked, jnp.zeros_like(rows.done))
        known: dict[str, Part] = {
            "call": self._call,
            "prefill": self._prefill,
            "forward": self._forward,
            "draft": lambda params, lane, _: self._drafted(params, lane.row),
            "verify": self._verify,
        }
        return {
            name: self._jitted(known[name], lanes, cache) for name in wanted or known
        }

    def memory(self):
        """`memory_analysis()` of the decode loop, which must have been run."""
        return compilation.memory_analysis(self.decoder.spec, "run")

    def begun(self) -> DecodeState:
        """The state after the prefill."""
        return generation.prefill_prompts(self.decoder, self.params, self.prompts)

    def _middle(self) -> DecodeState:
        """The state half-way through."""
        spec = self.decoder.spec
        verify = [row.nfe.verify for row in self.result().completions]
        runtime = spec.runtime(self.decoder.max_num_drafts, min(verify) // 2)
        half = jax.jit(lambda p, s: decode_loop.run(spec, p, runtime, s))
        return half(self.params, self.begun())

    def _asked(self, state: DecodeState) -> Any:
        """What the network is asked of the rows of a state."""

        def asked(params, row: RowState):
            return states_to_query(self.decoder.spec, row, self._drafted(params, row))

        return jax.jit(jax.vmap(asked, (None, 0)))(self.params, state.rows)

    def _drafted(self, params, row: RowState):
        return propose_all(self.decoder.spec, params, row)

    def _jitted(self, part: Part, lanes: Lane, cache: KVCache) -> Callable[[], Any]:
        # The weights are an argument, as in the decode: as constants they would be
        # laid out anew by the compiler.
        def over(params, lanes, cache):
            one = lambda lane, cache: part(params, lane, cache)  # noqa: E731
            if len(self.prompts) == 1:  # not mapped, as in the decode
                return one(squeeze_axis(lanes, 0), squeeze_axis(cache, 1))
            return rows.map_batch(self.decoder.spec, one)(lanes, cache)

        made = jax.jit(over, compiler_options=compilation.compile_options())
        jax.block_until_ready(made(self.params, lanes, cache))
        return lambda: made(self.params, lanes, cache)

    def _call(self, params, lane: Lane, cache: KVCache):
        hidden, window = self._forward(params, lane, cache)
        slots = self.decoder.spec.num_states
        return self._reads(params, hidden, lane.row, slots), window

    def _prefill(self, params, lane: Lane, cache: KVCache):
        spec, row = self.decoder.spec, lane.row
        start = spec.layout.first_start(row.begin)
        room = batching.pack_prompts(self.decoder, self.prompts, 0, None)[1]
        window = spec.layout.used_length(min(spec.max_num_drafts, PREFILL_LOOKAHEAD))
        tokens_T = jnp.where(
            jnp.arange(row.tokens_T.shape[0]) < row.begin,
            row.tokens_T,
            jnp.int32(spec.layout.mask_id),
        )
        network = spec.model
        prime = (spec.guarded and network.fast_prefill) or network.prefill
        hidden_LE, made = prime(
            params, tokens_T, row.begin, start, row.end, window, room
        )
        return self._reads(params, hidden_LE, row, 1), made

    def _forward(self, params, lane: Lane, cache: KVCache):
        return query_model(self.decoder.spec, params, lane.row, lane.asked, cache)

    def _reads(self, params, hidden: jax.Array, row: RowState, states: int):
        """The head on the active blocks of some states and on one window."""
        grid, width = self.decoder.spec.layout, hidden.shape[-1]
        hidden_RE = hidden.reshape(-1, width)
        block_SWE = hidden_RE[: states * grid.block_length].reshape(states, -1, width)
        zero_SW = jnp.zeros(block_SWE.shape[:2], jnp.int32)
        spec = self.decoder.spec
        read = predictions.predict(spec, params, block_SWE, row.key, zero_SW, zero_SW)
        hidden_LE = hidden_RE[: grid.window_length]
        return read, predictions.predict_window(spec, params, hidden_LE, row)

    def _verify(self, params, lane: Lane, cache: KVCache):
        spec = self.decoder.spec
        runtime = spec.runtime(self.decoder.max_num_drafts)
        return commit(spec, params, verify_call(spec, params, runtime, lane.row, cache))

"""The parts of a decode, each compiled alone, so that they can be timed beside it.

A bare call is the network evaluated on the drafts of some state of a decode, with the
head reads that a step cannot do without: the active block of every draft and, where
drafts are made, the window of one. What a decode takes beyond its bare calls is the
overhead of the loop. Rows are mapped as in the decode, and none of them has ended.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bench.harness.timing import time_call
from jaxdave.core.config import Numerics
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


class RowQuery(NamedTuple):
    """A row and the query that its next call puts to the network.

    Attributes:
        row: the row's state.
        query: the states of its drafts, as `states_to_query` returns them.
        done: bool, True where the row has ended; mapping over rows reads it.
    """

    row: RowState
    query: Any
    done: jax.Array


Part = Callable[[Any, RowQuery, KVCache], Any]


@dataclasses.dataclass(frozen=True)
class DecodeBench:
    """A decoder with parameters and prompts, and its parts to time.

    Attributes:
        decoder: the decoder.
        params: the model's parameters.
        prompts: token ids of prompts that have one length.
    """

    decoder: Decoder
    params: Any
    prompts: list[list[int]]

    def decode(self) -> Result:
        """Decode all prompts.

        Returns:
            The result of `generate`.
        """
        return generation.generate(self.decoder, self.params, self.prompts)

    def time_decode(self) -> float:
        """Time a whole decode: packing, prefill, loop, reading rows back.

        Returns:
            Wall seconds.
        """
        return time_call(self.decode)

    def prefill(self) -> DecodeState:
        """Prefill the prompts.

        Returns:
            The state that the loop begins with.
        """
        return generation.prefill_prompts(self.decoder, self.params, self.prompts)

    def time_prefill(self) -> float:
        """Time packing and prefill.

        Returns:
            Wall seconds.
        """
        return time_call(self.prefill)

    def memory(self):
        """Look up the memory of the compiled decode loop, which must have been run.

        Returns:
            XLA's `memory_analysis()` of it.
        """
        return compilation.memory_analysis(self.decoder.spec, "run")

    def compile_parts(
        self, *names: str, state: DecodeState | None = None
    ) -> dict[str, Callable[[], Any]]:
        """Compile parts of a decode as functions without arguments.

        Args:
            *names: "call" (network and head), "prefill", "forward" (network without
                head), "draft", "verify" (a whole verify call); by default all.
            state: the state that they are computed in, by default that of half the
                calls; to get there the loop is compiled once more.

        Returns:
            The parts by name, compiled and called once.
        """
        row_states, cache = self._middle_state() if state is None else state
        query = self._query(row_states)
        row_queries = RowQuery(row_states, query, jnp.zeros_like(row_states.done))
        parts: dict[str, Part] = {
            "call": self._call,
            "prefill": self._prefill,
            "forward": self._forward,
            "draft": lambda params, row_query, _: self._propose(params, row_query.row),
            "verify": self._verify,
        }
        return {
            name: self._compile(parts[name], row_queries, cache)
            for name in names or parts
        }

    def _middle_state(self) -> DecodeState:
        """The state after half of the verify calls."""
        spec = self.decoder.spec
        verify = [row.nfe.verify for row in self.decode().completions]
        runtime = spec.runtime(self.decoder.max_num_drafts, min(verify) // 2)
        first_half = jax.jit(lambda p, s: decode_loop.run(spec, p, runtime, s))
        return first_half(self.params, self.prefill())

    def _query(self, row_states: RowState) -> Any:
        """The query of every row."""

        def query(params, row: RowState):
            return states_to_query(self.decoder.spec, row, self._propose(params, row))

        return jax.jit(jax.vmap(query, (None, 0)))(self.params, row_states)

    def _propose(self, params, row: RowState):
        return propose_all(self.decoder.spec, params, row)

    def _compile(
        self, part: Part, row_queries: RowQuery, cache: KVCache
    ) -> Callable[[], Any]:
        # The weights are an argument, as in the decode: as constants the compiler would
        # give them another layout.
        def over_rows(params, row_queries, cache):
            def one_row(row_query, cache):
                return part(params, row_query, cache)

            # A batch of one is not mapped, as in the decode: under vmap slices become
            # gathers, and conditions selects.
            if len(self.prompts) == 1:
                return one_row(squeeze_axis(row_queries, 0), squeeze_axis(cache, 1))
            return rows.map_batch(self.decoder.spec, one_row)(row_queries, cache)

        compiled = jax.jit(over_rows, compiler_options=compilation.compile_options())
        jax.block_until_ready(compiled(self.params, row_queries, cache))
        return lambda: compiled(self.params, row_queries, cache)

    def _call(self, params, row_query: RowQuery, cache: KVCache):
        hidden, window = self._forward(params, row_query, cache)
        num_states = self.decoder.spec.num_states
        return self._read_head(params, hidden, row_query.row, num_states), window

    def _prefill(self, params, row_query: RowQuery, cache: KVCache):
        del cache
        spec, row = self.decoder.spec, row_query.row
        start = spec.layout.first_start(row.begin)
        room = batching.pack_prompts(self.decoder, self.prompts, 0, None)[1]
        window = spec.layout.used_length(min(max(spec.draft_steps), PREFILL_LOOKAHEAD))
        # The row is in the middle of its decode; what it has committed is masked again.
        tokens_T = jnp.where(
            jnp.arange(row.tokens_T.shape[0]) < row.begin,
            row.tokens_T,
            jnp.int32(spec.layout.mask_id),
        )
        network = spec.model
        prefill = (
            spec.numerics is Numerics.GUARDED and network.fast_prefill
        ) or network.prefill
        hidden_LE, new_cache = prefill(
            params, tokens_T, row.begin, start, row.end, window, room
        )
        return self._read_head(params, hidden_LE, row, 1), new_cache

    def _forward(self, params, row_query: RowQuery, cache: KVCache):
        spec = self.decoder.spec
        return query_model(spec, params, row_query.row, row_query.query, cache)

    def _read_head(self, params, hidden: jax.Array, row: RowState, states: int):
        """The head on the active blocks of some states, and on one window."""
        grid, width = self.decoder.spec.layout, hidden.shape[-1]
        hidden_RE = hidden.reshape(-1, width)
        block_SWE = hidden_RE[: states * grid.block_length].reshape(states, -1, width)
        zero_SW = jnp.zeros(block_SWE.shape[:2], jnp.int32)
        spec = self.decoder.spec
        read = predictions.predict(spec, params, block_SWE, row.key, zero_SW, zero_SW)
        hidden_LE = hidden_RE[: grid.window_length]
        return read, predictions.predict_window(spec, params, hidden_LE, row)

    def _verify(self, params, row_query: RowQuery, cache: KVCache):
        spec = self.decoder.spec
        runtime = spec.runtime(self.decoder.max_num_drafts)
        return commit(
            spec, params, verify_call(spec, params, runtime, row_query.row, cache)
        )

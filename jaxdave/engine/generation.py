"""Prompts in, tokens out: the host's side of a decode.

`generate` runs the whole loop on the device; `stream` runs the same compiled loop a
round at a time and yields what it commits. Shapes are padded to buckets of powers of
two, and a program is compiled once per bucket.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdave.core.state import DecodeState, PromptBatch, RuntimeParams, host_array
from jaxdave.core.window import past_seen
from jaxdave.decoding import loop as decode_loop
from jaxdave.engine.autotune import tuned_params
from jaxdave.engine.batching import TokenIds, pack_prompts, probe_prompts
from jaxdave.engine.compaction import CompiledLoop, idle_account, run_to_end
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.results import Result, answer_end, read_rows
from jaxdave.runtime.compilation import (
    CompileRequest,
    get_executable,
    get_executable_pair,
)


class StreamUpdate(NamedTuple):
    """Tokens of one row that are final, with nothing undecided to their left."""

    row: int
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    call: int


def generate(
    decoder: Decoder,
    params: Any,
    prompts: TokenIds,
    *,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
) -> Result:
    """Decode every prompt to its end.

    prompts: token ids, of any lengths. seed, requests: key the noise at a temperature;
    requests default to 0 for every row, so that a text depends neither on the batch nor
    on the place in it. draft_text: for every prompt the ids of what the answer may look
    like, or none; right ones save calls, and none changes the text (the decoder's draft
    function must be a `hints.Hinted`). Raises ValueError for an empty prompt, or one
    with too little room after it, and for draft texts that cannot be used.
    """
    made = prepare(decoder, params, prompts, seed, requests, draft_text)
    start = time.perf_counter()
    opened = made.init(params, made.loop.runtime, made.prompts)
    held, making = run_to_end(made.loop, params, opened)
    seconds = time.perf_counter() - start - making
    layout = decoder.spec.layout
    rows = read_rows(
        held,
        length=layout.length,
        mask_id=layout.mask_id,
        stop_ids=layout.stop_ids,
        commits=layout.slide is past_seen,
    )
    return Result(rows, seconds, made.seconds + making)


def stream(
    decoder: Decoder,
    params: Any,
    prompts: TokenIds,
    *,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
) -> Iterator[StreamUpdate]:
    """Yield tokens as they become final, row by row, in order of position.

    A last update without tokens tells the call that ended the row. Arguments and errors
    as `generate`; the tokens are the same.
    """
    made = prepare(decoder, params, prompts, seed, requests, draft_text)
    # One round a call of the loop that `generate` begins with.
    state = made.init(params, made.loop.runtime, made.prompts)
    runtime = made.loop.runtime._replace(max_calls=host_array(np.int32(1)))
    sent = [len(prompt) for prompt in prompts]
    open_rows = set(range(len(prompts)))
    for call in range(2 * decoder.max_new_tokens + 1):
        wanted = state.rows.tokens_T, state.rows.done
        tokens_BT, done_B = _with_row_axis(state, jax.device_get(wanted))
        for row in sorted(open_rows):
            begun, done = len(prompts[row]), bool(done_B[row])
            last = _final_length(decoder, tokens_BT[row], begun, done)
            if last > sent[row]:
                ids = tuple(int(t) for t in tokens_BT[row, sent[row] : last])
                yield StreamUpdate(row, tuple(range(sent[row], last)), ids, call)
                sent[row] = last
            if done:
                open_rows.remove(row)
                yield StreamUpdate(row, (), (), call)
        if not open_rows:
            return
        state = made.loop.run(params, runtime, state)


class PreparedDecode(NamedTuple):
    """Compiled code and what it is given: init(params, terms, prompts) -> state, and
    the loop; seconds: spent on getting there."""

    init: Callable[..., DecodeState]
    loop: CompiledLoop
    prompts: PromptBatch
    seconds: float


def prepare(decoder: Decoder, params, prompts: TokenIds, *packed) -> PreparedDecode:
    """The programs of a bucket, compiled and measured; arguments as `generate`."""
    spec = decoder.spec
    first = _prefill_request(decoder, params, prompts, *packed)
    runtime, arrays = first.args[1:]

    running = functools.partial(decode_loop.run, spec)

    def loop(state: DecodeState) -> CompileRequest:
        return CompileRequest(spec, "run", running, (params, runtime, state), donate=2)

    init, run, seconds = get_executable_pair(first, loop)

    def fresh(runtime: RuntimeParams) -> DecodeState:
        return init(
            params, runtime, pack_prompts(decoder, probe_prompts(decoder, prompts))[0]
        )

    shapes = first.name, *((a.shape, str(a.dtype)) for a in arrays)
    runtime, measured = tuned_params(spec, runtime, run, params, fresh, shapes)
    room = first.name, arrays.tokens_BT.shape[1]
    made = CompiledLoop(spec, len(prompts), run, runtime, fresh, room)
    idle_account(made).made = max(idle_account(made).made, seconds)
    return PreparedDecode(init, made, arrays, seconds + measured)


def prefill_prompts(decoder: Decoder, params, prompts: TokenIds) -> DecodeState:
    """The prompts after their prefill, of which nothing is doubted."""
    wanted = _prefill_request(decoder, params, prompts)
    state = get_executable(wanted)[0](*wanted.args)
    return state.as_batch() if state.is_one else state


def _with_row_axis(state: DecodeState, held: Any) -> Any:
    """What the host holds of a state's rows, with their axis."""
    return jax.tree.map(lambda a: a[None], held) if state.is_one else held


def _prefill_request(
    decoder: Decoder, params, prompts: TokenIds, *packed
) -> CompileRequest:
    """The prefill."""
    spec = decoder.spec
    arrays, length = pack_prompts(decoder, prompts, *packed)

    def init(params, runtime: RuntimeParams, arrays: PromptBatch) -> DecodeState:
        return decode_loop.prefill(spec, params, runtime, arrays, length)

    runtime = spec.runtime(decoder.max_num_drafts, 2 * decoder.max_new_tokens)
    return CompileRequest(spec, f"init {length}", init, (params, runtime, arrays))


def _final_length(decoder: Decoder, tokens_T, begin: int, done: bool) -> int:
    """After the last token of a row that no later step can change."""
    layout, policy = decoder.spec.layout, decoder.spec.policy
    end = begin + decoder.max_new_tokens
    last, solid = answer_end(tokens_T, begin, end, layout.mask_id, layout.stop_ids)
    if done or not policy.revises:
        return last
    # Tokens of the block that is being decoded may still be taken back.
    first = begin if layout.anchored else 0
    return min(last, max(begin, solid - (solid - first) % layout.length))

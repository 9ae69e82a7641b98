"""Prompts in, tokens out: the host's side of a decode.

`generate` runs the whole loop on the device; `stream` runs the same compiled loop one
round at a time and yields what it commits. Shapes are padded to buckets of powers of
two, and a program is compiled once per bucket.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxdave.core.state import DecodeState, PromptBatch, RuntimeParams, host_array
from jaxdave.core.window import CacheRule
from jaxdave.decoding import loop as decode_loop
from jaxdave.engine.autotune import observe, tuned_params
from jaxdave.engine.batching import (
    TokenIds,
    check_params,
    pack_prompts,
    probe_prompts,
)
from jaxdave.engine.compaction import CompiledLoop, idle_account, run_to_end
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.results import (
    Completion,
    FinishReason,
    Result,
    answer_end,
    read_rows,
    row_finish,
)
from jaxdave.engine.timing import SeenDecode
from jaxdave.runtime.compilation import (
    CompileRequest,
    get_executable,
    get_executable_pair,
)
from jaxdave.runtime.platform import in_32_bits


class StreamUpdate(NamedTuple):
    """Tokens of one row that are final, with nothing undecided to their left.

    Attributes:
        row: Index of the prompt.
        positions: Their positions in the sequence.
        token_ids: The tokens.
        call: The network call that committed them, 0 for the prefill.
        finish_reason: As in `Completion`, of the last update of a row; else None.
    """

    row: int
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    call: int
    finish_reason: FinishReason | None = None


@in_32_bits()
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

    Args:
        decoder: What to decode (see `freedave`).
        params: The model's parameters; `DraftedParams` for a draft function that takes
            parameters.
        prompts: Token ids, of any lengths.
        seed: Keys the noise at a temperature, 0..2**32 - 1.
        requests: Number of each request, which keys its noise too; 0 for all by
            default, so that a text depends neither on the batch nor on its place in it.
        draft_text: For every prompt the ids of what the answer may look like, or none.
            Right ones save calls and none changes the text. The decoder's draft
            function must read them (see `with_guesses`).

    Returns:
        The answers in the order of the prompts, with their counts of network calls.

    Raises:
        ValueError: A prompt is empty or leaves too little room, draft texts cannot be
            used, or `params` do not fit the draft function.

    Example:
        >>> import jaxdave
        >>> model = jaxdave.load("sdar-1m")
        >>> decoder = jaxdave.freedave(model.config, draft_steps=4, max_new_tokens=8)
        >>> prompt_ids = model.codec.encode_prompt("How many pens?")
        >>> result = jaxdave.generate(decoder, model.params, [prompt_ids])
        >>> len(result.completions)
        1
    """
    prepared = prepare(decoder, params, prompts, seed, requests, draft_text)
    start = time.perf_counter()
    # Two programs: the prefill returns the state
    # that the loop then owns (and overwrites).
    state = prepared.prefill(params, prepared.loop.runtime, prepared.prompts)
    host_rows, compile_seconds = run_to_end(prepared.loop, params, state)
    seconds = time.perf_counter() - start - compile_seconds
    layout = decoder.spec.layout
    rows = read_rows(
        host_rows,
        max_new_tokens=decoder.max_new_tokens,
        length=layout.block_length,
        mask_id=layout.mask_id,
        stop_ids=layout.stop_ids,
        is_block_causal=layout.cache_rule is CacheRule.EXACT,
        tokens_per_step=decoder.spec.policy.tokens_per_step,
    )
    if len(rows) == 1:
        observe(decoder.spec, params, prepared.shapes, _seen(rows[0], seconds))
    return Result(rows, seconds, prepared.seconds + compile_seconds)


def stream(
    decoder: Decoder,
    params: Any,
    prompts: TokenIds,
    *,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
) -> Iterator[StreamUpdate]:
    """Decode tokens that come as they become final, row by row, in order of position.

    Args:
        decoder: As `generate`, and so are the others.
        params: The model's parameters.
        prompts: Token ids, of any lengths.
        seed: Keys the noise at a temperature.
        requests: Number of each request.
        draft_text: For every prompt the ids of what the answer may look like.

    Returns:
        An iterator of updates; the last one of a row has no tokens and names the call
        that ended it. The tokens are those of `generate`.

    Raises:
        ValueError: As `generate`, and at once.
    """
    # Not part of the generator, which would begin
    # with it only when the first update is asked for.
    prepared = prepare(decoder, params, prompts, seed, requests, draft_text)
    return _stream_updates(decoder, params, prompts, prepared)


def _stream_updates(
    decoder: Decoder, params: Any, prompts: TokenIds, prepared: "PreparedDecode"
) -> Iterator[StreamUpdate]:
    """Yield the updates of prompts that are prepared."""
    with in_32_bits():
        state = prepared.prefill(params, prepared.loop.runtime, prepared.prompts)
    # The loop that `generate` begins with, one round at a time.
    runtime = prepared.loop.runtime._replace(max_calls=host_array(np.int32(1)))
    sent = [len(prompt) for prompt in prompts]
    open_rows = set(range(len(prompts)))
    # Call 0 is the prefill.
    for call in range(decoder.max_rounds + 1):
        tokens_BT, done_B = state.fetch((state.rows.tokens_T, state.rows.done))
        for row in sorted(open_rows):
            begin, done = len(prompts[row]), bool(done_B[row])
            end = _final_length(decoder, tokens_BT[row], begin, done)
            if end > sent[row]:
                ids = tuple(int(t) for t in tokens_BT[row, sent[row] : end])
                yield StreamUpdate(row, tuple(range(sent[row], end)), ids, call)
                sent[row] = end
            if done:
                open_rows.remove(row)
                generated = tokens_BT[row, begin : begin + decoder.max_new_tokens]
                is_stopped = end < begin + decoder.max_new_tokens
                reason = row_finish(generated, is_stopped)
                yield StreamUpdate(row, (), (), call, reason)
        if not open_rows:
            return
        with in_32_bits():
            state = prepared.loop.run(params, runtime, state)


class PreparedDecode(NamedTuple):
    """Compiled programs of a bucket, and the prompts that they are given.

    Attributes:
        prefill: (params, runtime, prompts) -> state.
        loop: The compiled decode loop.
        prompts: The packed prompts.
        seconds: Spent on compiling and measuring just now.
        shapes: What tells the shapes that the programs were compiled for.
    """

    prefill: Callable[..., DecodeState]
    loop: CompiledLoop
    prompts: PromptBatch
    seconds: float
    shapes: Any


def _seen(row: Completion, seconds: float) -> SeenDecode:
    """A decode of one row as the measurement of its calls sees it."""
    # The first of a row's calls is its prefill.
    others = row.nfe.total - row.nfe.verify - 1
    return SeenDecode(seconds, row.sizes, others)


@in_32_bits()
def prepare(
    decoder: Decoder,
    params: Any,
    prompts: TokenIds,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
) -> PreparedDecode:
    """Compile (or fetch) and measure the programs for some prompts.

    Args:
        decoder: As `generate`, and so are the others.
        params: The model's parameters.
        prompts: Token ids, of any lengths.
        seed: Keys the noise at a temperature.
        requests: Number of each request.
        draft_text: For every prompt the ids of what the answer may look like.

    Returns:
        Programs and packed prompts.

    Raises:
        ValueError: As `generate`.
    """
    spec = decoder.spec
    check_params(spec, params)
    # Everything is compiled for a bucket of shapes,
    # never for the lengths of these prompts.
    request = _prefill_request(decoder, params, prompts, seed, requests, draft_text)
    runtime, packed = request.args[1:]
    run_loop = functools.partial(decode_loop.run, spec)

    def loop_request(state: DecodeState) -> CompileRequest:
        return CompileRequest(spec, "run", run_loop, (params, runtime, state), donate=2)

    # The loop is traced while the prefill is being compiled.
    prefill, run, seconds = get_executable_pair(request, loop_request)

    # Measured on random prompts of the same lengths: a measurement is kept for all
    # later texts, and must not depend on the first one. They are packed when something
    # is measured, which most decodes do not need.
    packed_probes = functools.cache(
        lambda: pack_prompts(decoder, probe_prompts(decoder, prompts))[0]
    )

    def new_state(runtime: RuntimeParams) -> DecodeState:
        return prefill(params, runtime, packed_probes())

    shapes = request.name, *((a.shape, str(a.dtype)) for a in packed)
    runtime, measured = tuned_params(spec, runtime, run, params, new_state, shapes)
    loop = CompiledLoop(
        spec=spec,
        num_rows=len(prompts),
        run=run,
        runtime=runtime,
        new_state=new_state,
        row_shape=(request.name, packed.tokens_BT.shape[1]),
    )
    # What compiling has cost is the price that a smaller loop is measured against.
    account = idle_account(loop)
    account.compile_seconds = max(account.compile_seconds, seconds)
    return PreparedDecode(prefill, loop, packed, seconds + measured, shapes)


@in_32_bits()
def prefill_prompts(decoder: Decoder, params: Any, prompts: TokenIds) -> DecodeState:
    """Prefill prompts, trusting every decision.

    Args:
        decoder: What to decode.
        params: The model's parameters.
        prompts: Token ids, of any lengths.

    Returns:
        The state after one call, always with a batch axis.
    """
    request = _prefill_request(decoder, params, prompts)
    return get_executable(request)[0](*request.args).with_batch_axis()


def _prefill_request(
    decoder: Decoder,
    params: Any,
    prompts: TokenIds,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
) -> CompileRequest:
    """What to compile for the prefill of some prompts."""
    spec = decoder.spec
    packed, length = pack_prompts(decoder, prompts, seed, requests, draft_text)

    def prefill(params, runtime: RuntimeParams, prompts: PromptBatch) -> DecodeState:
        return decode_loop.prefill(spec, params, runtime, prompts, length)

    runtime = spec.runtime(decoder.max_num_drafts, decoder.max_rounds)
    return CompileRequest(spec, f"prefill {length}", prefill, (params, runtime, packed))


def _final_length(
    decoder: Decoder, tokens_T: np.ndarray, begin: int, done: bool
) -> int:
    """The position after the last token of a row that no later step can change."""
    layout, policy = decoder.spec.layout, decoder.spec.policy
    end = begin + decoder.max_new_tokens
    last, solid = answer_end(tokens_T, begin, end, layout.mask_id, layout.stop_ids)
    # Without revision a token is final once nothing to its left is masked: no end token
    # can come before it any more.
    if done or not policy.revises:
        return last
    # Tokens of the block that is being decoded may still be taken back.
    first = begin if layout.anchored else 0
    return min(last, max(begin, solid - (solid - first) % layout.block_length))

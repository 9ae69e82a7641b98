"""Prompts in, tokens out: the host's side of a decode.

`generate` runs the whole loop on the device (`engine.streaming` runs the same loop call
by call). Shapes are padded to buckets of powers of two, and a program is compiled once
per bucket.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxdave.core.state import DecodeState, PromptBatch, RuntimeParams
from jaxdave.core.window import CacheRule
from jaxdave.engine.autotune import observe, tuned_params
from jaxdave.engine.batching import (
    TokenIds,
    check_groups,
    check_params,
    pack_prompts,
    probe_prompts,
)
from jaxdave.engine.compaction import CompiledLoop, idle_account, run_to_end
from jaxdave.engine.decoders import Decoder
from jaxdave.engine.placement import Placement, placement_of
from jaxdave.engine.results import (
    Completion,
    HostRows,
    Result,
    read_rows,
)
from jaxdave.engine.timing import SeenDecode
from jaxdave.runtime.compilation import (
    CompileRequest,
    get_executable,
    get_executable_pair,
)
from jaxdave.runtime.memory import peak_memory
from jaxdave.runtime.platform import in_32_bits


@in_32_bits()
def generate(
    decoder: Decoder,
    params: Any,
    prompts: TokenIds,
    *,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
    group_size: int = 1,
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
        group_size: So many prompts in a row are the same and are evaluated once, as
            for several answers to one question. Give them requests of their own.

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
    prepared = prepare(decoder, params, prompts, seed, requests, draft_text, group_size)
    start = time.perf_counter()
    # Two programs: the prefill returns the state
    # that the loop then owns (and overwrites).
    state = prepared.prefill(params, prepared.loop.runtime, prepared.prompts)
    host_rows, compile_seconds = run_to_end(prepared.loop, params, state)
    seconds = time.perf_counter() - start - compile_seconds
    if prepared.num_prompts < len(prepared.prompts.begin_B):
        # Rows that fill up a batch come last.
        host_rows = jax.tree.map(lambda a: a[: prepared.num_prompts], host_rows)
    rows = read_completions(decoder, host_rows)
    if len(rows) == 1:
        seen = _seen(rows[0], seconds)
        observe(prepared.loop.spec, params, prepared.shapes, seen)
    compile_seconds += prepared.seconds
    return Result(rows, seconds, compile_seconds, peak_memory())


def read_completions(decoder: Decoder, rows: HostRows) -> tuple[Completion, ...]:
    """Read the completions of rows of a decoder.

    Args:
        decoder: What was decoded.
        rows: The rows, on the host.

    Returns:
        A completion for every row.
    """
    layout = decoder.spec.layout
    return read_rows(
        rows,
        max_new_tokens=decoder.max_new_tokens,
        length=layout.block_length,
        mask_id=layout.mask_id,
        stop_ids=layout.stop_ids,
        # Over a causal context the call that stores a block is a step of the policy.
        is_block_causal=layout.cache_rule is CacheRule.EXACT and not layout.anchored,
        tokens_per_step=decoder.spec.policy.tokens_per_step,
    )


class PreparedDecode(NamedTuple):
    """Compiled programs of a bucket, and the prompts that they are given.

    Attributes:
        prefill: (params, runtime, prompts) -> state.
        loop: The compiled decode loop.
        prompts: The packed prompts.
        seconds: Spent on compiling and measuring just now.
        shapes: What tells the shapes that the programs were compiled for.
        num_prompts: Rows that are no spare ones.
    """

    prefill: Callable[..., DecodeState]
    loop: CompiledLoop
    prompts: PromptBatch
    seconds: float
    shapes: Any
    num_prompts: int


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
    group_size: int = 1,
) -> PreparedDecode:
    """Compile (or fetch) and measure the programs for some prompts.

    Args:
        decoder: As `generate`, and so are the others.
        params: The model's parameters.
        prompts: Token ids, of any lengths.
        seed: Keys the noise at a temperature.
        requests: Number of each request.
        draft_text: For every prompt the ids of what the answer may look like.
        group_size: So many prompts in a row are the same.

    Returns:
        Programs and packed prompts.

    Raises:
        ValueError: As `generate`.
    """
    check_params(decoder.spec, params)
    placement = placement_of(params)
    # Everything is compiled for a bucket of shapes,
    # never for the lengths of these prompts.
    request = _prefill_request(
        decoder, placement, params, prompts, seed, requests, draft_text, group_size
    )
    spec, (runtime, packed) = request.owner, request.args[1:]
    num_rows = len(packed.begin_B)

    def loop_request(state: DecodeState) -> CompileRequest:
        is_single = state.is_single
        run_loop = placement.loop_program(spec, params, is_single)
        state = placement.structs(state, placement.state_specs(spec, is_single))
        return CompileRequest(spec, "run", run_loop, (params, runtime, state), donate=2)

    # The loop is traced while the prefill is being compiled.
    prefill, run, seconds = get_executable_pair(request, loop_request)

    # Measured on random prompts of the same lengths: a measurement is kept for all
    # later texts, and must not depend on the first one. They are packed when something
    # is measured, which most decodes do not need.
    @functools.cache
    def packed_probes() -> PromptBatch:
        drawn = probe_prompts(decoder, prompts)
        # The prefill takes the first prompt of a group for all of them.
        grouped = [drawn[row - row % group_size] for row in range(len(drawn))]
        probes = pack_prompts(decoder, grouped)[0]
        return placement.put(placement.pad_rows(probes), placement.rows_spec)

    def new_state(runtime: RuntimeParams) -> DecodeState:
        return prefill(params, runtime, packed_probes())

    shapes = request.name, *((a.shape, str(a.dtype)) for a in jax.tree.leaves(packed))
    runtime, measured = tuned_params(spec, runtime, run, params, new_state, shapes)
    loop = CompiledLoop(
        spec=spec,
        num_rows=num_rows // placement.num_groups,
        run=run,
        runtime=runtime,
        new_state=new_state,
        row_shape=(request.name, packed.tokens_BT.shape[1]),
        placement=placement,
    )
    # What compiling has cost is the price that a smaller loop is measured against.
    account = idle_account(loop)
    account.compile_seconds = max(account.compile_seconds, seconds)
    return PreparedDecode(
        prefill, loop, packed, seconds + measured, shapes, len(prompts)
    )


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
    request = _prefill_request(decoder, placement_of(params), params, prompts)
    return get_executable(request)[0](*request.args).with_batch_axis()


def _prefill_request(
    decoder: Decoder,
    placement: Placement,
    params: Any,
    prompts: TokenIds,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: TokenIds | None = None,
    group_size: int = 1,
) -> CompileRequest:
    """What to compile for the prefill of some prompts."""
    spec = placement.spec_of(decoder.spec)
    packed, length = pack_prompts(decoder, prompts, seed, requests, draft_text)
    packed = placement.put(placement.pad_rows(packed), placement.rows_spec)
    check_groups(prompts, group_size)
    num_rows = len(packed.begin_B)
    # Rows of one prompt that lie on several devices are evaluated once on each.
    group_size = math.gcd(num_rows // placement.num_groups, group_size)
    prefill = placement.prefill_program(spec, params, num_rows, length, group_size)
    name = f"prefill {length}" + (f" by {group_size}" if group_size > 1 else "")
    runtime = spec.runtime(decoder.max_num_drafts, decoder.max_rounds)
    return CompileRequest(spec, name, prefill, (params, runtime, packed))

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

from jaxdave import decode
from jaxdave.decode import DecodeState
from jaxdave.decoders import Decoder
from jaxdave.executables import Wanted, compiled, compiled_in_turn
from jaxdave.grid import past_seen
from jaxdave.hints import check_hints
from jaxdave.model.attention import TILE
from jaxdave.result import Result, read_rows, settled
from jaxdave.shrink import Loop, spent, to_the_end
from jaxdave.terms import Prompts, Terms, hosted
from jaxdave.tune import terms_for


class Update(NamedTuple):
    """Tokens of one row that are final, with nothing undecided to their left."""

    row: int
    positions: tuple[int, ...]
    token_ids: tuple[int, ...]
    call: int


Ids = Sequence[Sequence[int]]


def generate(
    decoder: Decoder,
    params: Any,
    prompts: Ids,
    *,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: Ids | None = None,
) -> Result:
    """Decode every prompt to its end.

    prompts: token ids, of any lengths. seed, requests: key the noise at a temperature;
    requests default to 0 for every row, so that a text depends neither on the batch nor
    on the place in it. draft_text: for every prompt the ids of what the answer may look
    like, or none; right ones save calls, and none changes the text (the decoder's draft
    function must be a `hints.Hinted`). Raises ValueError for an empty prompt, or one
    with too little room after it, and for draft texts that cannot be used.
    """
    made = ready(decoder, params, prompts, seed, requests, draft_text)
    start = time.perf_counter()
    opened = made.init(params, made.loop.terms, made.prompts)
    held, making = to_the_end(made.loop, params, opened)
    seconds = time.perf_counter() - start - making
    grid = decoder.program.grid
    rows = read_rows(
        held,
        length=grid.length,
        mask_id=grid.mask_id,
        stop_ids=grid.stop_ids,
        commits=grid.slide is past_seen,
    )
    return Result(rows, seconds, made.seconds + making)


def stream(
    decoder: Decoder,
    params: Any,
    prompts: Ids,
    *,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: Ids | None = None,
) -> Iterator[Update]:
    """Yield tokens as they become final, row by row, in order of position.

    A last update without tokens tells the call that ended the row. Arguments and errors
    as `generate`; the tokens are the same.
    """
    made = ready(decoder, params, prompts, seed, requests, draft_text)
    # One round a call of the loop that `generate` begins with.
    state = made.init(params, made.loop.terms, made.prompts)
    terms = made.loop.terms._replace(calls=hosted(np.int32(1)))
    sent = [len(prompt) for prompt in prompts]
    open_rows = set(range(len(prompts)))
    for call in range(2 * decoder.max_new_tokens + 1):
        wanted = state.rows.tokens_T, state.rows.done
        tokens_BT, done_B = _of_all(state, jax.device_get(wanted))
        for row in sorted(open_rows):
            begun, done = len(prompts[row]), bool(done_B[row])
            last = _final(decoder, tokens_BT[row], begun, done)
            if last > sent[row]:
                ids = tuple(int(t) for t in tokens_BT[row, sent[row] : last])
                yield Update(row, tuple(range(sent[row], last)), ids, call)
                sent[row] = last
            if done:
                open_rows.remove(row)
                yield Update(row, (), (), call)
        if not open_rows:
            return
        state = made.loop.run(params, terms, state)


class Ready(NamedTuple):
    """Compiled code and what it is given: init(params, terms, prompts) -> state, and
    the loop; seconds: spent on getting there."""

    init: Callable[..., DecodeState]
    loop: Loop
    prompts: Prompts
    seconds: float


def ready(decoder: Decoder, params, prompts: Ids, *packed) -> Ready:
    """The programs of a bucket, compiled and measured; arguments as `generate`."""
    program = decoder.program
    first = _opening(decoder, params, prompts, *packed)
    terms, arrays = first.args[1:]

    running = functools.partial(decode.run, program)

    def loop(state: DecodeState) -> Wanted:
        return Wanted(program, "run", running, (params, terms, state), donate=2)

    init, run, seconds = compiled_in_turn(first, loop)

    def fresh(terms: Terms) -> DecodeState:
        return init(params, terms, _pack(decoder, _probes(decoder, prompts))[0])

    shapes = first.name, *((a.shape, str(a.dtype)) for a in arrays)
    terms, measured = terms_for(program, terms, run, params, fresh, shapes)
    room = first.name, arrays.tokens_BT.shape[1]
    made = Loop(program, len(prompts), run, terms, fresh, room)
    spent(made).made = max(spent(made).made, seconds)
    return Ready(init, made, arrays, seconds + measured)


def begin(decoder: Decoder, params, prompts: Ids) -> DecodeState:
    """The prompts after their prefill, of which nothing is doubted."""
    wanted = _opening(decoder, params, prompts)
    state = compiled(wanted)[0](*wanted.args)
    return state.as_batch() if state.is_one else state


def _of_all(state: DecodeState, held: Any) -> Any:
    """What the host holds of a state's rows, with their axis."""
    return jax.tree.map(lambda a: a[None], held) if state.is_one else held


def _opening(decoder: Decoder, params, prompts: Ids, *packed) -> Wanted:
    """The prefill."""
    program = decoder.program
    arrays, length = _pack(decoder, prompts, *packed)

    def init(params, terms: Terms, arrays: Prompts) -> DecodeState:
        return decode.init(program, params, terms, arrays, length)

    terms = program.terms(decoder.cap, 2 * decoder.max_new_tokens)
    return Wanted(program, f"init {length}", init, (params, terms, arrays))


def _probes(decoder: Decoder, prompts: Ids) -> Ids:
    """Prompts of random tokens, as long as those given."""
    network, grid = decoder.program.network, decoder.program.grid
    never = {grid.mask_id, *grid.stop_ids, *network.banned}
    usable = [token for token in range(network.vocab_size) if token not in never]
    rng = np.random.default_rng(0)
    return [rng.choice(usable, len(prompt)).tolist() for prompt in prompts]


def _pack(
    decoder: Decoder,
    prompts: Ids,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    draft_text: Ids | None = None,
) -> tuple[Prompts, int]:
    """The prompts as padded arrays, and the length that the prefill must cover."""
    _check(decoder, prompts, seed, requests)
    grid = decoder.program.grid
    lengths = [len(prompt) for prompt in prompts]
    room = bucket(max(lengths) + grid.window_length)
    capacity = -(-(room + decoder.max_new_tokens) // TILE) * TILE
    tokens = _padded(prompts, capacity, grid.mask_id)
    hints = check_hints(decoder.program, draft_text, len(prompts))
    begin = np.asarray(lengths, np.int32)
    ids = np.zeros(len(prompts), np.int32) if requests is None else requests
    arrays = Prompts(
        hosted(tokens),
        hosted(begin),
        hosted(begin + np.int32(decoder.max_new_tokens)),
        hosted(_padded([ids[:capacity] for ids in hints], capacity, -1)),
        hosted(np.full(len(prompts), seed, np.uint32)),
        hosted(np.asarray(ids, np.uint32)),
    )
    return arrays, room


def _padded(rows: Ids, length: int, fill: int) -> np.ndarray:
    made = np.full((len(rows), length), fill, np.int32)
    for row, ids in enumerate(rows):
        made[row, : len(ids)] = ids
    return made


def bucket(length: int) -> int:
    """The next power of two, at least one tile of keys."""
    return max(TILE, 1 << (length - 1).bit_length())


def _check(decoder: Decoder, prompts: Ids, seed: int, requests) -> None:
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed={seed} must be in 0..{(1 << 32) - 1}")
    if not len(prompts):
        raise ValueError("prompts=[] holds no prompt; give at least one")
    if requests is not None and len(requests) != len(prompts):
        raise ValueError(
            f"{len(requests)} requests for {len(prompts)} prompts; give one each"
        )
    most = decoder.max_positions - decoder.max_new_tokens
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {row} is empty; give at least one token")
        if len(prompt) > most:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens, but the model allows "
                f"{decoder.max_positions} with max_new_tokens="
                f"{decoder.max_new_tokens} of them new; shorten it or ask for fewer"
            )


def _final(decoder: Decoder, tokens_T, begin: int, done: bool) -> int:
    """After the last token of a row that no later step can change."""
    grid, policy = decoder.program.grid, decoder.program.policy
    end = begin + decoder.max_new_tokens
    last, solid = settled(tokens_T, begin, end, grid.mask_id, grid.stop_ids)
    if done or not policy.revises:
        return last
    # Tokens of the block that is being decoded may still be taken back.
    first = begin if grid.anchored else 0
    return min(last, max(begin, solid - (solid - first) % grid.length))

"""A draft function traced on its own, so that a mistake is found before a long compile.

Nothing is computed: shapes go through the three functions as they do in the decode
loop. The policy's step is replaced by a stand-in of the same shapes, as it is not what
is checked and may need the model's parameters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import (
    DraftContext,
    DraftedParams,
    DraftState,
    StatesAhead,
)
from jaxdave.core.spec import DecodeSpec
from jaxdave.core.state import PolicyState, PromptBatch, RowState
from jaxdave.decoding.policy_step import row_policy_state, states_to_evaluate
from jaxdave.decoding.prefill_rows import empty_row
from jaxdave.decoding.propose import draft_context
from jaxdave.drafting.validation import check_draft_set, check_memory


def check_draft_fn(spec: DecodeSpec, draft_params: Any, hidden_width: int) -> None:
    """Check a decode's draft function by its shapes.

    Args:
        spec: The decode; `spec.num_drafts` drafts are asked for.
        draft_params: Parameters of the draft function, arrays or their shapes; None for
            one that takes none.
        hidden_width: Width of the model's hidden vectors.

    Raises:
        ValueError: One of its functions fails, or returns something of another shape,
            dtype or structure than it must; in one line.
    """
    prompt, hidden_LE = _prompt_shapes(spec, hidden_width)
    jax.eval_shape(
        lambda *shapes: _trace(spec, *shapes), draft_params, prompt, hidden_LE
    )


def _prompt_shapes(
    spec: DecodeSpec, hidden_width: int
) -> tuple[PromptBatch, jax.ShapeDtypeStruct]:
    """One prompt, without a batch axis, and the hidden vectors of its window."""
    length = spec.layout.window_length

    def shape(dtype: Any, *dims: int) -> Any:
        return jax.ShapeDtypeStruct(dims, dtype)

    prompt = PromptBatch(
        tokens_BT=shape(jnp.int32, 2 * length),
        begin_B=shape(jnp.int32),
        end_B=shape(jnp.int32),
        draft_text_BT=shape(jnp.int32, 2 * length),
        seed_B=shape(jnp.uint32),
        request_B=shape(jnp.uint32),
    )
    return prompt, shape(jnp.float32, length, hidden_width)


def _trace(
    spec: DecodeSpec, draft_params: Any, prompt: PromptBatch, hidden_LE: jax.Array
) -> None:
    draft = spec.draft
    row = empty_row(spec, prompt, hidden_LE)
    memory = _call("init(params, row)", draft.init, draft_params, row)
    row = dataclasses.replace(row, draft_memory=check_memory(memory, memory))
    state = row_policy_state(spec, row)
    tokens_NL = states_to_evaluate(spec, row, state)
    first = DraftState(state, tokens_NL, jnp.bool_(True))
    context = _context(spec, draft_params, row, tokens_NL)
    signature = "propose(context, first, num_drafts)"
    drafts = _call(signature, draft.propose, context, first, spec.num_drafts)
    check_draft_set(drafts, tokens_NL.shape, spec.num_drafts, spec.policy.edits)
    memory = _call(
        "update(params, memory, row)", draft.update, draft_params, memory, row
    )
    check_memory(row.draft_memory, memory)


def _context(
    spec: DecodeSpec, draft_params: Any, row: RowState, tokens_NL: jax.Array
) -> DraftContext:
    """A context whose policy stands still."""

    def simulate(state: PolicyState, depth: jax.Array) -> DraftState:
        del depth
        return DraftState(state, tokens_NL, jnp.bool_(False))

    def run_ahead(first: DraftState, num_steps: int) -> StatesAhead:
        tokens_NL, progress = first.tokens_NL, first.policy_state.progress
        tokens_KNL, progress_K = jax.tree.map(
            lambda a: jnp.broadcast_to(a, (num_steps, *a.shape)), (tokens_NL, progress)
        )
        return StatesAhead(tokens_KNL, jnp.zeros((num_steps,), bool), progress_K)

    def with_tokens(token_L: jax.Array) -> DraftContext:
        del token_L
        return context

    params = DraftedParams(model=None, draft=draft_params)
    context = draft_context(spec, params, row)
    context = context._replace(
        simulate=simulate, run_ahead=run_ahead, with_tokens=with_tokens
    )
    return context


def _call(signature: str, function: Callable[..., Any], *args: Any) -> Any:
    """The result of a user's function; what it raises, in one line."""
    try:
        return function(*args)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"draft: {signature} fails while it is traced ({reason}); mend it, "
            "or give parameters that fit it (see jaxdave.core.draft_api)"
        ) from error

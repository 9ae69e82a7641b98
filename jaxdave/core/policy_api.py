"""The interface of decoding policies, and the legend of axis letters.

A policy decides which masked positions one decoding step fills, and may edit what it
has filled. It sees a `PolicyView` and is a record of pure functions, a `Policy`.

Arrays are named with a suffix of axis letters, `tokens_NW` is [N, W]:

  B  rows of a batch, one request each      P  positions of one block
  T  all positions of a row (its canvas)    D  depths of future noise
  L  positions of the decoding window       V  vocabulary
  W  positions of a stretch of the window   H  attention heads
     (the active block)                     G  key/value heads
  K  drafts of a call                       E  features of a hidden vector
  N  candidates of a policy step; layers    X  ids of one chunk of the vocabulary
     of weights and caches                  Z  possible draft lengths
  S  states of a call, S = K N              C  calls of a row
  M  distinct block states of a call; ids   R  any rows of a matrix
     at each position                       I  steps of a schedule
  J  blocks of the window

The engine is written for one row and mapped over the rows of a batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxdave.core.prediction import ErrorBound, Prediction


class ModelQueries(NamedTuple):
    """What a policy may ask of the model beyond its `Prediction`.

    The functions are evaluated only by policies that call them.

    Attributes:
        hidden_WE: The hidden vectors that predict the positions of the block, [W, E].
        logits_at: Maps ids int32 [W, M] to their tempered logits, float32 [W, M].
        divergence: Maps the `hidden_WE` of an earlier state to the KL divergence, in
            nats, of the present distributions from those, float32 [W].
        shadow_at: Maps ids int32 [W] to their log-odds against all other ids, float32
            [W], under the shadow prediction: what the model would predict at a position
            if only that position were masked. Only for policies with `Policy.shadow`.
    """

    hidden_WE: jax.Array
    logits_at: Callable[[jax.Array], jax.Array]
    divergence: Callable[[jax.Array], jax.Array]
    shadow_at: Callable[[jax.Array], jax.Array]


class PolicyView(NamedTuple):
    """All that a policy may look at: the active block and the model's prediction of it.

    The active block is the first one with masks, of a policy that edits the first one
    that has not ended. A policy never sees what is to the right of it, so its decisions
    do not depend on how far the window reaches.

    Attributes:
        tokens_W: The block's tokens, int32 [W]; `mask_id` at masked positions.
        open_W: True at the masked positions that may be filled now, bool [W]; nowhere
            in a post step of a policy that edits.
        decoded_W: True at positions that hold a generated token, bool [W]; never at
            those of the prompt.
        pred: The model's `Prediction` of the block.
        position_W: Positions counted from the first generated one, int32 [W]; below 0
            in the prompt.
        max_new_tokens: How many positions are decoded in all, int32 scalar: the length
            asked for, and what it takes to fill its last block.
        mask_id: The id of the mask token, int32 scalar.
        step: Index of this policy step in the row, int32 scalar.
        key: PRNG key of (request, step), for noise of the policy's own. Fold the
            position in to get one key per position (`common.position_uniforms`).
        queries: Further questions to the model, see `ModelQueries`.
    """

    tokens_W: jax.Array
    open_W: jax.Array
    decoded_W: jax.Array
    pred: Prediction
    position_W: jax.Array
    max_new_tokens: jax.Array
    mask_id: jax.Array
    step: jax.Array
    key: jax.Array
    queries: ModelQueries


Memory = Any
"""A policy's own pytree of arrays; () for a policy that only looks at the view."""


class Candidates(NamedTuple):
    """The memory of a policy that chooses between candidate states.

    Attributes:
        tokens_NW: The active block as each candidate would leave it, int32 [N, W].
        prior_N: Scores of the candidates before the model has evaluated them, float32
            [N].
    """

    tokens_NW: jax.Array
    prior_N: jax.Array


class CandidateScoring(NamedTuple):
    """How a policy chooses between candidates: one call evaluates all of them.

    The policy goes to the candidate with the highest `prior_N` + `score_fn(view)`; the
    first one wins ties.

    Attributes:
        count: Number of candidates N.
        score_fn: Maps the view of an evaluated candidate to its score, float32 scalar.
    """

    count: int
    score_fn: Callable[[PolicyView], jax.Array]


def no_memory(size: int, width: int) -> Memory:
    """The memory of a policy that has none.

    Args:
        size: Positions of a block, W.
        width: Features of a hidden vector, E.

    Returns:
        The empty tuple, a pytree without leaves.
    """
    del size, width
    return ()


class PositionCount(NamedTuple):
    """A parameter of a policy that counts positions, which only so many can meet.

    Attributes:
        name: The parameter's name.
        value: Its value.
        of: What holds the positions: "block" or "answer".
    """

    name: str
    value: int
    of: str


class Policy(NamedTuple):
    """The rule that decides what one decoding step fills in, as pure functions.

    Policies are compared and hashed by their functions: compiled programs are cached by
    policy, so make a policy once, not per request.

    Attributes:
        name: A name for messages and reports. Two policies may share one.
        step: Maps (view, memory) to (tokens_W, memory). It must fill at least one open
            position whenever there is one, and may change no other. Under `revises` it
            may also turn decoded tokens back into masks, even more than it fills, but
            no block may take more steps than it had masks at its beginning. Under
            `max_post_steps` it may also replace decoded tokens by others.
        init: Maps (block size W, features E) to the memory before the first step.
        revises: The policy may mask decoded tokens again.
        lossless: False for a rule that speculates with the text itself, so that
            decoders only take it with `lossy=True`.
        scoring: For a policy that chooses between candidates: its step fills nothing,
            and returns `Candidates` as its memory. None for all others.
        shadow: The policy calls `ModelQueries.shadow_at`; the model is then evaluated
            with shadow masks.
        is_certain: Maps (view, memory, error bound) to a bool scalar: True only if the
            step would be the same for all predictions within the bound that have the
            same tokens at the open positions. None if the rule cannot tell; it is then
            decoded under exact numerics.
        commit_order: Maps (view, memory) to the step at which each open position would
            be committed, int32 [W], 0 for the next step, if the predictions stayed what
            they are: all steps in the block as `step` would take them, of which each
            may only fill open positions with their predicted tokens. Drafts are made of
            it without a loop; nothing that is committed depends on it. None: `step` is
            simulated.
        tokens_per_step: How many tokens every step commits while there are as many in
            the block; None where that varies. Only reports look at it.
        counts: Parameters that count positions. Where one is more than there are
            positions it would silently mean "all", so decoders refuse it.
        draws: Its step reads `PolicyView.key`, so that answers differ by request at
            temperature 0 too.
        max_post_steps: The policy edits: a step may replace decoded tokens of the block
            by other tokens, never by masks. A block without masks takes further steps,
            with nothing open, until one changes nothing or so many were taken; 0: it
            ends with its last mask. None: decoded tokens stay.

    Example:
        def step(view, memory):  # fill the leftmost open position
            first_W = jnp.cumsum(view.open_W, dtype=jnp.int32) == 1
            chosen_W = view.open_W & first_W
            return jnp.where(chosen_W, view.pred.token, view.tokens_W), memory

        leftmost = Policy("leftmost", step)
    """

    name: str
    step: Callable[[PolicyView, Memory], tuple[jax.Array, Memory]]
    init: Callable[[int, int], Memory] = no_memory
    revises: bool = False
    lossless: bool = True
    scoring: CandidateScoring | None = None
    shadow: bool = False
    is_certain: Callable[[PolicyView, Memory, ErrorBound], jax.Array] | None = None
    commit_order: Callable[[PolicyView, Memory], jax.Array] | None = None
    tokens_per_step: int | None = None
    counts: tuple[PositionCount, ...] = ()
    draws: bool = False
    max_post_steps: int | None = None

    @property
    def edits(self) -> bool:
        """A step may replace decoded tokens by others."""
        return self.max_post_steps is not None

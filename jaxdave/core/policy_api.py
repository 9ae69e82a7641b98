"""The words that every module shares, and the one legend of axis letters.

Axes: B rows (requests), T the whole canvas of a row, L the window being decoded, W a
stretch of it (the active block), K drafts, N branches of a draft (of weights and
caches: layers), S slots of a call (K N states), M pieces of a call (distinct states of
blocks; of ids: so many per position), J blocks of the window, P positions of one, D
depths of future noise, V vocabulary, H heads, G key/value heads, E features, X
vocabulary chunk.

The engine is written for one row; `decode.Program.over_rows` maps it over rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxdave.core.prediction import ErrorBound, Prediction


class ModelQueries(NamedTuple):
    """For rules that need more of the model than a `Prediction` holds.

    hidden_WE: the vectors that the stretch is predicted from. logits_at(ids_WM):
    tempered logits of some ids. divergence(hidden_WE of an earlier state): KL of the
    distributions now from those then, nats, [W]. shadow_at(ids_W): log of the odds of
    each id against all others, as the shadow of its position says (`Policy.shadow`).
    """

    hidden_WE: jax.Array
    logits_at: Callable[[jax.Array], jax.Array]
    divergence: Callable[[jax.Array], jax.Array]
    shadow_at: Callable[[jax.Array], jax.Array]


class PolicyView(NamedTuple):
    """What a policy may look at: the active block, its prediction, and where it stands.

    open_W: True where a masked position may be committed now. decoded_W: True where a
    generated token stands (never the prompt). place_W: positions counted from the first
    generated one. room: how many there are. step: policy-step index n of this state.
    key: PRNG key of (request, n) for a policy's own noise; `noise.position_keys`
    makes one per position of it.
    """

    tokens_W: jax.Array
    open_W: jax.Array
    decoded_W: jax.Array
    pred: Prediction
    position_W: jax.Array
    room: jax.Array
    mask_id: jax.Array
    step: jax.Array
    key: jax.Array
    queries: ModelQueries


Memory = Any
"""A policy's own pytree of arrays; () for a policy that only looks at the view."""


class Candidates(NamedTuple):
    """The memory of a policy that weighs candidates: the active block as each would
    leave it, and float32, what speaks for each before the network has seen it."""

    tokens_NW: jax.Array
    prior_N: jax.Array


class CandidateScoring(NamedTuple):
    """How a policy weighs candidates: one call evaluates all `count` of them.

    worth(view of a candidate) -> float32: what speaks for it once it is evaluated. The
    policy goes to the candidate of the highest merit + worth, the first among equals.
    """

    count: int
    worth: Callable[[PolicyView], jax.Array]


class Policy(NamedTuple):
    """The rule that says what one decoding step commits, as two pure functions.

    step(view, memory) -> (tokens_W, memory): must fill at least one open position
    whenever there is one, and may touch no other (unless `revises`: then decoded tokens
    may become masks again, even more than the step fills, but no block may take more
    steps than it began with masks). init(W, E) -> the memory before the first step.
    branching: for a policy whose step commits nothing yet, but leaves `Branches` as its
    memory for the network to weigh. shadow: whether it asks for `Look.shadow_at`; the
    network is evaluated with shadows then. lossless: False for a rule that speculates
    with the text itself. sure(view, memory, Doubt) -> whether the step would be the
    same if every number were off by as much and no open position had another token;
    None: the rule cannot tell, so that it is only decoded under exact numerics.
    """

    name: str
    step: Callable[[PolicyView, Memory], tuple[jax.Array, Memory]]
    init: Callable[[int, int], Memory] = lambda size, width: ()
    revises: bool = False
    lossless: bool = True
    scoring: CandidateScoring | None = None
    shadow: bool = False
    is_certain: Callable[[PolicyView, Memory, ErrorBound], jax.Array] | None = None

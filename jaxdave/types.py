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


class KVCache(NamedTuple):
    """Rotated keys and values of committed tokens, [N, (B,) T or L, G, D]."""

    k: jax.Array
    v: jax.Array


class Pieces(NamedTuple):
    """The distinct states of a window's blocks that a call evaluates.

    tokens_MP: a block's tokens; block_M: which block of the window; chain_MJ: the
    pieces that stand in the blocks of the window as each piece sees it: those to its
    left, and itself.
    """

    tokens_MP: jax.Array
    block_M: jax.Array
    chain_MJ: jax.Array


class Network(NamedTuple):
    """What the decode loop needs of a model; everything else about it stays outside.

    A row's cache is a pytree of arrays [N, T, ...]; what is in it is the network's own
    business: keys and values of what lies outside the window, or the tokens there.
    hidden vectors stand at the positions that they predict.

    forward(params, tokens_KL, start, end, cache of one row)
        -> (hidden_KLE, what a committed window adds to the cache [N, K, L, ...], or
        None where a cache stays as it was primed)
    prime(params, tokens_T, begin, start, end, window length, prompt length)
        -> (hidden_LE of the window, cache of one row): one call, from the tokens alone
    logits(params, hidden_RE, first id of the chunk) -> float32 [R, chunk]
    logits_at(params, hidden_RE, ids_RM) -> float32 [R, M]
    vocab_rows, vocab_size, banned: what may be predicted; chunk: ids per head chunk.
    shadow(hidden_RE) -> vectors that `logits` reads the shadow's say from, what the
    model would say were that position masked; None: the network has no shadow.
    pieces(params, Pieces, start, end, cache of one row) -> (hidden_MPE, what they add
        to the cache [N, M, P, ...]): `forward` where blocks see nothing to their right;
        None: the network only evaluates whole windows.
    recheck(params, tokens_T, solid, start, end, window length, cache of one row)
        -> (hidden_LE of the window, the cache): one call that evaluates the state of
        the window in the shape that guarded numerics trust; before `solid` the cache is
        made of such calls already. None: the network has no such shape.
    opening: `prime` in whatever shapes are fastest, where guarded numerics may do so
        because `recheck` makes all of the cache anew; None: they use `prime`.
    """

    forward: Callable[..., tuple[jax.Array, Any]]
    prime: Callable[..., tuple[jax.Array, Any]]
    logits: Callable[[Any, jax.Array, jax.Array], jax.Array]
    logits_at: Callable[[Any, jax.Array, jax.Array], jax.Array]
    vocab_rows: int
    vocab_size: int
    banned: tuple[int, ...]
    chunk: int
    shadow: Callable[[jax.Array], jax.Array] | None = None
    pieces: Callable[..., tuple[jax.Array, Any]] | None = None
    recheck: Callable[..., tuple[jax.Array, Any]] | None = None
    opening: Callable[..., tuple[jax.Array, Any]] | None = None


class Prediction(NamedTuple):
    """What the model says of each position.

    token, runner: int32, what the sampler takes, and would take next; -1: none at hand.
    The rest is of the unfiltered tempered distribution, float32, and never saturates.
    score: log of the odds of `token` against all others. gap: logit of the best token
    less that of the second. margin: -log(1 - (p_best - p_second)). entropy: nats. lead:
    by how much the sampler preferred `token` to the next, its noise included.
    """

    token: jax.Array
    score: jax.Array
    gap: jax.Array
    margin: jax.Array
    entropy: jax.Array
    runner: jax.Array
    lead: jax.Array


class Doubt(NamedTuple):
    """How far the numbers of a prediction may be off, each by its name.

    entropy: a share of it, as where nearly all is certain it is off by hardly anything.
    """

    score: jax.Array
    lead: jax.Array
    gap: jax.Array
    margin: jax.Array
    entropy: jax.Array

    @classmethod
    def every(cls, error: jax.Array) -> "Doubt":
        """All of them by as much."""
        return cls(*[error] * len(cls._fields))


class Look(NamedTuple):
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


class View(NamedTuple):
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
    place_W: jax.Array
    room: jax.Array
    mask_id: jax.Array
    step: jax.Array
    key: jax.Array
    look: Look


Memory = Any
"""A policy's own pytree of arrays; () for a policy that only looks at the view."""


class Branches(NamedTuple):
    """The memory of a policy that weighs candidates: the active block as each would
    leave it, and float32, what speaks for each before the network has seen it."""

    tokens_NW: jax.Array
    merit_N: jax.Array


class Branching(NamedTuple):
    """How a policy weighs candidates: one call evaluates all `count` of them.

    worth(view of a candidate) -> float32: what speaks for it once it is evaluated. The
    policy goes to the candidate of the highest merit + worth, the first among equals.
    """

    count: int
    worth: Callable[[View], jax.Array]


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
    step: Callable[[View, Memory], tuple[jax.Array, Memory]]
    init: Callable[[int, int], Memory] = lambda size, width: ()
    revises: bool = False
    lossless: bool = True
    branching: Branching | None = None
    shadow: bool = False
    sure: Callable[[View, Memory, Doubt], jax.Array] | None = None

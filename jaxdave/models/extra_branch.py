"""An extra branch of a model: what is evaluated after a window, beside its tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxdave.core.model_api import KVCache
from jaxdave.models.attention import MaskFn
from jaxdave.models.decode_model import DecodeModel


class AttentionContext(NamedTuple):
    """What an evaluated window has attended to, for an `ExtraBranch` to attend to too.

    Attributes:
        start: The window's first position, int32 scalar.
        cache: Keys and values of positions outside the window, [N, T, G, D].
        window: Keys and values of the window, [N, K, L, G, D].
        mask_from: Query positions int32 [L] -> the `MaskFn` of queries there.
        keys_end: No query sees a key at this position or later, int32 scalar.
    """

    start: jax.Array
    cache: KVCache
    window: KVCache
    mask_from: Callable[[jax.Array], MaskFn]
    keys_end: jax.Array


ExtraBranch = Callable[[DecodeModel, Any, jax.Array, AttentionContext], jax.Array]
"""(model, params, aligned hidden_KLE, context) -> hidden vectors, possibly wider. It is
called after every window, and may evaluate more positions against the same context."""


def no_extra_branch(model: DecodeModel, params, hidden_KLE, context: AttentionContext):
    """The `ExtraBranch` that evaluates nothing.

    Args:
        model: Ignored.
        params: Ignored.
        hidden_KLE: Vectors of a window, [K, L, E].
        context: Ignored.

    Returns:
        The same vectors.
    """
    del model, params, context
    return hidden_KLE

"""The type of the methods: optax's gradient transformations with extra arguments."""

from collections.abc import Callable
from typing import Any

import optax

NO_PARAMS = (
    "update() was called without params; a projected step needs the parameters: "
    "update(grads, state, params, ...)"
)


class Transformation(optax.GradientTransformationExtraArgs):
    """An optax transformation whose extra arguments a method names.

    It chains with optax's own. Extra arguments that are for others are ignored.

    Attributes:
        init: From parameters to a state, a `NamedTuple` of arrays.
        update: From gradients, state and parameters, with extra arguments by keyword,
            to updates and the new state.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]

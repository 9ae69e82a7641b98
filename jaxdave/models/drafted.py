"""A model's functions for a decode whose draft function has parameters of its own."""

from collections.abc import Callable
from typing import Any

from jaxdave.core.draft_api import DraftedParams
from jaxdave.core.model_api import ModelFns


def with_drafted_params(model: ModelFns) -> ModelFns:
    """The same model, taking its parameters from `DraftedParams.model`.

    Args:
        model: Functions of the model's own parameters.

    Returns:
        Functions of `DraftedParams`.
    """

    def unwrapped(function: Callable[..., Any] | None) -> Any:
        if function is None:
            return None

        def call(params: DraftedParams, *args, **kwargs):
            return function(params.model, *args, **kwargs)

        return call

    names = ("forward", "prefill", "logits", "logits_at", "evaluate_blocks", "recheck")
    names += ("fast_prefill",)
    return model._replace(**{name: unwrapped(getattr(model, name)) for name in names})

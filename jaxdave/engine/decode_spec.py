"""The spec that a decode's programs are compiled from, put together from its parts."""

import functools

from jaxdave.core.config import ModelConfig, Numerics, SamplingConfig
from jaxdave.core.draft_api import DraftFn
from jaxdave.core.model_api import ModelFns
from jaxdave.core.policy_api import Policy
from jaxdave.core.shards import WHOLE_MODEL, model_shards
from jaxdave.core.spec import DecodeSpec
from jaxdave.engine.decode_layout import DecodeLayout
from jaxdave.models.drafted import with_drafted_params
from jaxdave.models.guidance import (
    with_guidance,
    with_suppressed_ids,
    with_unscored_ids,
)
from jaxdave.models.shadow_masks import with_shadow_masks
from jaxdave.runtime.machine import Machine
from jaxdave.runtime.mesh_shape import MODEL_AXIS


# A spec owns its compiled programs: decoders of equal parts must share one. A policy or
# a draft function is its functions, never its name (two may be named alike).
@functools.lru_cache(maxsize=64)
def decode_spec(
    config: ModelConfig,
    policy: Policy,
    draft_steps: tuple[int, ...],
    layout: DecodeLayout,
    sampling: SamplingConfig,
    numerics: Numerics,
    guidance: float,
    suppressed_ids: tuple[int, ...],
    unscored_ids: tuple[int, ...],
    draft: DraftFn,
    network: ModelFns | None,
    machine: Machine,
    records_steps: bool,
    num_parts: int,
) -> DecodeSpec:
    """The spec of all that is compiled, one object for equal parts.

    Args:
        config: The model.
        policy: What a step commits.
        draft_steps: How many drafts a call may carry, ascending.
        layout: The window, and what makes the model that reads it.
        sampling: How tokens are drawn.
        numerics: The numerics in force.
        guidance: Scale of classifier-free guidance; 0: off.
        suppressed_ids: Ids that are never predicted.
        unscored_ids: Ids that confidences leave out.
        draft: The draft function.
        network: A stand-in for the model's functions; None: the model's own.
        machine: What programs are compiled for.
        records_steps: Record the policy step and the log-probability of every token.
        num_parts: Devices that the model is split over.

    Returns:
        The spec.

    Raises:
        ValueError: A stand-in for the model is to be split.
    """
    make_spec = functools.partial(
        decode_spec,
        config=config,
        policy=policy,
        draft_steps=draft_steps,
        layout=layout,
        sampling=sampling,
        numerics=numerics,
        guidance=guidance,
        suppressed_ids=suppressed_ids,
        unscored_ids=unscored_ids,
        draft=draft,
        network=network,
        machine=machine,
        records_steps=records_steps,
    )
    if network is not None and num_parts > 1:
        raise ValueError(
            f"a network of your own cannot be split over {num_parts} devices; use a "
            "mesh without the axis 'model'"
        )
    shards = WHOLE_MODEL
    if num_parts > 1:
        shards = model_shards(config, num_parts, MODEL_AXIS)
    window = layout.layout
    make_model = layout.make_model
    if policy.shadow:
        make_model = with_shadow_masks(make_model, window.block_length)
    # Wrappers from the inside out; each returns `ModelFns`. Parameters of a draft
    # function are stripped last, so that the others never see them.
    model = network or make_model(
        config, numerics=numerics, machine=machine, shards=shards
    )
    if guidance:
        model = with_guidance(model, guidance, config.mask_id)
    if suppressed_ids:
        model = with_suppressed_ids(model, suppressed_ids)
    if unscored_ids:
        model = with_unscored_ids(model, unscored_ids)
    if draft.takes_params:
        model = with_drafted_params(model)
    return DecodeSpec(
        model=model,
        layout=window,
        policy=policy,
        draft=draft,
        sampling=sampling,
        draft_steps=draft_steps,
        num_drafts=draft_steps[-1],
        numerics=numerics,
        records_steps=records_steps,
        on_parts=make_spec,
    )

"""Checks of what draft functions return: shapes, dtypes and the structure of memories.

They look at shapes alone, so that they cost nothing in a compiled program. Every
message is one line that names the value, the rule that it breaks and the remedy.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdave.core.draft_api import DraftSet


def check_draft_set(
    drafts: Any, state_shape: tuple[int, ...], num_drafts: int, edits: bool
) -> DraftSet:
    """Check what `DraftFn.propose` has returned.

    Args:
        drafts: What it returned.
        state_shape: The shape [N, L] of what one draft evaluates, that of
            `first.tokens_NL`.
        num_drafts: The drafts that it was asked for, K.
        edits: The policy edits, so that a draft has a progress, too.

    Returns:
        The drafts.

    Raises:
        ValueError: It is no `DraftSet`, or an array of it has another shape or dtype.
    """
    if not isinstance(drafts, DraftSet):
        raise ValueError(
            f"draft: propose returned a {type(drafts).__name__}, but must return a "
            f"DraftSet; return DraftSet({', '.join(DraftSet._fields)})"
        )
    if edits != (drafts.progress_K is not None):
        raise ValueError(
            f"draft: propose returned progress_K of {_kind(drafts.progress_K)}, but a "
            f"policy that {'edits' if edits else 'does not edit'} needs "
            f"{'one' if edits else 'none'} with each draft; return the progress_K of "
            "context.run_ahead, or make drafts with propose_nested"
        )
    rules = {
        "tokens_KNL": ("int32", (num_drafts, *state_shape)),
        "depth_K": ("int32", (num_drafts,)),
        "valid_K": ("bool", (num_drafts,)),
        "worth_K": ("float32", (num_drafts,)),
    }
    values = {name: getattr(drafts, name) for name in rules}
    if drafts.progress_K is not None:
        for name, value in drafts.progress_K._asdict().items():
            rules[f"progress_K.{name}"] = ("int32", (num_drafts,))
            values[f"progress_K.{name}"] = value
    for name, (dtype, shape) in rules.items():
        value = values[name]
        expected = _kind(jax.ShapeDtypeStruct(shape, dtype))
        if _kind(value) != expected:
            has_shape = _kind(value).endswith(expected.removeprefix(dtype))
            remedy = (
                f"cast it with .astype({dtype!r})"
                if has_shape
                else "return num_drafts drafts and mark those too many in valid_K"
            )
            raise ValueError(
                f"draft: propose returned {name} of {_kind(value)}, but num_drafts="
                f"{num_drafts} drafts of states {list(state_shape)} need {expected}; "
                f"{remedy}"
            )
    return drafts


def check_memory(before: Any, after: Any) -> Any:
    """Check what `DraftFn.update` has returned.

    Args:
        before: The memory that it was given, which is of the kind that `init` made.
        after: The memory that it returned.

    Returns:
        The new memory.

    Raises:
        ValueError: A leaf is no array, or structure, shapes or dtypes have changed.
    """
    old, old_tree = jax.tree.flatten_with_path(before)
    new, new_tree = jax.tree.flatten_with_path(after)
    if old_tree != new_tree:
        raise ValueError(
            f"draft: update returned a memory of structure {_one_line(new_tree)}, but "
            f"init made {_one_line(old_tree)}, and only values may change; return the "
            "same structure"
        )
    for (path, was), (_, now) in zip(old, new, strict=True):
        place = f"memory{jax.tree_util.keystr(path)}"
        if "[" not in _kind(was):
            raise ValueError(
                f"draft: init returned {place} of type {_kind(was)}, but a memory is "
                "compiled into the loop; make it a pytree of arrays"
            )
        if _kind(was) != _kind(now):
            raise ValueError(
                f"draft: update returned {place} of {_kind(now)}, but init made "
                f"{_kind(was)}, and only values may change; return that shape and dtype"
            )
    return after


def _kind(value: Any) -> str:
    """Dtype and shape such as "int32[8, 4]"; the type's name of what is no array."""
    # To JAX None is a number and a text the name of a dtype.
    if value is None or isinstance(value, str):
        return type(value).__name__
    try:
        return f"{jnp.result_type(value)}{list(jnp.shape(value))}"
    except TypeError:
        return type(value).__name__


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())[:80]

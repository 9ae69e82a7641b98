"""Every draft function by name: registration, entry points, and a check.

A name stands for a maker, which sees what the decode is and returns a draft function
for it. Draft functions of other packages are found through the entry-point group
`jaxdave.drafts`, whose names are those that `--draft` takes and whose values are draft
functions. Nothing is imported before a draft function is asked for.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxdave.core.config import ModelConfig
    from jaxdave.core.draft_api import DraftFn
    from jaxdave.core.policy_api import Policy
    from jaxdave.drafting.tree_table import TreeTable

ENTRY_POINTS = "jaxdave.drafts"


class DraftRequest(NamedTuple):
    """The decode that a draft function is chosen for.

    Attributes:
        config: The model.
        policy: The policy that is decoded with.
        tables: The draft trees that the model was calibrated with.
        block_length: Positions of a block; None: the model's.
        cache: The cache rule of full attention, or None.
        temperature: 0 takes the best token; above, tokens are drawn.
        has_draft_text: Requests come with texts that their answers may look like.
    """

    config: "ModelConfig"
    policy: "Policy"
    tables: "Mapping[str, TreeTable]"
    block_length: int | None
    cache: str | None
    temperature: float
    has_draft_text: bool


_INIT = ("params", "row")
_UPDATE = ("params", "memory", "row")

DraftMaker = Callable[[DraftRequest], "DraftFn"]


def _tree(request: DraftRequest) -> "DraftFn":
    """The model's draft tree where one fits the decode, else nested drafts."""
    from jaxdave.drafting.tree import tree_or_nested

    return tree_or_nested(
        request.tables,
        request.config,
        request.policy,
        block_length=request.block_length,
        cache=request.cache,
        temperature=request.temperature,
    )


def _nested(request: DraftRequest) -> "DraftFn":
    """The policy itself, run ahead on the last prediction."""
    from jaxdave.drafting.nested import nested

    del request
    return nested


def _copy(request: DraftRequest) -> "DraftFn":
    """The tree, and what the text repeats."""
    from jaxdave.drafting import text_drafts
    from jaxdave.drafting.guesses import with_guesses

    if request.has_draft_text:
        guess = text_drafts.user_text_or_prompt_lookup
        return with_guesses(_tree(request), guess, reads_text=True)
    return with_guesses(_tree(request), text_drafts.prompt_lookup)


_BUILT_IN: dict[str, DraftMaker] = {"tree": _tree, "nested": _nested, "copy": _copy}


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all draft functions, those of entry points included.

    Raises:
        ValueError: An entry point takes a name that is in use.
    """
    return (*_BUILT_IN, *_entry_points())


def is_built_in(draft: Any) -> bool:
    """True for the name of a draft function of this package."""
    return isinstance(draft, str) and draft in _BUILT_IN


def make_draft(draft: Any, request: DraftRequest) -> "DraftFn":
    """The draft function of a decode.

    Args:
        draft: A name (see `names`), or a draft function itself.
        request: The decode that it is for.

    Returns:
        The draft function. Where requests have draft texts, it reads them.

    Raises:
        ValueError: The name is unknown, its entry point cannot be loaded, or what was
            given or loaded is no draft function.
    """
    from jaxdave.core.draft_api import as_draft_fn

    name = draft if isinstance(draft, str) else None
    if name in _BUILT_IN:
        draft = _BUILT_IN[name](request)
    elif name is not None:
        draft = _load_entry_point(name)
    _check_draft(draft, name)
    draft = as_draft_fn(draft)
    return _reading_text(draft) if request.has_draft_text else draft


def _reading_text(draft: "DraftFn") -> "DraftFn":
    from jaxdave.drafting import text_drafts
    from jaxdave.drafting.guesses import with_guesses

    if draft.reads_text:
        return draft
    return with_guesses(draft, text_drafts.user_text, reads_text=True)


@functools.cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    points: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.name in _BUILT_IN or point.name in points:
            raise ValueError(
                f"entry point {point.name!r} of {ENTRY_POINTS} ({point.value}) takes "
                "the name of a draft function that is known; rename it in its package"
            )
        points[point.name] = point
    return points


@functools.cache
def _load_entry_point(name: str) -> Any:
    """One object per name, as compiled programs are found by it."""
    point = _entry_points().get(name)
    if point is None:
        raise ValueError(f"draft={name!r} is unknown; use {', '.join(names())}")
    try:
        return point.load()
    except Exception as error:
        raise ValueError(
            f"entry point {name!r} of {ENTRY_POINTS} ({point.value}) cannot be "
            f"loaded ({error}); mend or uninstall its package"
        ) from error


def _check_draft(draft: Any, name: str | None) -> None:
    """Refuse what cannot be a draft function, before it fails inside a trace."""
    # A draft function proposes by itself, or is a record whose `propose` does.
    propose = getattr(draft, "propose", draft)
    label = " ".join((repr(draft) if name is None else repr(name)).split())[:80]
    if not _takes(propose, "context", "first", "num_drafts"):
        raise ValueError(
            f"draft={label} is no draft function, which takes "
            "(context, first, num_drafts); see jaxdave.core.draft_api, or use "
            f"{', '.join(_BUILT_IN)}"
        )
    for part, names in (("init", _INIT), ("update", _UPDATE)):
        function = getattr(draft, part, None)
        if callable(function) and not _takes(function, *names):
            raise ValueError(
                f"draft={label} has an {part} of another signature than "
                f"({', '.join(names)}); see DraftFn in jaxdave.core.draft_api"
            )


def _takes(function: Any, *names: str) -> bool:
    """True if a function can be called with so many positional arguments."""
    try:
        inspect.signature(function).bind(*names)
    except (TypeError, ValueError):
        return False
    return True

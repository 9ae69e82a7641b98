"""Registry of draft functions: registration, entry points, and a listing.

A module of this package registers a maker with `@register("name")`; nothing else needs
to know it. A maker sees what the decode is (`DraftRequest`) and returns a draft
function for it. Other packages add draft functions through the entry-point group
`jaxdave.drafts`, whose names are those that `--draft` takes and whose values are draft
functions:

    [project.entry-points."jaxdave.drafts"]
    my_draft = "my_package.drafts:my_draft"

Nothing is imported before a draft function is asked for.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdave.core.signature import accepts

if TYPE_CHECKING:
    from jaxdave.core.config import ModelConfig
    from jaxdave.core.draft_api import DraftFn
    from jaxdave.core.policy_api import Policy
    from jaxdave.drafting.tree_table import TreeTable

ENTRY_POINT_GROUP = "jaxdave.drafts"
FIRST_NAMES = ("tree", "nested", "copy")
"""Draft functions that a listing begins with, known without importing anything."""


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


_PROPOSE = ("context", "first", "num_drafts")
_INIT = ("params", "row")
_UPDATE = ("params", "memory", "row")

DraftMaker = Callable[[DraftRequest], "DraftFn"]
_MAKERS: dict[str, DraftMaker] = {}
"""Makers that `register` has seen, by name."""


def register(name: str) -> Callable[[DraftMaker], DraftMaker]:
    """Register a maker of draft functions, for `make_draft` and `listing`.

    Args:
        name: What `--draft` calls it.

    Returns:
        A decorator that returns the maker as it is. The first line of the maker's
        docstring is shown by `listing`.

    Example:
        @register("nested")
        def make_nested(request: DraftRequest) -> DraftFn:
            ...
    """

    def add(maker: DraftMaker) -> DraftMaker:
        _MAKERS[name] = maker
        return maker

    return add


@functools.cache
def makers() -> dict[str, DraftMaker]:
    """The makers of this package by name.

    Returns:
        Makers by name: those of `FIRST_NAMES`, then the others by name.
    """
    # Importing a module registers its makers.
    package = importlib.import_module("jaxdave.drafting")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"jaxdave.drafting.{module.name}")
    first = {name: _MAKERS[name] for name in FIRST_NAMES}
    return first | dict(sorted(_MAKERS.items()))


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all draft functions, those of entry points included.

    Raises:
        ValueError: An entry point takes a name that is in use.
    """
    return (*makers(), *_entry_points())


def check_name(name: str) -> None:
    """Check that a draft function has a name.

    Args:
        name: A word that a user gave.

    Raises:
        ValueError: There is none of that name; or as `names`.
    """
    if name not in FIRST_NAMES and name not in names():
        raise ValueError(f"draft={name!r} is unknown; use {', '.join(names())}")


def listing() -> dict[str, str]:
    """What every draft function drafts, in one line.

    Returns:
        Summaries by name, in the order of `names`.

    Raises:
        ValueError: As `names`, or an entry point cannot be loaded or used.
    """
    documented: dict[str, Any] = dict(makers())
    for name in _entry_points():
        draft = _load_entry_point(name)
        _check_draft(draft, name)
        documented[name] = getattr(draft, "propose", draft)
    return {
        name: (inspect.getdoc(function) or "").partition("\n")[0]
        for name, function in documented.items()
    }


def is_built_in(draft: Any) -> bool:
    """True for the name of a draft function of this package."""
    return isinstance(draft, str) and draft in makers()


def make_draft(draft: Any, request: DraftRequest) -> "DraftFn":
    """The draft function of a decode.

    Args:
        draft: A name (see `names`), or a draft function itself.
        request: The decode that it is for.

    Returns:
        The draft function.

    Raises:
        ValueError: The name is unknown, its entry point cannot be loaded, or what was
            given or loaded is no draft function.
    """
    from jaxdave.core.draft_api import as_draft_fn

    name = draft if isinstance(draft, str) else None
    if name is not None:
        check_name(name)
        maker = makers().get(name)
        draft = _load_entry_point(name) if maker is None else maker(request)
    _check_draft(draft, name)
    return as_draft_fn(draft)


@functools.cache
def _entry_points() -> dict[str, metadata.EntryPoint]:
    """The entry points of other packages by name."""
    points: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        if point.name in makers() or point.name in points:
            raise ValueError(
                f"entry point {point.name!r} of {ENTRY_POINT_GROUP} ({point.value}) "
                "takes the name of a draft function that is known; rename it in its "
                "package"
            )
        points[point.name] = point
    return points


@functools.cache
def _load_entry_point(name: str) -> Any:
    """One object per name, as compiled programs are found by it."""
    point = _entry_points()[name]
    # Foreign code is run here, which may raise anything, in any number of lines.
    try:
        return point.load()
    except Exception as error:
        raise ValueError(
            f"entry point {name!r} of {ENTRY_POINT_GROUP} ({point.value}) cannot be "
            f"loaded ({' '.join(str(error).split())}); mend or uninstall its package"
        ) from error


def _check_draft(draft: Any, name: str | None) -> None:
    """Refuse what cannot be a draft function, before it fails inside a trace."""
    # A draft function proposes by itself, or is a record whose `propose` does.
    propose = getattr(draft, "propose", draft)
    label = " ".join((repr(draft) if name is None else repr(name)).split())[:80]
    if not accepts(propose, _PROPOSE):
        raise ValueError(
            f"draft={label} is no draft function, which takes "
            f"({', '.join(_PROPOSE)}); see jaxdave.core.draft_api, or use "
            f"{', '.join(FIRST_NAMES)}"
        )
    for part, names in (("init", _INIT), ("update", _UPDATE)):
        function = getattr(draft, part, None)
        if callable(function) and not accepts(function, names):
            raise ValueError(
                f"draft={label} has an {part} of another signature than "
                f"({', '.join(names)}); see DraftFn in jaxdave.core.draft_api"
            )

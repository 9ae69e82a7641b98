"""Where code comes from: jaxdave's own, a versioned package's, or foreign.

The cache key of a compiled program holds the sources of jaxdave's program packages and
the versions of the packages that compute. Code of either is identified by its name;
only foreign code has to be digested (`jaxdave.runtime.content_digest`).
"""

import enum
import functools
import importlib.util
import sys
import sysconfig
from pathlib import Path

OWN_PACKAGE = "jaxdave"
PROGRAM_PACKAGES = (
    "core",
    "runtime",
    "numerics",
    "sampling",
    "policies",
    "drafting",
    "models",
    "decoding",
    "engine",
)
"""Subpackages of jaxdave whose code can become part of a compiled decode."""
VERSIONED_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "chex", "ml_dtypes", "builtins")
"""Packages whose functions are identified by name and the package's version."""


class CodeOrigin(enum.Enum):
    """Where code comes from, which decides what identifies it."""

    OWN = "a program package of jaxdave"
    VERSIONED = "a versioned package or the standard library"
    FOREIGN = "elsewhere"


@functools.cache
def code_origin(module: str | None) -> CodeOrigin:
    """Where the code of a module comes from.

    Args:
        module: The module's full name; None: unknown.

    Returns:
        The origin.

    Example:
        >>> code_origin("jax.numpy").name, code_origin("my_rules").name
        ('VERSIONED', 'FOREIGN')
    """
    package, _, rest = (module or "").partition(".")
    if package == OWN_PACKAGE:
        # jaxdave.eval and its like are not in the source digest of programs.
        is_digested = rest.split(".")[0] in PROGRAM_PACKAGES
        return CodeOrigin.OWN if is_digested else CodeOrigin.FOREIGN
    if package in VERSIONED_PACKAGES or _is_standard_library(package):
        return CodeOrigin.VERSIONED
    return CodeOrigin.FOREIGN


def _is_standard_library(package: str) -> bool:
    """True for Python's own modules, but not for a user's file of the same name."""
    if package not in sys.stdlib_module_names:
        return False
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return False
    if spec.origin in ("built-in", "frozen"):
        return True
    path = Path(spec.origin).resolve()
    folders = (Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib"))
    return "site-packages" not in path.parts and any(
        path.is_relative_to(folder.resolve()) for folder in folders
    )

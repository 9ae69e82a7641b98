"""Parameter paths: one string for each leaf of a parameter tree.

A path joins the keys of nested dicts by "/", such as `blocks/attn/q/kernel`. Tables of
tensor names, of shardings and of weight layouts are all keyed by it.
"""

from collections.abc import Callable
from typing import Any

import jax


def param_path(key_path: jax.tree_util.KeyPath) -> str:
    """Turn a JAX key path into a parameter path.

    Args:
      key_path: keys from the root to a leaf, as `jax.tree_util.tree_map_with_path` and
        its relatives pass them.

    Returns:
      The keys joined by "/".

    Example:
      >>> from jax.tree_util import DictKey
      >>> param_path((DictKey("blocks"), DictKey("norm1"), DictKey("scale")))
      'blocks/norm1/scale'
    """
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def leaves_by_path(
    params: Any, is_leaf: Callable[[Any], bool] | None = None
) -> dict[str, Any]:
    """Flatten a parameter tree to a dict.

    Args:
      params: any pytree.
      is_leaf: says of a subtree that it is to be kept whole, as in `jax.tree.map`.

    Returns:
      Parameter path -> leaf, in the order in which JAX flattens the tree.

    Example:
      >>> leaves_by_path({"norm": {"scale": 1.0}, "head": 2.0})
      {'head': 2.0, 'norm/scale': 1.0}
    """
    pairs = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_leaf)
    return {param_path(key_path): leaf for key_path, leaf in pairs}

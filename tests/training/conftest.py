"""What tests of training share."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def loose_promotion() -> Iterator[None]:
    """JAX's own rules of types and ranks: optax mixes both where our code may not."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield

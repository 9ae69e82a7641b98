"""Weights that are not finite numbers are refused where their tensor has a name."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdave.io.finite import check_finite

BROKEN = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_one_broken_number_is_seen_anywhere(dtype, kind):
    rng = np.random.default_rng(0)
    good = rng.normal(size=(300, 1000)).astype(jnp.dtype(dtype))
    good[0, :4] = [0.0, -0.0, jnp.finfo(dtype).max, jnp.finfo(dtype).min]
    check_finite("w", kind(good))
    check_finite("w", kind(good).T)
    for value in BROKEN:
        for place in (0, 131_071, 131_072, 299_999):
            broken = good.copy()
            broken.reshape(-1)[place] = value
            for array in (kind(broken), kind(broken).T):
                with pytest.raises(ValueError, match="tensor w holds NaN or infinity"):
                    check_finite("w", array)


def test_other_numbers_are_not_looked_at():
    check_finite("ids", np.arange(3))
    check_finite("empty", np.zeros((0, 4), np.float32))

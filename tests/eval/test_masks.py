"""Sets of hidden positions: what each one counts."""

from collections import Counter

import numpy as np
import pytest

from jaxdave.eval.likelihood import masks


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_random_sets_weigh_what_all_sets_weigh(samples):
    """And sizes are spread evenly in every drawing."""
    all_sets = masks.all_subsets(4)
    share = Counter()
    noise, draws = np.random.default_rng(0), 30_000 // samples
    for _ in range(draws):
        drawn = masks.sampled_subsets(4, samples, noise)
        sizes = Counter(drawn.hidden_SN.sum(axis=1).tolist())
        assert max(sizes.values()) == -(-samples // 4)
        for hidden_N, weight_N in zip(*drawn, strict=True):
            share[tuple(hidden_N)] += weight_N.max() / draws
    assert len(share) == len(all_sets.hidden_SN) == 15
    for hidden_N, weight_N in zip(*all_sets, strict=True):
        np.testing.assert_allclose(share[tuple(hidden_N)], weight_N.max(), rtol=0.1)


@pytest.mark.parametrize("count", [1, 5, 9])
@pytest.mark.parametrize("samples", [1, 4, 30])
def test_samples_of_every_size_weigh_as_much_as_the_positions(count, samples):
    drawn = masks.bound(samples)(count, np.random.default_rng(1))
    assert len(drawn.hidden_SN) == min(samples, 2**count - 1)
    assert np.all((drawn.weight_SN > 0) == drawn.hidden_SN)
    assert drawn.hidden_SN.any(axis=1).all()
    np.testing.assert_allclose(drawn.weight_SN.sum(), count, rtol=1e-6)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="mc_num=0 must be at least 1"):
        masks.bound(0)

"""Only the tiles that a row uses are computed, one by one or in groups."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model

from jaxdave.core.config import Numerics
from jaxdave.models.attention import TILE
from jaxdave.models.canvas_tiles import (
    group_size,
    map_used_positions,
    map_used_tiles,
    most_of_all_rows,
)
from jaxdave.models.decode_model import DecodeModel
from jaxdave.runtime.machine import CPU

TILES = jnp.arange(24, dtype=jnp.float32).reshape(6, 4)


def computed(tiles, used, group):
    """What a map makes of tiles, and how many of them it has computed."""
    count = []

    def double(tile):
        jax.debug.callback(lambda _: count.append(1), tile)
        return {"twice": 2 * tile, "sum": jnp.sum(tile)}

    result = jax.jit(lambda n: map_used_tiles(n, group)(double)(tiles))(used)
    jax.block_until_ready(result)
    jax.effects_barrier()
    return result, len(count)


@pytest.mark.parametrize("group", [1, 2, 3, 6])
@pytest.mark.parametrize("used", [0, 1, 4, 5, 6])
def test_used_tiles_and_no_others(group, used):
    result, count = computed(TILES, used, group)
    whole = -(-used // group) * group if group < 6 else 6
    assert count == whole
    chex.assert_trees_all_equal(result["twice"][:whole], 2 * TILES[:whole])
    chex.assert_trees_all_equal(result["sum"][:whole], TILES[:whole].sum(-1))
    assert not np.any(result["twice"][whole:]) and not np.any(result["sum"][whole:])


@pytest.mark.parametrize(
    ("used", "sizes"),
    [
        (0, [8]),
        (1, [8]),
        (8, [8]),
        (9, [10]),
        (10, [10]),
        (11, [12]),
        (13, [8, 8]),
        (16, [8, 8]),
        (17, [8, 10]),
        (20, [8, 12]),
        (21, [8, 8, 8]),
        (24, [8, 8, 8]),
    ],
)
def test_the_last_tile_takes_what_little_is_left(used, sizes):
    """Tiles of 8 positions cover what is used, none of it twice, and little more."""
    seen = []

    def double(tile):
        jax.debug.callback(lambda a: seen.append(np.asarray(a)), tile)
        return {"twice": 2 * tile}

    positions = jnp.arange(24, dtype=jnp.float32) + 1
    mapped = jax.jit(lambda n: map_used_positions(n, 8)(double)(positions))
    result = jax.block_until_ready(mapped(used))
    jax.effects_barrier()
    assert sorted(len(one) for one in seen) == sorted(sizes)
    covered = sum(sizes)
    assert used <= covered <= max(used + 3, -(-used // 8) * 8, 8)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), positions[:covered])
    np.testing.assert_array_equal(result["twice"][:covered], 2 * positions[:covered])
    assert not np.any(result["twice"][covered:])


def test_a_canvas_of_one_tile_is_one():
    positions = jnp.arange(8, dtype=jnp.float32)
    result = map_used_positions(jnp.int32(3), 8)(lambda tile: tile + 1)(positions)
    np.testing.assert_array_equal(result, positions + 1)


def test_rows_of_a_batch_share_one_length():
    def of_row(used, tiles):
        return map_used_tiles(most_of_all_rows(used), 1)(lambda tile: tile + 1)(tiles)

    used = jnp.asarray([1, 4, 2])
    rows = jnp.stack([TILES, TILES * 2, TILES * 3])
    results = jax.jit(jax.vmap(of_row))(used, rows)
    chex.assert_trees_all_equal(results[:, :4], rows[:, :4] + 1)
    assert not np.any(results[:, 4:])
    # Their loop's condition is of no row: none of its arrays is selected anew.
    text = str(jax.make_jaxpr(jax.vmap(of_row))(used, rows))
    assert "select_n" not in text.split("while")[-1]


def test_a_number_alone_and_under_two_axes():
    assert most_of_all_rows(jnp.int32(3)) == 3
    numbers = jnp.asarray([[1, 5, 2], [9, 0, 3]])
    nested = jax.vmap(jax.vmap(lambda n: (n, most_of_all_rows(n))))(numbers)
    np.testing.assert_array_equal(nested[1], np.full((2, 3), 9))
    shared = jax.vmap(lambda _: most_of_all_rows(jnp.int32(7)))(numbers)
    np.testing.assert_array_equal(shared, [7, 7])


def test_groups_divide_a_canvas():
    assert [group_size(count, 8) for count in (1, 6, 8, 12, 16, 14, 11)] == [
        *(1, 6, 8, 6, 8, 7),
        1,
    ]


@pytest.mark.parametrize(
    "numerics",
    [pytest.param(Numerics.EXACT, marks=pytest.mark.as_shipped), Numerics.GUARDED],
)
def test_a_canvas_up_to_its_end(numerics):
    """Equal vectors up to the end, whatever room there is behind it."""
    config = fake_model.TINY
    params = fake_model.scaled(config, 0)
    model = DecodeModel(
        config, exact=numerics is Numerics.EXACT, wide=True, machine=CPU
    )
    tokens = jnp.arange(8 * TILE, dtype=jnp.int32) % config.vocab_size
    in_tiles = jax.jit(
        DecodeModel(config, exact=True, wide=True, machine=CPU).evaluate_canvas
    )
    evaluate = jax.jit(model.evaluate_canvas)
    for end in (TILE - 1, TILE + 1, TILE + 20, 2 * TILE):
        small, _ = evaluate(params, tokens[: 2 * TILE], end)
        large, kv = evaluate(params, tokens, end)
        np.testing.assert_allclose(large[:end], small[:end], atol=1e-5)
        # In tiles of one size, as guarded numerics trust it.
        trusted, _ = in_tiles(params, tokens, end)
        np.testing.assert_allclose(large[:end], trusted[:end], atol=1e-4)
        if numerics is Numerics.EXACT:
            np.testing.assert_array_equal(large[:end], small[:end])
        assert np.any(kv.k[:, :end]) and not np.any(kv.k[:, 2 * TILE :])

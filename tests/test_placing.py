"""Parameters as a CPU reads them: the same numbers, and nothing copied on the way."""

import dataclasses
import functools

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from laws import saved_calls

from jaxdave import checkpoint, decoders, executables, placing, policies
from jaxdave.matrices import Across, Apart, Cut, Joined, Taken, dot, looked_up, picked
from jaxdave.model.network import Model
from jaxdave.model.params import Binder
from jaxdave.model.whole import whole
from jaxdave.noise import DRAWN
from jaxdave.placing import laid_out, stacked
from jaxdave.quantize import Int8, tree_int8
from jaxdave.sharding import shardings
from jaxdave.train.warm import widen

ROWS = 2 * DRAWN + 40
"""Two chunks of the head and a short one, which is moved back to fit."""
WIDE = dataclasses.replace(toys.TINY, vocab_rows=ROWS, vocab_size=ROWS - 3, hidden=16)
TIED = dataclasses.replace(WIDE, tie_embeddings=True)
CONFIGS = [pytest.param(c, id=i) for c, i in ((WIDE, "head"), (TIED, "tied"))]
drawn = functools.cache(toys.scaled)
KINDS = {"float32": lambda params: params, "int8": tree_int8}


@pytest.fixture(params=["small", "large"])
def order(request, monkeypatch) -> str:
    """Matrices in either order, whatever their size."""
    monkeypatch.setattr(placing, "LARGE", {"small": 2**40, "large": 1}[request.param])
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_numbers_come_back(config, kind, order):
    params = KINDS[kind](drawn(config, 0))
    laid = laid_out(params, config)
    down = laid["blocks"]["mlp"]["down"]["kernel"]
    table = "embedding" if config.tie_embeddings else "head"
    assert isinstance(down, Apart) and len(down.layers) == config.num_layers
    assert isinstance(down.layers[0], Across) == (order == "large")
    assert isinstance(laid["blocks"]["attn"]["q"]["kernel"], Joined)
    assert isinstance(laid[table], Cut) and len(laid[table].chunks) == 3
    folders.assert_equal(laid, params)
    folders.assert_equal(laid_out(laid, config), params)


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_that_of_the_layers_own_matrix(kind, order):
    params = KINDS[kind](drawn(toys.TINY, 0))
    stack = params["blocks"]["mlp"]["down"]["kernel"]
    apart = laid_out(params, toys.TINY)["blocks"]["mlp"]["down"]["kernel"]
    x = np.random.default_rng(0).normal(size=(3, 5, 64)).astype(np.float32)
    for index in range(toys.TINY.num_layers):
        matrix = jax.tree.map(lambda a, i=index: np.asarray(a[i], np.float64), stack)
        if isinstance(matrix, Int8):
            matrix = matrix.values * matrix.scale
        found = jax.jit(dot)(x, Taken(apart.layers, jnp.int32(index)))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, x @ matrix, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_cut_table_are_those_of_the_whole_one(kind):
    params = KINDS[kind](drawn(TIED, 0))
    whole_one, cut = params["embedding"], laid_out(params, TIED)["embedding"]
    edges = [0, DRAWN - 1, DRAWN, ROWS - DRAWN - 1, ROWS - DRAWN, 2 * DRAWN, ROWS - 1]
    ids = jnp.asarray([edges, edges[::-1]], jnp.int32)
    for found, want in zip(
        jax.tree.leaves(picked(cut, ids)), jax.tree.leaves(picked(whole_one, ids)),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(found, want)
    np.testing.assert_array_equal(
        looked_up(cut, ids, jnp.float32), looked_up(whole_one, ids, jnp.float32)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS)
def test_a_cut_head_says_what_the_whole_one_says(config, kind):
    params = KINDS[kind](drawn(config, 0))
    laid = laid_out(params, config)
    tokens = jnp.asarray(toys.prompts_of([24], most=34), jnp.int32)
    logits = jax.jit(whole(config))
    np.testing.assert_allclose(
        logits(laid, tokens), logits(params, tokens), rtol=1e-4, atol=1e-4
    )
    model = Model(config, 64, exact=False, wide=False)
    hidden = jax.random.normal(jax.random.key(0), (4, config.hidden))
    want = Binder(config)(params).logits(hidden)
    part = jax.jit(model.logits)
    for first in (0, DRAWN, ROWS - DRAWN):
        found = part(laid, hidden, jnp.int32(first))
        np.testing.assert_allclose(
            found, want[:, first : first + DRAWN], rtol=1e-4, atol=1e-4
        )
    ids = jnp.asarray([[1, DRAWN + 5]] * 4, jnp.int32)
    np.testing.assert_allclose(
        model.logits_at(laid, hidden, ids),
        jnp.take_along_axis(want, ids, axis=1),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip


@pytest.mark.usefixtures("quick_compiles")
@pytest.mark.parametrize("numerics", ["guarded", "exact"])
def test_drafts_keep_the_text(numerics, monkeypatch):
    monkeypatch.setattr(placing, "LARGE", 2**11)  # the MLP's, not attention's
    config = dataclasses.replace(TIED, vocab_rows=DRAWN + 40, vocab_size=DRAWN)
    decoder = decoders.build(
        config, policies.static(1), 8, 8, max_new_tokens=16, numerics=numerics
    )
    params = laid_out(drawn(config, 0), config)
    assert saved_calls(decoder, 8, params, toys.prompts_of([3, 20, 33])) > 0


def test_nothing_is_copied_out_of_a_stack():
    """A loop over stacks holds a copy of a matrix and of a chunk; this one does not."""
    config = dataclasses.replace(
        toys.TINY, inter=8192, num_layers=3, vocab_rows=8 * DRAWN, vocab_size=8 * DRAWN
    )
    decoder = decoders.static(config, max_new_tokens=8, numerics="fast")
    found = []
    for made in (laid_out, lambda params, _: params):
        params = made(drawn(config, 0), config)
        toys.decode(decoder, params, [[1, 2, 3]])
        made = executables.analysed(decoder.program, "run")
        found.append(made.temp_size_in_bytes)
        executables.forget_executables()
    matrix, chunk = 4 * 32 * 8192, 4 * 32 * DRAWN
    assert found[1] - found[0] > matrix + chunk


def test_saved_and_trained_from_as_any(tmp_path, order):
    params = folders.random()
    laid = laid_out(params, folders.CONFIG)
    for name, some in (("a", params), ("b", laid)):
        checkpoint.save(tmp_path / name, folders.CONFIG, some, dtype="float32")
    a, b = (tmp_path / name / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()
    folders.assert_equal(widen(folders.CONFIG, stacked(laid)), params)


def test_what_needs_stacks_says_so(tmp_path):
    laid = laid_out(drawn(TIED, 0), TIED)
    with pytest.raises(ValueError, match="use `placing.stacked`") as caught:
        tree_int8(laid)
    assert "\n" not in str(caught.value)
    mesh = jax.make_mesh((1,), ("model",))
    with pytest.raises(ValueError, match="use `placing.stacked`"):
        shardings(laid, TIED, mesh)
    for broken in ({}, {"blocks": {}}, {**laid, "blocks": {"attn": {}}}):
        with pytest.raises(ValueError, match="do not have the shapes of config"):
            checkpoint.save(tmp_path / "m", TIED, broken, dtype="float32")


def test_elsewhere_stacks_stay(monkeypatch):
    monkeypatch.setattr(placing, "on_cpu", lambda: False)
    params = drawn(TIED, 0)
    laid = laid_out(params, TIED)
    assert jax.tree.structure(laid) == jax.tree.structure(params)
    assert jax.tree.structure(stacked(laid)) == jax.tree.structure(params)

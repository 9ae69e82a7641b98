"""Routers and grouped products against plain loops."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import plain_experts
from helpers.checkpoint_folders import assert_equal
from helpers.plain_experts import KINDS

from jaxdave.core.experts_config import ExpertsConfig
from jaxdave.models import experts, transformer
from jaxdave.models.expert_tiles import TILE_ROWS, lay_out_tiles
from jaxdave.models.experts import ExpertMatrices, mix_experts
from jaxdave.models.forward import forward
from jaxdave.models.param_shapes import param_shapes
from jaxdave.models.router import Routing, route
from jaxdave.numerics.quantization import quantize_param
from jaxdave.numerics.weight_layout import to_device_layout, to_stacked
from jaxdave.runtime.machine import MachineKind, this_machine

TOKENS, HIDDEN = 40, 24
MACHINE = this_machine()
OTHER = dataclasses.replace(MACHINE, kind=MachineKind.TPU)
EVERY = pytest.mark.parametrize("kind", KINDS)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def matrices(config: ExpertsConfig) -> ExpertMatrices:
    gate, up = (drawn(config.count, HIDDEN, config.inter, seed=s) for s in (1, 2))
    down = drawn(config.count, config.inter, HIDDEN, seed=3)
    return ExpertMatrices(*map(jnp.asarray, (gate, up, down)))


def bias_of(config: ExpertsConfig):
    if config.bias == "none":
        return None
    return jnp.asarray(0.1 * drawn(config.count, seed=4))


@EVERY
def test_a_router_chooses_as_a_plain_loop(kind):
    config = KINDS[kind]
    logits, bias = drawn(200, config.count), bias_of(config)
    ours = route(jnp.asarray(logits), bias, config)
    expert_SC, weight_SC = plain_experts.route(logits, bias, config)
    np.testing.assert_array_equal(ours.expert_SC, expert_SC)
    np.testing.assert_allclose(ours.weight_SC, weight_SC, rtol=2e-6)


@EVERY
def test_of_equal_experts_the_first_are_chosen(kind):
    config = KINDS[kind]
    ours = route(jnp.zeros((3, config.count)), None, config)
    expected = np.tile(np.arange(config.per_token)[None], (3, 1))
    np.testing.assert_array_equal(ours.expert_SC, expected)


@pytest.mark.parametrize("crowded", [False, True])
def test_tiles_have_a_row_for_every_choice(crowded):
    draws = np.random.default_rng(0)
    one = [draws.permutation(3 if crowded else 16)[:3] for _ in range(TOKENS)]
    tiles = lay_out_tiles(jnp.asarray(np.stack(one), jnp.int32), 16)
    rows = np.asarray(tiles.row_SC)
    assert len(set(rows.ravel().tolist())) == rows.size
    assert rows.max() < int(tiles.used) * TILE_ROWS
    tile_SC = rows // TILE_ROWS
    np.testing.assert_array_equal(np.asarray(tiles.expert_J)[tile_SC], np.stack(one))
    token_SC = np.asarray(tiles.token_JR).ravel()[rows]
    np.testing.assert_array_equal(token_SC, np.tile(np.arange(TOKENS)[:, None], (1, 3)))
    assert np.sum(np.asarray(tiles.token_JR) < TOKENS) == rows.size


@EVERY
@pytest.mark.parametrize("machine", [MACHINE, OTHER], ids=["cpu", "other"])
def test_grouped_products_are_those_of_a_plain_loop(kind, machine):
    config = KINDS[kind]
    x, stacks = drawn(TOKENS, HIDDEN, seed=5), matrices(config)
    logits, bias = drawn(TOKENS, config.count), bias_of(config)
    expert_SC, weight_SC = plain_experts.route(logits, bias, config)
    routing = Routing(jnp.asarray(expert_SC, jnp.int32), jnp.asarray(weight_SC))
    ours = jax.jit(lambda x: mix_experts(x, routing, stacks, machine))(x)
    theirs = plain_experts.mix(x, expert_SC, weight_SC, *stacks)
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("machine", [MACHINE, OTHER], ids=["cpu", "other"])
def test_eight_bit_experts_are_the_floats_that_they_stand_for(machine, monkeypatch):
    # Cut into parts, as large matrices are.
    monkeypatch.setattr(experts, "PART_BYTES", 256)
    config, x = KINDS["qwen"], drawn(TOKENS, HIDDEN, seed=5)
    routing = route(jnp.asarray(drawn(TOKENS, config.count)), None, config)
    narrow: list[Any] = [
        quantize_param("experts/kernel", stack) for stack in matrices(config)
    ]
    wide = [p.values.astype(jnp.float32) * p.scale[:, None] for p in narrow]

    def mixed(stacks):
        stacks = ExpertMatrices(*stacks)
        return jax.jit(lambda x: mix_experts(x, routing, stacks, machine))(x)

    np.testing.assert_allclose(mixed(narrow), mixed(wide), rtol=1e-5, atol=1e-4)
    theirs = plain_experts.mix(x, *routing, *wide)
    np.testing.assert_allclose(mixed(narrow), theirs, rtol=2e-5, atol=2e-4)


def test_routers_keep_their_bits():
    leaf = jnp.ones((2, 3))
    assert quantize_param("blocks/mlp/router/kernel", leaf) is leaf


@pytest.mark.as_shipped
def test_a_token_s_bits_do_not_depend_on_the_others():
    config, draws = KINDS["llada2"], np.random.default_rng(0)
    x, stacks = drawn(TOKENS, HIDDEN, seed=5), matrices(config)
    routing = route(jnp.asarray(drawn(TOKENS, config.count)), None, config)
    mixed = jax.jit(lambda x, routing: mix_experts(x, routing, stacks, MACHINE))
    first = np.asarray(mixed(x, routing))
    order = draws.permutation(TOKENS)
    moved = mixed(x[order], Routing(*(part[order] for part in routing)))
    np.testing.assert_array_equal(moved, first[order])
    # One token everywhere, which fills the tiles of its experts.
    alone = np.zeros(TOKENS, int) + 7
    same = mixed(x[alone], Routing(*(part[alone] for part in routing)))
    np.testing.assert_array_equal(same, first[alone])


@pytest.mark.parametrize("machine", [MACHINE, OTHER], ids=["cpu", "other"])
def test_grouped_products_have_gradients(machine):
    config = KINDS["qwen"]
    x, stacks = jnp.asarray(drawn(12, HIDDEN, seed=5)), matrices(config)
    routing = route(jnp.asarray(drawn(12, config.count)), None, config)

    def loss(x, weight, stacks):
        mixed = mix_experts(x, Routing(routing.expert_SC, weight), stacks, machine)
        return jnp.sum(jnp.sin(mixed))

    def plain(x, weight, stacks):
        own = ExpertMatrices(*(part[routing.expert_SC] for part in stacks))
        gate, up = (jnp.einsum("se,scef->scf", x, part) for part in own[:2])
        output = jnp.einsum("scf,scfe->sce", jax.nn.silu(gate) * up, own.down)
        return jnp.sum(jnp.sin(jnp.sum(output * weight[..., None], axis=1)))

    arguments = (x, routing.weight_SC, stacks)
    ours = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arguments)
    theirs = jax.jit(jax.grad(plain, argnums=(0, 1, 2)))(*arguments)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-3)


@EVERY
def test_parameters_have_the_shapes_that_are_listed(kind):
    config = plain_experts.tiny(kind)
    params = jax.eval_shape(lambda: transformer.init(config, 0))
    assert params == param_shapes(config)


@pytest.mark.parametrize(
    "kind",
    [
        "llada2",  # which has every part
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("qwen", "llada")),
    ],
)
def test_the_device_s_layout_is_the_same_model(kind):
    config = plain_experts.tiny(kind)
    params = transformer.init(config, 0)
    laid_out = to_device_layout(params, config)
    assert_equal(to_stacked(laid_out), params)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 37, (2, 12)), jnp.int32)
    logits = jax.jit(forward(config))
    np.testing.assert_allclose(
        logits(params, tokens), logits(laid_out, tokens), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score": "tanh"}, "score='tanh' must be one of softmax, sigmoid"),
        ({"bias": "yes"}, "bias='yes' must be one of none, choice, weights"),
        ({"count": 0}, "count=0 must be in 1.."),
        ({"per_token": 9}, "per_token=9 must be at most the 8 experts"),
        ({"groups": 3}, "groups=3 must divide the 8 experts"),
        ({"groups": 8}, "must have 2 or more each"),
        ({"groups": 2, "kept_groups": 3}, "kept_groups=3 must be in 1..groups=2"),
        ({"groups": 4, "per_token": 3}, "per_token=3 must be at most the 2 experts"),
        ({"scale": 0.0}, "scale=0.0 must be above 0"),
        ({"shared_inter": -1}, "shared_inter=-1 must be in 0.."),
        ({"dense_layers": -1}, "dense_layers=-1 must be 0 or more"),
    ],
    ids=str,
)
def test_what_is_no_mixture_is_refused(changes, words):
    with pytest.raises(ValueError) as caught:
        dataclasses.replace(KINDS["qwen"], **changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_mixture_has_a_layer_of_experts():
    dense = dataclasses.replace(KINDS["llada2"], dense_layers=3)
    with pytest.raises(ValueError, match="dense_layers=3 must be below num_layers=3"):
        dataclasses.replace(plain_experts.TINY, experts=dense)

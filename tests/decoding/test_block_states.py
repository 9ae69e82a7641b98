"""Drafts cut into pieces: no more than they need, and the same bits in any place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model
from hypothesis import given
from hypothesis import strategies as st

from jaxdave import policies
from jaxdave.core.model_api import BlockStates
from jaxdave.decoding import block_states
from jaxdave.engine import decoders
from jaxdave.engine.bitwise_check import slot_probe
from jaxdave.engine.generation import generate
from jaxdave.models.attention import TILE
from jaxdave.models.block_causal import block_causal_model
from jaxdave.models.transformer import init

MASK = 9


@st.composite
def cases(draw):
    """States [S, J, P] of few tokens, up to where each is wanted, and the room."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(2, 4), st.integers(1, 3)))
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    tokens = np.where(rng.random(shape) < 0.5, MASK, rng.integers(0, 2, shape))
    active = rng.integers(0, shape[1], shape[0])
    wanted = rng.random(shape[0]) < 0.8
    wanted[0] = True
    most = draw(st.integers(shape[1], block_states.max_block_states(*shape[:2])))
    return tokens.astype(np.int32), active, wanted, int(rng.integers(shape[0])), most


CUT = jax.jit(block_states.distinct_block_states, static_argnums=(4, 5))
ALONG = jax.jit(block_states.chosen_chain)


def cut(tokens, active, wanted, far, most):
    arrays = tokens, active.astype(np.int32), wanted, np.int32(far)
    return jax.device_get(CUT(*arrays, MASK, most))


def states_of(tokens, active, wanted, far):
    """Every block state that is asked for, as (its chain of blocks), in order."""
    asked = [
        tuple(map(tuple, tokens[s, : j + 1]))
        for s in np.flatnonzero(wanted)
        for j in range(active[s] + 1)
    ]
    ahead = [tuple(map(tuple, tokens[far, : j + 1])) for j in range(tokens.shape[1])]
    return list(dict.fromkeys(asked)), list(dict.fromkeys(asked + ahead))


def test_the_example_of_the_docstring():
    a, b, c, d, _ = 0, 1, 2, 3, MASK
    tokens = [
        [[a, b], [_, _], [_, _]],
        [[a, b], [c, _], [_, _]],
        [[a, b], [c, d], [_, _]],
    ]
    active = np.array([1, 1, 2])
    got = cut(np.array(tokens, np.int32), active, np.ones(3, bool), 2, 5)
    assert got.fits_S.all()
    assert got.block_states.tokens_MP.tolist() == [
        [a, b],
        [_, _],
        [c, _],
        [c, d],
        [_, _],
    ]
    assert got.active_S.tolist() == [1, 2, 4]
    assert got.block_states.chain_MJ[4].tolist() == [0, 3, 4]


@given(cases())
def test_every_state_is_evaluated_once(case):
    tokens, active, wanted, far, most = case
    made = cut(*case)

    def chain(m):
        own = made.block_states.chain_MJ[m][: made.block_states.block_M[m] + 1]
        return tuple(tuple(made.block_states.tokens_MP[i]) for i in own)

    asked, every = states_of(tokens, active, wanted, far)
    held = [chain(m) for m in range(most)]
    # Numbers that nothing has repeat the first piece.
    assert held[: len(every)] == every[:most]
    assert all(extra == held[0] for extra in held[len(every) :])
    for s in np.flatnonzero(wanted):
        state = tuple(map(tuple, tokens[s, : active[s] + 1]))
        needed = [state[: j + 1] for j in range(len(state))]
        assert made.fits_S[s] == all(part in held for part in needed)
        if made.fits_S[s]:
            assert chain(made.active_S[s]) == state
            along = jax.device_get(ALONG(made, np.int32(s), np.int32(active[s])))
            own = [chain(int(m)) for m in along[: active[s] + 1]]
            assert own == needed


@given(cases())
def test_it_looks_ahead_from_the_most_open_state(case):
    tokens, active, wanted, far, most = case
    made = cut(*case)
    masks = np.sum(tokens == MASK, axis=2)
    for j in range(tokens.shape[1]):
        seats = [s for s in np.flatnonzero(wanted) if active[s] == j and made.fits_S[s]]
        if seats:
            best = max(masks[s, j] for s in seats)
            seat = next(s for s in seats if masks[s, j] == best)
            assert made.lookahead_J[j] == made.active_S[seat]
        elif made.lookahead_J[j] < most:
            at = made.block_states.chain_MJ[made.lookahead_J[j]]
            held = made.block_states.tokens_MP[at[: j + 1]]
            np.testing.assert_array_equal(held, tokens[far, : j + 1])


@pytest.mark.parametrize(
    ("drafts", "length", "step_tokens"),
    [
        (8, 1, 1),
        pytest.param(8, 4, 1, marks=pytest.mark.slow),
        pytest.param(16, 4, 1, marks=pytest.mark.slow),
        (8, 32, 1),
        (1, 4, 1),
        # Steps of several tokens reach further in as many drafts.
        (4, 4, 2),
        pytest.param(8, 2, 2, marks=pytest.mark.slow),
    ],
)
def test_nested_drafts_always_fit(drafts, length, step_tokens):
    """Every draft that is worth it is evaluated: pieces of one path have room."""
    policy = policies.static(step_tokens)
    decoder = fake_model.build(policy, drafts, length, 60)
    # Whatever is said without a context stays said: drafts are always right.
    still = fake_model.weights(fixed=16.0, context=0.0)
    row = generate(decoder, still, [[1, 2, 3]]).completions[0]
    assert row.nfe.total == 1 + -(-(row.steps - 1) // drafts)


@pytest.mark.parametrize("hidden", [32, 128])
@pytest.mark.as_shipped
def test_a_piece_has_one_set_of_bits(hidden):
    """In any seat, beside any others, its parents in the call or in the cache."""
    config = fake_model.TINY.__class__(**{**vars(fake_model.TINY), "hidden": hidden})
    params = jax.tree.map(lambda a: a * 6 if a.ndim > 1 else a, init(config, 0))
    net = block_causal_model(config)
    most, blocks, size = 12, 5, config.block_length
    rng = np.random.default_rng(hidden)
    shape = (config.num_layers, 2 * TILE, config.kv_heads, config.head_dim)
    cache = jax.tree.map(
        lambda _: jnp.asarray(rng.normal(size=shape), jnp.float32),
        fake_model.KVCache(0, 0),  # pyright: ignore
    )

    @jax.jit
    def evaluate(tokens_MP, block_M, chain_MJ, start, cache):
        cut = BlockStates(tokens_MP, block_M, chain_MJ)
        assert net.evaluate_blocks is not None
        return net.evaluate_blocks(params, cut, start, start, cache)

    def seen(seats, start, cache, at):
        """The line of blocks 0, 1, 2 from block `at` on, in the seats given."""
        tokens = rng.integers(0, 37, (most, size)).astype(np.int32)
        chain = np.tile(np.arange(most, dtype=np.int32)[:, None], (1, blocks))
        block = np.zeros(most, np.int32)
        for depth, seat in enumerate(seats):
            tokens[seat], block[seat] = line[at + depth], depth
            chain[seat, :depth] = seats[:depth]
        arrays = map(jnp.asarray, (tokens, block, chain))
        hidden, kv = evaluate(*arrays, jnp.int32(start), cache)
        return np.asarray(hidden)[list(seats)], kv

    line = rng.integers(0, 37, (3, size)).astype(np.int32)
    start = TILE - size
    first, kv = seen((0, 1, 2), start, cache, 0)
    for seats in ((5, 3, 9), (11, 10, 0)):
        again, _ = seen(seats, start, cache, 0)
        assert again.tobytes() == first.tobytes()
    put = lambda a, b: jax.lax.dynamic_update_slice(a, b[:, 0], (0, start, 0, 0))  # noqa: E731
    longer = jax.tree.map(put, cache, kv)
    later, _ = seen((7, 4), start + size, longer, 1)
    assert later.tobytes() == first[1:].tobytes()


@pytest.mark.as_shipped
def test_the_self_check_looks_at_pieces():
    spec = decoders.freedave(
        fake_model.TINY, draft_steps=8, block_length=4, numerics="exact"
    ).spec
    evaluate, seen = spec.model.evaluate_blocks, []
    assert evaluate is not None

    def spy(params, cut, *rest):
        seen.append(cut.tokens_MP.shape)
        return evaluate(params, cut, *rest)

    model = spec.model._replace(evaluate_blocks=spy)
    watched = spec.__class__(**{**vars(spec), "model": model})
    assert slot_probe(watched, fake_model.tiny_params(0)).holds
    assert set(seen) == {(block_states.max_block_states(8, 5), 4)}

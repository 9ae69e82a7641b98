"""float16 holds weights; activations, which outgrow it, are float32 beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import fake_model
from helpers.fake_model import prompts_of

from jaxdave.engine import decoders
from jaxdave.engine.generation import generate
from jaxdave.models.forward import forward, layer_states


def large_params():
    """float16 weights under which the residual stream leaves the range of float16."""
    params = fake_model.tiny_params(1)
    blocks = params["blocks"]
    mlp = {
        name: {"kernel": layer["kernel"] * (300 if name != "gate" else 30)}
        for name, layer in blocks["mlp"].items()
    }
    params = {**params, "blocks": {**blocks, "mlp": mlp}}
    return jax.tree.map(lambda a: a.astype(jnp.float16), params)


def test_logits_are_those_of_the_widened_weights():
    half = large_params()
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(half))
    tokens = jnp.asarray([prompts_of([12], 1, 30)[0]], jnp.int32)
    states = layer_states(fake_model.TINY)(half, tokens)
    assert states.dtype == jnp.float32 and np.abs(states).max() > 2 * 65504
    ours = forward(fake_model.TINY)(half, tokens)
    want = forward(fake_model.TINY)(wide, tokens)
    assert np.isfinite(ours).all() and ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("numerics", ["exact", "guarded"])
def test_texts_are_those_of_the_widened_weights_whatever_the_drafts(numerics):
    half, prompts = large_params(), prompts_of([5, 18, 9], 1, 30)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    common = {"block_length": 4, "max_new_tokens": 16, "numerics": numerics}
    plain = decoders.static(fake_model.TINY, **common)
    drafted = decoders.freedave(fake_model.TINY, draft_steps=6, **common)
    want = generate(plain, wide, prompts).completions
    assert {row.finish_reason for row in want} <= {"stop", "length"}
    for decoder in (plain, drafted):
        rows = generate(decoder, half, prompts).completions
        assert [row.token_ids for row in rows] == [row.token_ids for row in want]

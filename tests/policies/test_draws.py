"""`Policy.draws`: which policies draw random numbers, by their programs."""

import jax
import jax.numpy as jnp
import pytest
from helpers import replays

from jaxdave import policies
from jaxdave.core.prediction import Prediction
from jaxdave.policies.registry import makers

SIZE, FEATURES = 8, 6
MAKERS = makers()
WORDS = [*MAKERS, *(f"{name}:small_blocks=4" for name in ("random", "static"))]
WORDS += [f"{name}:alg_temp=0.5" for name in ("entropy", "maskgit_plus", "topk_margin")]


@pytest.mark.parametrize("words", WORDS)
def test_a_policy_says_that_its_step_reads_the_key(words):
    policy = policies.parse(words)
    number_W = jnp.linspace(0.5, 4.0, SIZE)
    token_W = jnp.arange(SIZE, dtype=jnp.int32)
    pred = Prediction(
        token_W,
        number_W,
        number_W,
        number_W,
        number_W,
        runner_up=-token_W,
        lead=number_W,
    )

    def step(key: jax.Array):
        view = replays.view_of(
            pred,
            jnp.zeros((SIZE, FEATURES)),
            jnp.full(SIZE, replays.MASK, jnp.int32),
            start=jnp.int32(0),
            max_new_tokens=jnp.int32(SIZE),
            n=jnp.int32(0),
            key=key,
        )
        return policy.step(view, policy.init(SIZE, FEATURES))

    program = jax.make_jaxpr(step)(replays.key_of(0, 0)).jaxpr
    (key,) = program.invars
    is_read = any(key in equation.invars for equation in program.eqns)
    assert policy.draws == is_read
